"""What tests are kept apart from: the user's caches and accounts, inherited signals, and what a failed test started.

Takes effect when it is imported, before anything reads the environment: tests/conftest.py imports it first, and a
file of tests elsewhere has it by `python -m pytest -p tests.isolation`.
"""

import atexit
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME_VARIABLE = "AIGC_TEST_HOME"         # the folder of one session, shared by the workers of xdist
CHILD_VARIABLE = "AIGC_TEST_CHILD"       # set for what a test starts, which keeps the environment that it was given
MARK_VARIABLE = "AIGC_TEST_MARK"         # what is in the environment of every process that the tests start
GUARDED = ("AIGC_", "WANDB_", "HF_", "HYDRA_", "SLURM_", "TORCHELASTIC_", "OMPI_", "PMI_", "COLUMNS", "LINES")
ALONE = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
         "MASTER_ADDR", "MASTER_PORT")   # of a launcher's ranks; Lightning leaves some behind as well
HELPERS = ("resource_tracker", "forkserver", "wandb-core", "tests.forked")  # serve the test process, end with it
FOLDERS = {"AIGC_CACHE": "cache", "AIGC_DATA": "data", "HF_HOME": "huggingface", "TORCH_HOME": "torch",
           "MPLCONFIGDIR": "matplotlib", "XDG_CACHE_HOME": "xdg", "WANDB_DIR": "wandb", "WANDB_CACHE_DIR": "wandb",
           "WANDB_CONFIG_DIR": "wandb", "WANDB_DATA_DIR": "wandb", "NETRC": "netrc"}
SETTINGS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "offline",
            "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
TICKS = os.sysconf("SC_CLK_TCK")         # of /proc's start times, a second


def isolate() -> Path:
    """Gives this process, and all that it starts, an environment and signals of its own; returns its folder."""
    if CHILD_VARIABLE in os.environ:                          # one of two ranks, which imports what tests share
        return Path(os.environ[HOME_VARIABLE])
    worker, outer = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get(MARK_VARIABLE, "")
    home = os.environ.get(HOME_VARIABLE) if worker else None
    if home is None:
        home = tempfile.mkdtemp(prefix="aigc-tests-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in list(os.environ):
        if name.startswith(GUARDED) or name in ALONE:
            del os.environ[name]
    os.environ |= {name: str(Path(home, folder)) for name, folder in FOLDERS.items()} | SETTINGS
    for name in ("wandb", "matplotlib"):
        Path(home, name).mkdir(exist_ok=True)
    os.environ[HOME_VARIABLE] = home
    os.environ[MARK_VARIABLE] = f"{outer}/{worker or Path(home).name}"  # a session inside a test, or a worker of one
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's `make test &` has it ignored
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return Path(home)


HOME = isolate()


def started(mark: str, since: float = 0.0) -> list[int]:
    """The processes of that mark, or of one below it, that began `since` then, in seconds since boot.

    Linux shows them; elsewhere none are found.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            marks = [word.partition("=")[2] for word in told if word.startswith(f"{MARK_VARIABLE}=")]
            if not any(f"{own}/".startswith(f"{mark}/") for own in marks):
                continue
            # after the name in brackets: state, parent, ..., and 19 fields on the start time in ticks since boot
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue                                          # it has ended, or is another user's
        helps = int(fields[1]) == os.getpid() and any(name in command for name in HELPERS)
        if fields[0] != "Z" and int(folder.name) != os.getpid() and not helps and int(fields[19]) / TICKS >= since:
            found.append(int(folder.name))
    return found


def end(mark: str, since: float = 0.0) -> None:
    """Ends them by SIGKILL, and what they start meanwhile."""
    for _ in range(20):
        left = started(mark, since)
        if not left:
            return
        for number in left:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue


def now() -> float:
    """Seconds since boot, cut to ticks as the start times of processes are, or 0 elsewhere."""
    try:
        return float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return 0.0


class Ending:
    """Ends what a failed test started: of a failed call, not what its fixtures of a wider scope had."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.failed_since: float | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.failed_since = None
        result = yield
        if self.failed_since is not None:
            end(os.environ[MARK_VARIABLE], self.failed_since)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self.began["setup"] = now()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.began["call"] = self.began["teardown"] = now()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed_since is None:
            self.failed_since = self.began.get(report.when or "setup", 0.0)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """The last of it: after Ctrl-C, or where a worker was ended, tests clean nothing up."""
        end(os.environ[MARK_VARIABLE])


def pytest_configure(config: pytest.Config) -> None:
    """Adds what ends processes, once."""
    if not config.pluginmanager.has_plugin("aigc-ending"):
        config.pluginmanager.register(Ending(), "aigc-ending")

