"""The best trial of a search as an experiment that can be run: `--config-dir <search> experiment=best`."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from aigc.errors import RunError
from aigc.files import atomic

PACKAGE = "# @package _global_\n"
MARK = "# Written by a search, which replaces this file as long as the lines below are unchanged: "


def save_experiment(
    folder: Path, name: str, words: Sequence[str], loader: Any, comment: str, *, dirs: Sequence[str] = ()
) -> str:
    """Writes `<folder>/experiment/<name>.yaml`, which composes to what the overrides `words` compose to.

    If `dirs` have an experiment of that name, which the search may build on, it is called `<name>_again`; if the file
    is there and is not as a search wrote it, `<name>_2` and so on.

    Args:
        folder: of the search.
        name: of the experiment.
        words: a trial's overrides.
        loader: Hydra's, which knows the groups.
        comment: a line on where it comes from.
        dirs: the user's own folders of configuration, for Hydra's searchpath.

    Returns:
        The command that trains it.
    """
    while any((Path(own.removeprefix("file://")) / "experiment" / f"{name}.yaml").is_file() for own in dirs):
        name += "_again"
    taken, number = name, 1
    while is_changed(folder / "experiment" / f"{name}.yaml"):
        number += 1
        name = f"{taken}_{number}"
    if number > 1:
        print(f"'{folder / 'experiment' / taken}.yaml' was edited and stays as it is: this one is {name}.yaml")
    defaults: list[Any] = []
    values = OmegaConf.create({})
    typed = []
    for one in OverridesParser.create().parse_overrides(list(words)):
        key, value = one.key_or_group, one.value()
        if key == "hparams_search":
            continue
        if one.is_delete():  # a file can only add
            typed.append(str(one.input_line))
        elif key == "experiment":
            defaults.insert(0, value)
        elif loader.get_group_options(key):
            group = f"/{key}@{one.package}" if one.package else f"/{key}"
            defaults.append({group if one.is_add() else f"override {group}": value})
        else:
            OmegaConf.update(values, key, value, force_add=True)
    paths = ",".join(QuotedString(path, Quote.double).with_quotes() for path in dirs)
    typed = [f"hydra.searchpath=[{paths}]", *typed] if dirs else typed
    command = shlex.join(["python", "-m", "aigc.train", "--config-dir", str(folder), f"experiment={name}", *typed])
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    said = (f"# {comment}\n# {command}\n" + OmegaConf.to_yaml({"defaults": [*defaults, "_self_"]})
            + OmegaConf.to_yaml(values))
    try:
        atomic.write(path, f"{PACKAGE}{MARK}{digest(said)}\n{said}")
    except OSError as error:
        raise RunError(f"'{path}' could not be written ({error.strerror}): make room, and start the search again"
                       ) from error
    return command


def is_changed(path: Path) -> bool:
    """Whether a file is there that is not as `save_experiment` wrote it."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError):
        return True
    mark, _, said = text.removeprefix(PACKAGE).partition("\n")
    return mark != f"{MARK}{digest(said)}"


def digest(text: str) -> str:
    """What stands in a file for the lines below it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
