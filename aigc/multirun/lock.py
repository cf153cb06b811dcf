"""Who works in a folder: a lock that ends with the processes that hold it, and the note of who they are."""

import contextlib
import fcntl
import os
import signal
import socket
import time
from pathlib import Path

from aigc.errors import UserError


class FolderLock:
    """`<folder>/.lock`, held by one process and by the children that are given `descriptor`.

    The kernel frees it when the last of them has ended, however that came about; nothing has to be cleaned up after a
    SIGKILL. Where a file system knows no locks, everybody gets one.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Takes the lock unless somebody holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # a file system without locks
            pass
        self.descriptor = descriptor
        self.note(os.getpid())
        return True

    def take_over(self, seconds: float) -> None:
        """Takes the lock from what an earlier start left behind on this machine, which is asked to save and end.

        Raises:
            UserError: it is still held after so many `seconds`.
        """
        if self.take():
            return
        host, process = self.holder()
        if host == socket.gethostname():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() > deadline:
                raise UserError(
                    f"'{self.path.parent}' is in use by process {process} on {host}: wait for it, or end it"
                )
            time.sleep(0.1)

    def note(self, process: int) -> None:
        """Writes down whom to ask: `process` on this machine."""
        assert self.descriptor is not None
        text = f"{socket.gethostname()} {process}\n".encode()
        os.pwrite(self.descriptor, text, 0)
        os.ftruncate(self.descriptor, len(text))

    def holder(self) -> tuple[str, int]:
        """Machine and process that hold the lock, by their own note; `("another machine", 0)` without one."""
        try:
            host, process = self.path.read_text().split()
            return host, int(process)
        except (OSError, ValueError):
            return "another machine", 0

    def release(self) -> None:
        """Gives it back, unless a child holds it still."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
