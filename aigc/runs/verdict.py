"""Of processes that were started as the ranks of one run: that one was refused ends them all, with one sentence.

torchrun, srun or a shell start them; none is another's child, and most do not hear of it when one of them ends. So
whichever is refused leaves its exit code in the cache folder, under a name that belongs to this start.
"""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

VARIABLE = "AIGC_START"     # what the process that starts ranks by itself calls this start
PREFIX = ".refused-"
LOOK_SECONDS = 0.5          # between two looks
PATIENCE_SECONDS = 20       # that a rank waits for the first one to say what both have found
GRACE_SECONDS = 3           # from a refusal to the end of the others, where they do not end by themselves
FIRST_SECONDS = 30          # the same of the first rank, which may be writing what is to be kept
OLD_SECONDS = 86_400        # after which what earlier starts left behind goes

_path: Path | None = None   # of this start's file; None: this process is no rank
_rank = 0


def key() -> str:
    """A name for this start that all of its ranks come to, and no other start on purpose."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID",
             "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    said = os.environ.get(VARIABLE) or repr([os.environ.get(name) for name in names])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def follow(rank: int, folder: Path, end: Callable[[int], object]) -> None:
    """Has this process end soon after another rank of its start was refused, wherever it waits then.

    Args:
        rank: of this process.
        folder: that all ranks see.
        end: what is to be done, with the exit code, before this process is cut off.
    """
    global _path, _rank
    _path, _rank = folder / f"{PREFIX}{key()}", rank
    if rank == 0:
        now = time.time()
        for path in folder.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if path == _path or now - path.stat().st_mtime > OLD_SECONDS:     # of an earlier start by this name
                    path.unlink()

    def watch() -> None:
        time.sleep(0 if "SLURM_JOB_ID" in os.environ or VARIABLE in os.environ else 3)  # until rank 0 has looked, too
        while (found := read()) is None or found[0] == _rank:
            time.sleep(LOOK_SECONDS)
        time.sleep(GRACE_SECONDS if _rank else FIRST_SECONDS)
        end(found[1])
        os._exit(found[1])

    threading.Thread(target=watch, daemon=True).start()


def read() -> tuple[int, int] | None:
    """Which rank was refused, and its exit code; None: none was so far."""
    if _path is None:
        return None
    try:
        rank, code = _path.read_text().split()
        return int(rank), int(code)
    except (OSError, ValueError):
        return None


def wait(seconds: float = 5) -> int | None:
    """The exit code of another rank that was refused; None: none is within so many seconds, or there are no ranks."""
    deadline = time.monotonic() + seconds
    while _path is not None:
        found = read()
        if found is not None and found[0] != _rank:
            return found[1]
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return None


def give(code: int) -> tuple[int, bool]:
    """Tells the other ranks that this process is refused; its exit code, and whether to say why.

    The first rank speaks for all: another one waits for it, and speaks only where the first found nothing wrong.
    """
    if _path is None:
        return code, True
    if _rank and (known := wait(PATIENCE_SECONDS)) is not None:
        return known, False
    with contextlib.suppress(OSError):
        temporary = _path.with_name(f"{_path.name}.{_rank}")
        temporary.write_text(f"{_rank} {code}")
        try:
            os.link(temporary, _path)           # whole, and only if none is there
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    found = read()
    return (code, True) if found is None or found[0] == _rank else (found[1], False)
