"""The rules for resuming a run: what may change, and the configuration that goes on."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from aigc.config.untrusted import read_config, settled
from aigc.errors import UserError, choices

RESUMABLE = ("budget", "trainer", "batch_size", "logger", "log_every", "resume")  # what may change on resume
MOVED = ("data.path", "data.root")  # likewise: the same data at another place
AUTOMATIC = ("text", "none")      # what condition=auto may become (aigc/training/fit.py)


def over_saved(words: Sequence[str]) -> list[str]:
    """Rewrites a command line that resumes a run, so that it can set values that only the saved configuration has.

    `trainer.max_time=...` becomes `++trainer.max_time=...`, and `~logger.wandb` becomes `++logger.wandb=null`; see
    `resumed_config`. Other command lines stay as they are.
    """
    if not any(re.match(r"resume=(?!null$)", word) for word in words):
        return list(words)
    changed = []
    for word in words:
        sign, key, value = re.fullmatch(r"(~|\+{0,2})([^=]*)(.*)", word, re.DOTALL).groups()  # type: ignore[union-attr]
        if "." in key and may_change(key):
            word = f"++{key}=null" if sign == "~" else f"++{key}{value}"
        changed.append(word)
    return changed


def may_change(key: str) -> bool:
    """Whether an option, or an option of a group, may change when a run is resumed."""
    return key in MOVED or ("@" not in key and key.split(".")[0] in RESUMABLE)


def resumed_config(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The saved configuration of `folder` with the few overrides that resuming allows.

    A group (`trainer=cpu`, `logger=none`) replaces the saved one; `trainer.max_time=...` changes one value of it; null
    or `~` removes it.

    Args:
        cfg: the configuration composed from this command line.
        folder: the run folder.
        overrides: the overrides as typed.

    Raises:
        UserError: there is nothing to resume, or an override would make it a different experiment.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"resume='{folder}' is not a run folder: it has no .hydra/config.yaml")
    saved = read_config(path)
    typed = [OverridesParser.create().parse_override(word) for word in overrides]
    for one in sorted(typed, key=lambda one: "." in one.key_or_group):  # groups first, then values in them
        key, value = one.key_or_group, one.value()
        if not may_change(key) or one.package is not None:
            known = choices(key if "." in key and key.startswith("data.") else key.split(".")[0], RESUMABLE + MOVED)
            raise UserError(f"'{key}' cannot change when a run is resumed ({known}): start a new run for it")
        group, _, name = key.rpartition(".")
        if isinstance(value, dict) and not group:
            OmegaConf.update(saved, key, value, force_add=True)
        elif not group:
            OmegaConf.update(saved, key, cfg[key], merge=False, force_add=True)
        elif not isinstance(inside := OmegaConf.select(saved, group), DictConfig):
            raise UserError(f"'{key}' cannot change: the run has no '{group}'; give {group.split('.')[0]}=default too")
        elif key in MOVED and name not in inside:
            raise UserError(f"'{key}' is not an option of this run's data: {choices(name, inside)}")
        elif group.split(".")[0] != "budget" and (one.is_delete() or value is None):
            inside.pop(name, None)
        else:
            OmegaConf.update(saved, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    return settled(saved, path)
