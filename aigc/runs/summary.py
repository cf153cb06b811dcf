"""The run folder: its record, and the rules for resuming it."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aigc.errors import RunError, UserError
from aigc.files import atomic

UNSIGNED = ("study", "resume", "logger", "callbacks", "log_every", "budget")  # not part of an experiment's identity


def write_summary(folder: Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into `<folder>/summary.json`, atomically, and returns the whole.

    Raises:
        RunError: the file cannot be written.
    """
    path = folder / "summary.json"
    summary = {**read_summary(folder), **entries, "updated": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write(path, json.dumps(summary, indent=2) + "\n")
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


def capabilities_of(summary: dict[str, Any]) -> list[str]:
    """What the family of a run can do; older runs say only whether it translates."""
    return list(summary.get("capabilities", ["translate" if summary.get("translates") else "sample"]))


def signature(config: dict[str, Any], parts: Mapping[str, str | None] | None = None) -> str:
    """Identity of an experiment: a hash of its configuration without the keys that do not change its result.

    Args:
        config: of the run.
        parts: options of the model that are trained runs, each with that run's fingerprint, which takes the place of
            its path; None: an option that does not count.
    """
    kept = {key: value for key, value in config.items() if key not in UNSIGNED}
    for name, fingerprint in (parts or {}).items():
        model = {key: value for key, value in kept["model"].items() if key != name}
        kept["model"] = model if fingerprint is None else {**model, name: fingerprint}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
