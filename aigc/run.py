"""The run folder: its record, and the rules for resuming it."""

import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from aigc.errors import RunError, UserError, choices
from aigc.foreign import read_config, settled

RESUMABLE = ("budget", "trainer", "batch_size", "logger", "log_every", "resume")  # what may change on resume
MOVED = ("data.path", "data.root")  # likewise: the same data at another place
AUTOMATIC = ("text", "none")      # what condition=auto may become (aigc/training.py)
UNSIGNED = ("study", "resume", "logger", "callbacks", "log_every", "budget")  # not part of an experiment's identity


def write_summary(folder: Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into `<folder>/summary.json`, atomically, and returns the whole.

    Raises:
        RunError: the file cannot be written.
    """
    path = folder / "summary.json"
    summary = {**read_summary(folder), **entries, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
    temporary = path.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(summary, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        sentence = f"{path} could not be written ({error.strerror}): make room, or choose another hydra.run.dir"
        raise RunError(sentence) from error
    return summary


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of `<folder>/summary.json`; empty if there is none.

    Raises:
        UserError: it cannot be read as a summary.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): repair it, or remove it") from error
    if not isinstance(summary, dict):
        raise UserError(f"'{path}' is not the summary of a run: choose another folder")
    return summary


def signature(config: dict[str, Any]) -> str:
    """Identity of an experiment: a hash of its configuration without the keys that do not change its result."""
    kept = {key: value for key, value in config.items() if key not in UNSIGNED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions, machine and commit of a run."""
    names = ("aigc", "torch", "lightning", "torchmetrics", "hydra-core", "wandb")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # run from a checkout that is not installed
            continue
    return {"versions": found, "machine": _machine(), "git_commit": _commit()}


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":", 1)[1].strip() if named else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} core" + ("" if cores == 1 else "s")


def _commit() -> str | None:
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def peak_memory_mb() -> float:
    """Peak memory of this process so far, in MiB: the GPU's if there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


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
