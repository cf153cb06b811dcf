"""Which of several processes this is, and their turns at what they share."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def rank() -> int | None:
    """This process's rank under torchrun or srun; None for a single process."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_PROCID"])
    return None


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Lets the processes that torchrun or srun started together enter one at a time, if they share `folder`."""
    if rank() is None or not ("TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_RANK" not in os.environ):
        yield
        return
    from filelock import FileLock

    lock = FileLock(folder / ".turn")
    with contextlib.suppress(OSError, NotImplementedError):    # a file system without locks
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
