"""Who works in a folder: a lock that ends with the processes that hold it, and the note of who they are."""

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from aigc.errors import UserError

NAME = ".lock"
VARIABLE = "AIGC_LOCK"       # the descriptor of the lock that a job or a rank is given by the process that starts it
STALE_SECONDS = 150          # a file server frees the locks of a machine that crashed after its lease, 90 s as a rule

_held: set[int] = set()      # descriptors that a forked process (a worker that loads data) must not keep open


def _let_go() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """`<folder>/.lock`, held by one process and by the children that are given `descriptor`.

    The kernel frees it when the last of them has ended, however that came about; nothing has to be cleaned up after a
    SIGKILL. Over NFS the server keeps it, for all machines that mount the folder with locks (not `nolock`). Where a
    file system knows no locks, the note in the file decides: it keeps out processes of the same machine.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Takes the lock unless somebody holds it.

        Raises:
            UserError: the folder does not take the file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
                if not self._locked(descriptor):
                    os.close(descriptor)
                    return False
                if self._is(descriptor):
                    break
                os.close(descriptor)  # whoever held it has removed the file meanwhile
            self.descriptor = descriptor
            _held.add(descriptor)
            self.note(os.getpid())
        except OSError as error:
            self.release()
            raise UserError(
                f"the folder '{self.path.parent}' cannot be written to ({error.strerror}): make room there, or choose "
                "another"
            ) from error
        return True

    def _locked(self, descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            host, process = self.holder()
            return host != socket.gethostname() or process == os.getpid() or not is_alive(process)
        return True

    def _is(self, descriptor: int) -> bool:
        """Whether `descriptor` is of the file that stands at `path` now."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except OSError:
            return False

    def wait(self, seconds: float) -> bool:
        """Takes the lock as soon as it is free; whether it was within so many `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
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
        if not self.wait(seconds):
            raise UserError(f"'{self.path.parent}' is in use by process {process} on {host}: wait for it, or end it")

    def inherit(self) -> bool:
        """Takes part in the lock if the process that started this one holds it and has handed it on."""
        try:
            descriptor = int(os.environ.get(VARIABLE, ""))
            if not self._is(descriptor):
                return False
            os.set_inheritable(descriptor, False)
        except (ValueError, OSError):
            return False
        self.descriptor = descriptor
        _held.add(descriptor)
        return True

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

    def release(self, *, remove: bool = False) -> None:
        """Gives it back, unless a child holds it still; `remove` takes the file away first, if it is still the one."""
        if self.descriptor is None:
            return
        if remove and self._is(self.descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink()
        _held.discard(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = None


def is_alive(process: int) -> bool:
    """Whether there is such a process on this machine."""
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Inside, this process is the only one that looks what is in `folder` and adds to it; leaves nothing behind."""
    lock = FolderLock(folder)
    lock.wait(STALE_SECONDS)  # and then goes on all the same: this is a matter of moments
    try:
        yield
    finally:
        lock.release(remove=True)
