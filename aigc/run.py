"""The run folder: what it says about itself, and the rules by which it is continued or discarded."""

import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aigc.errors import RunError, UserError, choices
from aigc.foreign import read_config, settled

RESUMABLE = ("budget", "trainer", "batch_size", "logger", "log_every", "resume")  # what a resumed run may change
BEFORE_TRAINING = (".hydra", "summary.json", "wandb", "samples")  # what is there before the first step
UNSIGNED = ("study", "resume", "logger", "callbacks", "log_every", "budget")  # what does not make another experiment


def write_summary(folder: Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into `<folder>/summary.json`, atomically, and returns the whole.

    Raises:
        RunError: the folder does not take the file.
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
    """The content of `<folder>/summary.json`; empty where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def signature(config: dict[str, Any]) -> str:
    """Identity of an experiment: a hash of its configuration without the keys that do not change its result."""
    kept = {key: value for key, value in config.items() if key not in UNSIGNED}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Versions, machine and commit that a run was made with."""
    names = ("aigc", "torch", "lightning", "torchmetrics", "hydra-core", "wandb")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # run from a checkout that was never installed
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


def discard_if_unstarted(folder: Path) -> None:
    """Removes a run folder in which nothing was trained, and the parents that it leaves empty."""
    if not folder.is_dir():
        return
    if any(entry.name not in BEFORE_TRAINING for entry in folder.iterdir()):
        return
    shutil.rmtree(folder, ignore_errors=True)
    remove_empty(folder.parent)


def remove_empty(folder: Path) -> None:
    """Removes a folder and its parents below the current one, as far as they are empty."""
    folder = folder.resolve()
    while folder.is_relative_to(Path.cwd()) and folder != Path.cwd() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def resumed_config(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """The saved configuration of `folder` with the few overrides that a resumed run allows.

    Args:
        cfg: the configuration composed from this command line.
        folder: the run folder.
        overrides: the overrides as typed.

    Raises:
        UserError: there is nothing to resume, or an override would make another experiment of it.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"resume='{folder}' is no run folder: it has no .hydra/config.yaml")
    saved = read_config(path)
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0]
        top = key.split(".")[0].split("@")[0]
        if top not in RESUMABLE:
            raise UserError(
                f"'{key}' cannot change when a run is resumed ({choices(top, RESUMABLE)}): start a new run for it"
            )
        OmegaConf.update(saved, key, OmegaConf.select(cfg, key), force_add=True)
    return settled(saved, path)
