"""The record of an evaluation: a file that says what was scored, how, and with what result; and a table of it."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import IO, Any

from aigc.errors import RunError, UserError
from aigc.files import atomic
from aigc.files.written import is_drawing, is_evaluation
from aigc.scoring.bootstrap import Estimate
from aigc.wording import aligned

HEAD = ("score", "value", "95% interval", "floor")


@contextmanager
def reserve(path: Path, *, overwrite: bool = False, numbered: bool = False) -> Iterator[Path]:
    """Reserves the path of a record and of the pictures beside it against other evaluations, until the end.

    Creates the folder, so an unwritable one is noticed before anything is computed.

    Args:
        path: of the record.
        overwrite: replace an earlier record and its pictures, once there is a new one.
        numbered: if the name is taken, use `<name>_2.json`, `<name>_3.json`, ... instead.

    Raises:
        UserError: the folder is not writable, or the name is taken.
    """
    names = (path.with_name(f"{path.stem}_{k}{path.suffix}") for k in range(2, 10_000)) if numbered else ()
    for name in (path, *names):
        if numbered and _taken(name):
            continue
        if (lock := _hold(name)) is None:
            if not numbered:
                raise UserError(f"another process writes to '{name}': choose another out=, or wait for it")
            continue
        try:
            if (reason := _taken(name, overwrite)) and not numbered:
                raise UserError(f"out={name} {reason}")
            if not reason:
                before = {picture: picture.stat().st_mtime_ns for picture in _pictures(name)}
                yield name
                for picture, when in before.items():       # of networks that the new record lacks
                    if picture.stat().st_mtime_ns == when:
                        picture.unlink()
                return
        finally:
            _lock_of(name).unlink(missing_ok=True)
            lock.close()


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _hold(path: Path) -> IO[bytes] | None:
    """The open lock file of a record; None if another process holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(path).open("wb")
    except OSError as error:
        raise UserError(f"the record cannot be written to '{path}' ({error.strerror}): choose another out=") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    except OSError:                                        # a file system without locks
        pass
    return lock


def _pictures(path: Path) -> list[Path]:
    """The pictures that belong to a record of this name."""
    return sorted(path.parent.glob(f"{escape(path.stem)}_neighbours_*.png"))


def _taken(path: Path, overwrite: bool = False) -> str:
    """Why a record cannot have this name, as a phrase; empty if it can."""
    if path.exists() and not (path.is_file() and is_evaluation(path.read_bytes())):
        return "exists and is not the record of an evaluation: choose another name"
    if path.exists() and not overwrite:
        return "exists: choose another name, or give overwrite=true to replace it"
    if not path.exists() and (pictures := _pictures(path)):
        return f"would replace '{pictures[0].name}' beside it: choose another name, or move that away"
    if strange := [picture for picture in _pictures(path) if not is_drawing(picture)]:
        return f"would replace '{strange[0].name}' beside it, which it did not write: choose another name"
    return ""


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes the record as JSON, atomically.

    Raises:
        RunError: it cannot be written.
    """
    try:
        atomic.write(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise RunError(f"the record could not be written to '{path}' ({error.strerror}): the scores are above; make "
                       "room, or choose another out=") from error


def now() -> str:
    """The current time in the format of records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def table(scores: Mapping[str, Estimate]) -> str:
    """Scores as lines of text: value, interval and floor, in aligned columns."""
    rows = []
    for name, score in scores.items():
        between = "" if score.low is None or score.high is None else f"{score.low:.4g} to {score.high:.4g}"
        rows.append((name, f"{score.value:.4g}", between, "" if score.floor is None else f"{score.floor:.4g}"))
    return aligned(HEAD, rows)
