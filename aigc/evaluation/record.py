"""The record of an evaluation: a file that says what was scored, how and what came out, and the same as a table."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aigc.errors import RunError, UserError
from aigc.evaluation.panel import Score

HEAD = ("score", "value", "95% interval", "floor")


def check_writable(path: Path) -> None:
    """Makes the folder of a record, so that one that does not take it is known before anything is measured.

    Raises:
        UserError: it does not, or the record would replace another.
    """
    if path.exists():
        raise UserError(f"out={path} exists: choose another name, or move it away")
    probe = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"the record cannot be written to '{path}' ({error.strerror}): choose another out=") from error


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes the record as JSON, whole or not at all.

    Raises:
        RunError: the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"the record could not be written to '{path}' ({error.strerror}): the scores are above; make "
                       "room, or choose another out=") from error


def now() -> str:
    """The time, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def table(scores: Mapping[str, Score]) -> str:
    """Scores as lines of text: value, interval and floor, in aligned columns."""
    rows = [HEAD]
    for name, score in scores.items():
        between = "" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}"
        rows.append((name, f"{score.value:.4g}", between, "" if score.floor is None else f"{score.floor:.4g}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)
