"""Checkpoints: written atomically, found in a run folder, and loaded as a family."""

import logging
import pickle
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from lightning.pytorch.plugins import TorchCheckpointIO

from aigc.config.targets import locate
from aigc.errors import RunError, UserError, choices
from aigc.files import atomic
from aigc.models.family import Family

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes to the disk, then renames: a checkpoint is never incomplete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Saves, or raises a RunError and keeps the earlier file."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(path, lambda file: torch.save(checkpoint, file), sync=True)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            kept = f"the previous {path.name} is intact" if path.exists() else "no earlier checkpoint exists"
            sentence = f"the checkpoint {path} could not be written ({error}); {kept}: make room and resume"
            raise RunError(sentence) from error


KINDS = ("best", "last")


def choose_device(name: str) -> torch.device:
    """The device that `device=` names: auto, cpu, or cuda with or without a number.

    Raises:
        UserError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = str(name).partition(":")
    if kind not in ("cpu", "cuda") or (colon and not number.isdecimal()):
        raise UserError(f"device={name} is unknown: choose auto, cpu, cuda or cuda:<number>")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}, but torch sees {torch.cuda.device_count() or 'no'} GPU: use device=auto")
    return torch.device(name)


def find_checkpoint(run: str | Path, which: str = "last") -> Path:
    """The checkpoint file that `run` refers to: itself, or `which` (last | best) of a run folder.

    Raises:
        UserError: there is none.
    """
    if which not in KINDS:
        raise UserError(f"checkpoint={which} is unknown: {choices(which, KINDS)}")
    path = Path(run).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"'{run}' is neither a run folder nor a checkpoint: give one that exists")
    folder = path / "checkpoints"
    for name in (which, "last"):
        if (folder / f"{name}.ckpt").is_file():
            return folder / f"{name}.ckpt"
    raise UserError(f"the folder '{run}' has no checkpoint (checkpoints/last.ckpt): give a run that has trained")


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; for a checkpoint outside a run, the folder that holds it."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, loaded with `weights_only=True`.

    Raises:
        UserError: it is not a checkpoint of this program.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file may fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pickle.UnpicklingError):      # hides torch's advice to run the file's code
            reason = "not a tensor file"
        raise UserError(f"'{path}' cannot be read as a checkpoint ({reason}): give a run folder or its "
                        "checkpoints/*.ckpt") from error
    kinds = {"family": str, "state_dict": dict, "hyper_parameters": dict, "progress": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise UserError(f"'{path}' is not a checkpoint of aigc: give a run folder or its checkpoints/*.ckpt")
    return content


def load_family(run: str | Path, which: str = "best", device: str | torch.device = "cpu") -> Family:
    """The trained family of a run folder or checkpoint file, in eval mode on `device`.

    Raises:
        UserError: there is no checkpoint, or it does not fit the installed code.
    """
    path = find_checkpoint(run, which)
    content = read_checkpoint(path)
    family = locate(content["family"], "model", key=f"'{path}': family")
    assert issubclass(family, Family)
    note_fetched(content["hyper_parameters"], path)
    try:
        module = family(**content["hyper_parameters"])
        module.load_state_dict(content["state_dict"])
        module.on_load_checkpoint(content)
    except UserError:
        raise
    except Exception as error:          # a constructor may fail in any way for foreign options
        said = str(error) if not isinstance(error, KeyError) else f"it lacks {error}"
        reason = " ".join(said.splitlines()[:2]) or type(error).__name__                    # details in line 2
        reason = shorten(reason, 300, placeholder=" ...")
        raise UserError(f"'{path}' does not fit {family.__name__} as installed: {reason}") from error
    return module.eval().to(device)


def note_fetched(options: dict[str, Any], path: Path) -> None:
    """Logs what a checkpoint downloads by name: the encoder of its prompts, unless that is a local folder."""
    text = options.get("text")
    name = text.get("name") if isinstance(text, dict) and text.get("encoder") != "own" else None
    if name and not Path(str(name)).expanduser().exists():
        log.info("'%s' reads prompts with %s, which is downloaded by that name unless it is already here", path, name)
