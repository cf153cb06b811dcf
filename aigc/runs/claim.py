"""Claims of folders: a new run gets a new or empty one, a resumed run its own, and one process works in each.

A start remembers what it creates, and removes only that if it is refused: earlier files are never touched.
"""

import contextlib
import shutil
from pathlib import Path

from aigc.errors import UserError
from aigc.runs.lock import NAME as LOCK
from aigc.runs.lock import STALE_SECONDS, FolderLock

RUN = ("summary.json", "checkpoints", "metrics.jsonl")      # what identifies a run folder
LOGS = (".log", ".out", ".err")                             # files to which a shell or a scheduler redirects output
MADE = {  # created by a start before its first step, with their files; None: any files (W&B's)
    ".hydra": ("config.yaml", "hydra.yaml", "overrides.yaml"), "samples": ("*.png",), "wandb": None,
    "summary.json": (),
}


class Claim:
    """A folder that this process works in.

    Args:
        folder: its path.
        lock: held by this process or shared with it.
        made: the folders that this start created, outermost first.
        before: what was in the folder before; None: the folder of a resumed run, from which nothing is removed.
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
        """Removes what this start created, unless it has trained."""
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
        """Ends the work in the folder; removes folders that this start created and left empty."""
        self.lock.release(remove=not self.inherited)
        remove_made(self.made)


def claim_new(folder: Path, *, suffix: bool = False, option: str = "hydra.run.dir") -> Claim:
    """The claim of a new run on `folder`, which is created, or exists and holds nothing that counts.

    Args:
        folder: its path.
        suffix: if it exists, use `<folder>_2`, `_3`, ... instead.
        option: the option that names the folder.

    Raises:
        UserError: it holds a run or other files, is in use, or cannot be created or written to.
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
            check_free(wanted, option)  # again: another process may have come and gone
    except UserError:
        lock.release(remove=True)
        remove_made(made)
        raise
    before = frozenset(names(wanted)) - {".hydra"}  # left by a killed start: others are refused
    return Claim(wanted, lock, made=made, before=before)


def claim_own(folder: Path, *, patience: float = 0) -> Claim:
    """The claim of a run that continues in its folder.

    Args:
        folder: of the run.
        patience: seconds to wait for a process that works there.

    Raises:
        UserError: another process works there, or the folder cannot be written to.
    """
    lock = FolderLock(folder)
    if not lock.wait(patience):
        raise UserError(in_use(lock))
    return Claim(folder, lock)


def claim_inherited(folder: Path) -> Claim | None:
    """A share in the parent process's claim on this folder; None if it has none."""
    lock = FolderLock(folder)
    if not lock.inherit():
        return None
    return Claim(folder, lock, before=frozenset(names(folder)), inherited=True)


def claim_again(folder: Path) -> Claim:
    """The claim of a job that the scheduler restarts: on the folder of its first start, or on a new one.

    Raises:
        UserError: as `claim_new` and `claim_own`.
    """
    if is_run(folder):
        return claim_own(folder, patience=STALE_SECONDS)  # of a machine that may have crashed
    return claim_new(folder)


def in_use(lock: FolderLock) -> str:
    """The message that refuses a folder in use."""
    host, process = lock.holder()
    return f"'{lock.path.parent}' is in use: process {process} on {host} trains there; wait for it, or end it"


def check_free(folder: Path, option: str = "hydra.run.dir") -> None:
    """Refuses a folder for a new run, without changing anything in it.

    Empty files, hidden ones and logs do not count: a shell creates some before a run starts.

    Raises:
        UserError: it is not a folder, holds a run, or holds other files.
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
    return (folder / ".hydra").exists() and not is_lock(folder / LOCK)  # with our lock: a killed start


def is_lock(path: Path) -> bool:
    """Whether a file is one of our locks: empty, or with a note of its holder."""
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
    """The names in a folder, sorted.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"the folder '{folder}' cannot be read ({error.strerror}): choose another") from error


def make(folder: Path) -> tuple[Path, ...]:
    """Creates `folder` and its missing parents; returns what it created, outermost first.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be created; nothing is left of it.
    """
    made: list[Path] = []
    for _ in range(10):
        missing = [path for path in reversed(folder.parents) if not path.exists()]
        try:
            for path in missing:
                with contextlib.suppress(FileExistsError):  # another start has just created it
                    path.mkdir()
                    made.append(path)
            folder.mkdir()
            return (*made, folder)
        except FileNotFoundError:  # another refused start has just removed it
            continue
        except OSError:
            remove_made(made)
            raise
    raise FileNotFoundError(2, "No such file or directory", str(folder))


def remove_made(made: list[Path] | tuple[Path, ...]) -> None:
    """Removes those of the folders, given outermost first, that are empty."""
    for path in reversed(made):
        try:
            path.rmdir()
        except OSError:
            return
