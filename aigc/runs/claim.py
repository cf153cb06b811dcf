"""Whose a folder is: a new run gets one that is new or empty, a resumed run its own, and one process works there.

A start notes what it makes, and one that is refused removes just that: nothing that was there before is ever touched.
"""

import contextlib
import shutil
from pathlib import Path

from aigc.errors import UserError
from aigc.runs.lock import NAME as LOCK
from aigc.runs.lock import STALE_SECONDS, FolderLock

RUN = ("summary.json", "checkpoints", "metrics.jsonl")      # what tells a run from other folders
LOGS = (".log", ".out", ".err")                             # where a shell or a scheduler puts what a run prints
MADE = {  # by a start, before its first step, with the files in them; None: whatever is in them (W&B's)
    ".hydra": ("config.yaml", "hydra.yaml", "overrides.yaml"), "samples": ("*.png",), "wandb": None,
    "summary.json": (), "summary.tmp": (),
}


class Claim:
    """A folder that this process works in.

    Args:
        folder: which.
        lock: that this process holds or takes part in.
        made: the folders that this start made, outermost first.
        before: what was in the folder already; None: a run of its own, of which nothing is to be removed.
    """

    def __init__(
        self, folder: Path, lock: FolderLock, *, made: tuple[Path, ...] = (), before: frozenset[str] | None = None,
        inherited: bool = False,
    ):
        self.folder = folder
        self.lock = lock
        self.made = made
        self.before = before
        self.inherited = inherited

    def discard(self) -> None:
        """Removes what this start made, unless it has trained."""
        if self.before is None:
            return
        new = set(names(self.folder)) - self.before - {LOCK}
        if any(name not in MADE and counts(self.folder / name) for name in new):
            return
        for name in new & MADE.keys():
            path, inside = self.folder / name, MADE[name]
            with contextlib.suppress(OSError):
                if not path.is_dir():
                    path.unlink()
                elif inside is None:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    for file in [file for pattern in inside for file in path.glob(pattern)]:
                        file.unlink()
                    path.rmdir()

    def release(self) -> None:
        """Ends the work there; folders that this start made and left empty go."""
        self.lock.release(remove=not self.inherited)
        remove_made(self.made)


def claim_new(folder: Path, *, suffix: bool = False, option: str = "hydra.run.dir") -> Claim:
    """The claim of a new run on `folder`, which is made, or is there and holds nothing that counts.

    Args:
        folder: which.
        suffix: where it is there, take `<folder>_2`, `_3`, ... instead of it.
        option: what names the folder.

    Raises:
        UserError: it holds a run or other files, is in use, or cannot be made or written to.
    """
    number = 1
    while True:
        wanted = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            made = make(wanted)
            break
        except FileExistsError:
            if not suffix:
                made = ()
                break
            number += 1
        except OSError as error:
            raise UserError(
                f"the folder '{wanted}' cannot be made ({error.strerror}): choose another {option}"
            ) from error
    lock = FolderLock(wanted)
    try:
        if not made:
            check_free(wanted, option)
        if not lock.take():
            raise UserError(in_use(lock))
        if not made:
            check_free(wanted, option)  # again: somebody may have come and gone
    except UserError:
        lock.release(remove=True)
        remove_made(made)
        raise
    before = frozenset(names(wanted)) - {".hydra"}  # which is of a start that was killed: others are refused
    return Claim(wanted, lock, made=made, before=before)


def claim_own(folder: Path, *, patience: float = 0) -> Claim:
    """The claim of a run that continues in its folder.

    Args:
        folder: of the run.
        patience: seconds to wait for who works there.

    Raises:
        UserError: somebody does, or the folder cannot be written to.
    """
    lock = FolderLock(folder)
    if not lock.wait(patience):
        raise UserError(in_use(lock))
    return Claim(folder, lock)


def claim_inherited(folder: Path) -> Claim | None:
    """The part in the claim of the process that started this one; None: it made none on this folder."""
    lock = FolderLock(folder)
    if not lock.inherit():
        return None
    return Claim(folder, lock, before=frozenset(names(folder)), inherited=True)


def claim_again(folder: Path) -> Claim:
    """The claim of a job that the scheduler starts once more: on what its first start left, or on a new folder.

    Raises:
        UserError: as `claim_new` and `claim_own`.
    """
    if is_run(folder):
        return claim_own(folder, patience=STALE_SECONDS)  # of a machine that may have crashed
    return claim_new(folder)


def in_use(lock: FolderLock) -> str:
    """The sentence that refuses a folder in which somebody works."""
    host, process = lock.holder()
    return f"'{lock.path.parent}' is in use: process {process} on {host} trains there; wait for it, or end it"


def check_free(folder: Path, option: str = "hydra.run.dir") -> None:
    """Refuses a folder for a new run, without changing anything in it.

    Empty files, hidden ones and logs do not count: a shell makes some before a run starts.

    Raises:
        UserError: it is no folder, holds a run, or holds other files.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file: choose another {option}")
    if is_run(folder):
        raise UserError(
            f"'{folder}' holds a run already: resume='{folder}' continues it, a new one needs another {option}"
        )
    if held := [name for name in names(folder) if counts(folder / name)]:
        more = f" and {len(held) - 3} more" if len(held) > 3 else ""
        raise UserError(
            f"'{folder}' is not empty ({', '.join(held[:3])}{more}): choose a new or an empty folder as {option}"
        )


def is_run(folder: Path) -> bool:
    """Whether a run has begun in this folder."""
    if any((folder / name).exists() for name in RUN):
        return True
    return (folder / ".hydra").exists() and not is_lock(folder / LOCK)  # with our lock: a start that was killed


def is_lock(path: Path) -> bool:
    """Whether a file is a lock of ours: empty, or with the note of who held it."""
    try:
        text = path.read_bytes()[:300].decode()
    except (OSError, UnicodeDecodeError):
        return False
    words = text.split()
    return not words or (len(words) == 2 and words[1].isdecimal())


def counts(path: Path) -> bool:
    """Whether a file or folder is one that a new run must not be mixed with."""
    if path.name == LOCK:
        return not is_lock(path)
    if path.name.startswith(".") or path.suffix in LOGS:
        return False
    try:
        return not path.is_file() or path.stat().st_size > 0
    except OSError:
        return True


def names(folder: Path) -> list[str]:
    """What is in a folder, sorted.

    Raises:
        UserError: it cannot be looked into.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be read ({error.strerror}): choose another") from error


def make(folder: Path) -> tuple[Path, ...]:
    """Makes `folder`, and what lacks above it; returns what it made, outermost first.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be made; nothing is left of it.
    """
    made: list[Path] = []
    for _ in range(10):
        missing = [path for path in reversed(folder.parents) if not path.exists()]
        try:
            for path in missing:
                with contextlib.suppress(FileExistsError):  # another start has just made it
                    path.mkdir()
                    made.append(path)
            folder.mkdir()
            return (*made, folder)
        except FileNotFoundError:  # another start that was refused has just removed its own
            continue
        except OSError:
            remove_made(made)
            raise
    raise FileNotFoundError(2, "No such file or directory", str(folder))


def remove_made(made: list[Path] | tuple[Path, ...]) -> None:
    """Removes folders that are empty, outermost first given."""
    for path in reversed(made):
        try:
            path.rmdir()
        except OSError:
            return
