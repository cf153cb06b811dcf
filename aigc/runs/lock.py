"""The lock of a folder, which ends with the processes that hold it, and a note of who they are."""

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
VARIABLE = "AIGC_LOCK"       # descriptor of the lock that a parent process passes to a job or rank
STALE_SECONDS = 150          # a file server releases a crashed machine's locks after its lease, usually 90 s

_held: set[int] = set()      # descriptors that a forked process (a data worker) must not keep open


def _let_go() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """`<folder>/.lock`, held by one process and by the children that inherit `descriptor`.

    The kernel releases it when the last of them ends for any reason, so nothing needs cleaning up after a SIGKILL.
    Over NFS the server holds it, for all machines that mount the folder with locks (not `nolock`). On a file system
    without locks, the note in the file decides: it keeps out processes of the same machine.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Takes the lock unless another process holds it; returns whether it did.

        Raises:
            UserError: the file cannot be written.
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
                os.close(descriptor)  # the previous holder has removed the file meanwhile
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
        """Whether `descriptor` refers to the file that is now at `path`."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except OSError:
            return False

    def wait(self, seconds: float) -> bool:
        """Takes the lock as soon as it is free; returns whether it was within `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def take_over(self, seconds: float) -> None:
        """Takes the lock from a process that an earlier start left on this machine, which is asked to save and end.

        Raises:
            UserError: it is still held after `seconds`.
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
        """Shares the lock if the parent process holds it and has passed it on; returns whether it does."""
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
        """Notes the holder: `process` on this machine."""
        assert self.descriptor is not None
        text = f"{socket.gethostname()} {process}\n".encode()
        os.pwrite(self.descriptor, text, 0)
        os.ftruncate(self.descriptor, len(text))

    def holder(self) -> tuple[str, int]:
        """Machine and process that hold the lock, according to the note; `("another machine", 0)` without one."""
        try:
            host, process = self.path.read_text().split()
            return host, int(process)
        except (OSError, ValueError):
            return "another machine", 0

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock, unless a child still holds it; `remove` deletes the file first, if it is still ours."""
        if self.descriptor is None:
            return
        if remove and self._is(self.descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink()
        _held.discard(self.descriptor)
        os.close(self.descriptor)
        self.descriptor = None


def is_alive(process: int) -> bool:
    """Whether a process with this id runs on this machine."""
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Inside, no other process inspects `folder` and adds to it; leaves nothing behind."""
    lock = FolderLock(folder)
    lock.wait(STALE_SECONDS)  # then continues anyway: the work inside takes moments
    try:
        yield
    finally:
        lock.release(remove=True)
