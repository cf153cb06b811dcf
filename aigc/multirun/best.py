"""The best trial of a search as an experiment that can be run: `--config-dir <search> experiment=best`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf


def save_experiment(folder: Path, name: str, words: Sequence[str], loader: Any, comment: str) -> str:
    """Writes `<folder>/experiment/<name>.yaml`, which composes to what the overrides `words` compose to.

    Args:
        folder: of the search.
        name: of the experiment.
        words: a trial's overrides.
        loader: Hydra's, which knows the groups.
        comment: a line on where it comes from.

    Returns:
        The command that trains it.
    """
    defaults: list[Any] = []
    values = OmegaConf.create({})
    typed = []
    for one in OverridesParser.create().parse_overrides(list(words)):
        key, value = one.key_or_group, one.value()
        if key == "hparams_search":
            continue
        if one.is_delete():  # a file can only add
            typed.append(f"'{one.input_line}'")
        elif key == "experiment":
            defaults.insert(0, value)
        elif loader.get_group_options(key):
            group = f"/{key}@{one.package}" if one.package else f"/{key}"
            defaults.append({group if one.is_add() else f"override {group}": value})
        else:
            OmegaConf.update(values, key, value, force_add=True)
    command = " ".join(["python -m aigc.train", f"--config-dir {folder}", f"experiment={name}", *typed])
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    head = f"# @package _global_\n# {comment}\n# {command}\n"
    path.write_text(head + OmegaConf.to_yaml({"defaults": [*defaults, "_self_"]}) + OmegaConf.to_yaml(values))
    return command
