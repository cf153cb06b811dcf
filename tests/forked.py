"""Programs in processes of their own, forked from one that has imported torch: that import takes most of a short test.

`Forked` and `run` stand in for `subprocess.Popen` and `subprocess.run` of `python -m <module> <words>`: environment,
folder, output, signals and exit code are the process's own, and our modules are imported anew. Packages of others are
not: a test of what is imported, or of what those packages do as they are or as Python ends, starts Python itself.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import isolation

IMPORTED = ("torch", "lightning", "torchmetrics", "hydra", "pydantic", "PIL.Image")
NUMBER = struct.Struct("i")
_source: tuple[subprocess.Popen[bytes], socket.socket] | None = None  # where they are forked, and how it is asked


class Forked:
    """`python -m <module> <words>` as `subprocess.Popen` would start it, its output read at the end."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: str | Path = ".") -> None:
        assert list(command[:2]) == [sys.executable, "-m"], command
        self.args, self.returncode = list(command), None
        self.printed = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115  # stdout, stderr: read late
        self.status, told = os.pipe()
        asked = json.dumps({"module": command[2], "words": command[3:], "env": dict(env), "cwd": str(cwd)}).encode()
        asking = source()
        socket.send_fds(asking, [NUMBER.pack(len(asked))], [*(file.fileno() for file in self.printed), told])
        asking.sendall(asked)
        os.close(told)
        (self.pid,) = NUMBER.unpack(os.read(self.status, NUMBER.size))

    def poll(self) -> int | None:
        """The exit code, negative for the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self.status], [], [], 0)[0]:
            told = os.read(self.status, NUMBER.size)
            os.close(self.status)
            self.returncode = NUMBER.unpack(told)[0] if told else -signal.SIGKILL  # with what waits for it
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self.status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.poll()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed on stdout and stderr, when it has ended."""
        self.wait(timeout)
        out, err = (os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in self.printed)
        return out, err

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def run(command: Sequence[str], *, env: Mapping[str, str], cwd: str | Path = ".",
        timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    started = Forked(command, env=env, cwd=cwd)
    try:
        out, err = started.communicate(timeout)
    finally:
        started.kill()
    return subprocess.CompletedProcess(started.args, started.wait(), out, err)


def source() -> socket.socket:
    """The way to the process that forks; it is started first, and ends with this one."""
    global _source
    if _source is None or _source[0].poll() is not None:
        ours, theirs = socket.socketpair()
        root = Path(__file__).resolve().parents[1]
        process = subprocess.Popen([sys.executable, "-m", "tests.forked", str(theirs.fileno())], cwd=root,
                                   env={**os.environ, isolation.CHILD_VARIABLE: "yes", "PYTHONPATH": str(root)},
                                   pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        theirs.close()
        _source = process, ours
    return _source[1]


# ---- in the process that forks ----


def serve(asking: socket.socket) -> dict[str, Any]:
    """Forks a process for each request, until nobody can ask any more; in that process, returns the request.

    Its parent is a process that waits for it, and says its number and then its exit code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)                  # Ctrl-C is for the tests
    while True:
        length, descriptors, *_ = socket.recv_fds(asking, NUMBER.size, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:                  # those that have waited to the end
                pass
        if not length:
            sys.exit()
        asked = json.loads(asking.recv(NUMBER.unpack(length)[0], socket.MSG_WAITALL))
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    asking.close()
    *printed, status = descriptors
    if child := os.fork():
        os.write(status, NUMBER.pack(child))
        os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, number in zip(printed, (1, 2), strict=True):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    return asked


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()                                                   # what is shared is not copied to be counted
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.path[0] = os.getcwd()
    sys.argv = ["-m", *asked["words"]]
    end_with(asked["module"])


def end_with(module: str) -> None:
    """Runs a module and ends this process as Python would, but for freeing what it shares, which copies it first."""
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code or 0
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()                                         # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
