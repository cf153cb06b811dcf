"""Tests neither see what the user's environment holds nor leave running what they started: pytest on a small file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aigc.files.cache import cache_folder

from . import isolation
from .conftest import environment

SMALL = """
import os, signal, subprocess, sys, time
from pathlib import Path

import pytest

CHILD = "import signal, time; print(signal.getsignal(2).__name__, flush=True); time.sleep(600)"
TREE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {CHILD!r}], start_new_session=True).wait()"


@pytest.fixture(scope="module")
def early():
    return dict(os.environ)


def begin(name):
    child = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "default_int_handler\\n"
    Path(os.environ["NOTES"], name).write_text(str(child.pid))
    return child


@pytest.fixture(scope="module")
def kept():
    child = begin("kept")
    yield child
    Path(os.environ["NOTES"], "outlived").write_text(str(child.poll()))


def test_environment(early):
    for name in ("AIGC_CACHE", "HF_HOME", "WANDB_DIR", "MPLCONFIGDIR", "TORCH_HOME"):
        assert early[name].startswith(early["AIGC_TEST_HOME"]), name
    assert not {"RANK", "WANDB_API_KEY", "SLURM_JOB_ID", "AIGC_ALLOW_TARGETS"} & set(early)
    assert early["OMP_NUM_THREADS"] == "1"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_failing(kept):
    begin("failing")
    assert False


def test_after(kept):
    assert kept.poll() is None
    begin("waiting")
    time.sleep(600) if os.environ["WAIT"] == "yes" else None
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows what a test started")
@pytest.mark.parametrize("wait", ["yes", "no"])
def test_a_session_keeps_apart_and_leaves_nothing_running(wait, tmp_path):
    (tmp_path / "test_small.py").write_text(SMALL)
    foreign = {"AIGC_CACHE": str(tmp_path / "users"), "WANDB_API_KEY": "secret", "RANK": "1", "WORLD_SIZE": "2",
               "SLURM_JOB_ID": "7", "AIGC_ALLOW_TARGETS": "os", "HF_HOME": "/nowhere", "OMP_NUM_THREADS": "8"}
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= foreign | {"PYTHONPATH": str(Path(__file__).parents[1]), "NOTES": str(tmp_path), "WAIT": wait}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.isolation", "test_small.py"]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]   # as a script's `make test &` has it
    with (tmp_path / "out.txt").open("w") as out:
        session = subprocess.Popen(ignoring, cwd=tmp_path, env=env, stdout=out, stderr=subprocess.STDOUT)
        if wait == "yes":
            deadline = time.monotonic() + 60
            while not (tmp_path / "waiting").exists() and session.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            running = isolation.started(os.environ[isolation.MARK_VARIABLE])
            assert len(running) == 5                        # pytest itself, what is kept and what waits
            session.send_signal(signal.SIGINT)
        code = session.wait(timeout=60)
    said = (tmp_path / "out.txt").read_text()
    assert (code, "1 failed" in said) == (2 if wait == "yes" else 1, True), said
    assert ("KeyboardInterrupt" in said) == (wait == "yes") and ("2 passed" in said) == (wait == "no"), said
    assert (tmp_path / "outlived").read_text() == "None"    # a failed test does not end what other tests use
    assert (tmp_path / "waiting").exists() and isolation.started(os.environ[isolation.MARK_VARIABLE]) == []


def test_the_users_cache_is_neither_read_nor_written():
    assert cache_folder().is_relative_to(isolation.HOME) and Path(os.environ["HF_HOME"]).is_relative_to(isolation.HOME)


def test_what_a_test_starts_keeps_what_it_was_given():
    told = environment(MASTER_PORT="1234", AIGC_ALLOW_TARGETS="tests")
    shown = "import os, tests.isolation as own; print(own.HOME, os.environ['MASTER_PORT'], os.environ['AIGC_CACHE'])"
    done = subprocess.run([sys.executable, "-c", shown], env=told, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(isolation.HOME), "1234", os.environ["AIGC_CACHE"]]
