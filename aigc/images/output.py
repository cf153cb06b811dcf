"""The folder that a verb writes pictures into: claimed before any work, recorded file by file, cleared on request.

`claim` refuses a folder that holds anything else, so that pictures of two calls are never mixed and no file of the
user's is replaced. Each file is entered in the record (see `written`) before it is written, so the record is complete
whatever interrupts the writing. The lock on the record ends with its process.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import IO, Any

from aigc import __version__
from aigc.errors import RunError, UserError
from aigc.files import atomic
from aigc.files.written import RECORD, Written, parse_record
from aigc.wording import counted

IGNORED = ("thumbs.db", "desktop.ini")                     # left in folders by systems, besides hidden files
NAMED = 3                                                  # names of blocking files in an error


class Output:
    """A claimed folder. If asked to overwrite, clears the program's earlier files before it writes the first one."""

    def __init__(self, folder: Path, record: IO[str], before: Written | None):
        self.folder = folder
        self.facts: dict[str, Any] = {}                    # first line of the record; complete before the first file
        self.ending: dict[str, Any] = {}                   # its last line
        self._record, self._before = record, before
        self._files = 0
        self.started = False

    def write(self, name: str, content: bytes, **facts: Any) -> None:
        """Writes a file, under a temporary name first; creates its folder.

        Args:
            name: relative to the folder, with forward slashes.
            content: of the file.
            **facts: for the record: `kind` (image, grid, ...), and what reproduces the file.

        Raises:
            RunError: the file cannot be written.
        """
        sha256 = hashlib.sha256(content).hexdigest()
        with self._placing(name) as temporary:
            self._line({"name": name, **facts, "size": len(content), "sha256": sha256})
            temporary.write_bytes(content)

    @contextmanager
    def file(self, name: str, *, keep: bool = False, **facts: Any) -> Iterator[IO[bytes]]:
        """A file to write piece by piece under a temporary name; it gets its own name at the end.

        Args:
            name: as for `write`.
            keep: also keep the file in its current state if the writing is interrupted.
            **facts: as for `write`.

        Raises:
            RunError: the file cannot be written.
        """
        interrupted: BaseException | None = None
        with self._placing(name) as temporary:
            self._line({"name": name, **facts})            # so that it can be cleared whatever happens next
            with open(temporary, "w+b") as file:
                try:
                    yield file
                except BaseException as error:
                    if not keep or isinstance(error, OSError) or not file.tell():
                        raise
                    interrupted = error
                file.flush()
                file.seek(0)
                sha256, size = hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
            self._line({"name": name, **facts, "size": size, "sha256": sha256})
        if interrupted is not None:
            raise interrupted

    @contextmanager
    def _placing(self, name: str) -> Iterator[Path]:
        """A temporary name, replaced by the file's own once all is written."""
        path = self.folder / name
        try:
            self._start()
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic.replacing(path) as temporary:
                yield temporary
            self._files += 1
        except OSError as error:
            done = counted(self._files, "file", "was", "were") if self._files else "nothing was"
            raise RunError(f"'{path}' could not be written ({error.strerror or error}), {done} written: make room, "
                           "or choose another out=") from error

    def _start(self) -> None:
        if self.started:
            return
        if self._before is not None:
            clear(self.folder, self._before)
        self.started = True
        self._record.seek(0)
        self._record.truncate()
        made = datetime.now(UTC).isoformat(timespec="seconds")
        self._line({"program": "aigc", "version": __version__, "made": made, **self.facts})

    def _line(self, entry: dict[str, Any]) -> None:
        self._record.write(json.dumps(entry) + "\n")
        self._record.flush()

    def close(self, status: str) -> bool:
        """Writes the last line and releases the folder; returns whether anything was written."""
        with contextlib.suppress(OSError):                 # a full disk refuses this line too
            if self.started:
                self._line({"status": status, **self.ending})
        _leave(self._record, self.folder / RECORD)
        return self.started


@contextmanager
def claim(out: Path, *, overwrite: bool = False, numbered: bool = False) -> Iterator[Output]:
    """Creates and claims a folder to write into; removes it again if nothing was written.

    An interruption is given a note that says where the files are, if any are written.

    Args:
        out: the folder.
        overwrite: clear what generate or edit wrote there before, when the first file is written.
        numbered: if `out` exists, use `<out>_2`, `<out>_3`, ... instead.

    Raises:
        UserError: the folder holds other files, is in use by another process, or cannot be created.
    """
    out, made = _make(out, numbered)
    output, status = None, "failed"
    try:
        output = _lock(out, overwrite)
        yield output
        status = "complete"
    except KeyboardInterrupt as interruption:
        status = "interrupted"
        if output is not None and output.started:
            interruption.add_note(f"'{out}' holds what was written before the interruption")
        raise
    finally:
        written = output is not None and output.close(status)
        if not written:
            with contextlib.suppress(OSError):
                for folder in reversed(made):
                    folder.rmdir()


def by_time(folder: Path) -> Path:
    """`<folder>/<time>`, to the second."""
    return folder / f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}"


def clear(folder: Path, record: Written) -> None:
    """Removes the unchanged files of a record, remains of an interruption, and folders that become empty."""
    folders = set()
    for name, facts in record.files.items():
        path = folder / name
        for file in (path, path.with_name(f".{path.name}.tmp")):
            if file != path or _unchanged(path, facts):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    file.unlink()
        folders |= {parent for parent in path.parents if folder in parent.parents}
    for empty in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            empty.rmdir()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(folder: Path, numbered: bool) -> tuple[Path, list[Path]]:
    """Creates a folder with its parents; returns it and the folders that were created, outermost first."""
    missing = [parent for parent in folder.parents if not parent.exists()][::-1]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        others = (folder.with_name(f"{folder.name}_{k}") for k in range(2, 10_000))
        for name in chain([folder], others):
            try:
                name.mkdir()
                return name, [*missing, name]
            except FileExistsError:
                if not numbered and name.is_dir():
                    return name, missing
                if not numbered:
                    raise
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"out='{folder}' is a file: choose another folder") from error
    except OSError as error:
        raise UserError(f"out='{folder}' cannot be made ({error.strerror}): choose another folder") from error
    raise UserError(f"out='{folder}' and 10,000 numbered folders exist already: give out=")


def _lock(folder: Path, overwrite: bool) -> Output:
    """Opens and locks the record of a folder that may be written into."""
    path = folder / RECORD
    if not path.exists() and (others := _others(folder, None)):
        cleared = "overwrite=true clears only what this program wrote: " if overwrite else ""
        raise UserError(f"out='{folder}' holds other files ({others}): {cleared}choose a new or an empty folder")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        record = os.fdopen(descriptor, "r+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"out='{folder}' cannot be written into ({error.strerror}): choose another folder") from error
    try:
        _hold(record, path)
    except UserError:
        record.close()
        raise
    try:
        text = record.read()
        before = parse_record(text) if text else Written({}, {}, False)
        if before is None:
            raise UserError(f"out='{folder}' holds an {RECORD} that cannot be read: choose a new or an empty folder")
        if text and not overwrite:
            n = len(before.files)
            raise UserError(f"out='{folder}' holds {n:,} file{'s' if n != 1 else ''} of an earlier "
                            f"{before.facts.get('verb', 'call')}: choose another folder, or give overwrite=true to "
                            "clear them first")
        if others := _others(folder, before):
            raise UserError(f"out='{folder}' holds files that were not written by this program, or changed since "
                            f"({others}): move them away, or choose another folder")
    except BaseException:
        _leave(record, path)
        raise
    return Output(folder, record, before)


def _leave(record: IO[str], path: Path) -> None:
    """Closes a record, and removes it if it is empty."""
    with contextlib.suppress(OSError):
        if os.fstat(record.fileno()).st_size == 0 and os.path.samestat(os.fstat(record.fileno()), path.stat()):
            path.unlink()
    with contextlib.suppress(OSError):
        record.close()


def _hold(record: IO[str], path: Path) -> None:
    try:
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"out='{path.parent}' is being written by another process: choose another folder, or wait for "
                        "it") from error
    except OSError:                                        # a file system without locks
        return
    if not path.exists() or not os.path.samestat(os.fstat(record.fileno()), path.stat()):   # removed in between
        raise UserError(f"out='{path.parent}' was being written by another process: try again")


def _others(folder: Path, record: Written | None) -> str:
    """The first few files below a folder that its record does not list or that were changed, as a phrase; or empty."""
    known = {} if record is None else record.files
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted([*files, *links]):
            name = Path(place, file).relative_to(folder).as_posix()
            if file.startswith(".") or file.lower() in IGNORED or (name == RECORD and record is not None):
                continue
            if name not in known or not _unchanged(Path(place, file), known[name]):
                found.append(f"'{name}'")
            if len(found) > NAMED:
                return ", ".join(found[:NAMED]) + " and more"
    return ", ".join(found)


def _unchanged(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file is as it was written. A file with incomplete facts never got its name."""
    try:
        return path.stat().st_size == facts.get("size") and sha256_of(path) == facts.get("sha256")
    except OSError:
        return False
