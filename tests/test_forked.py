"""A forked process is what `python -m` would be: its environment, folder, words, output, exit code and signals."""

import os
import signal
import subprocess
import sys
import time

import pytest

from . import forked, isolation
from .conftest import environment

MODULE = """
import os, sys, time

print(os.environ.get("NOTE"), os.getcwd(), sys.argv[1:], sys.path[0], "aigc" in sys.modules, flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
elif sys.argv[1] == "fail":
    1 / 0
sys.exit({"one": 1, "none": None, "words": "words"}[sys.argv[1]])
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    where = {"env": environment(NOTE="a note"), "cwd": tmp_path}
    return lambda *words: ([sys.executable, "-m", "mine", *words], where)


def test_words_environment_folder_output_and_exit_code_are_its_own(command, tmp_path):
    for word, code, said in (("one", 1, ""), ("none", 0, ""), ("words", 1, "words\n")):
        asked, where = command(word, "two words")
        done, real = forked.run(asked, **where), subprocess.run(asked, **where, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (real.returncode, real.stdout, real.stderr)
        assert (done.returncode, done.stderr) == (code, said)
        assert done.stdout == f"a note {tmp_path} ['{word}', 'two words'] {tmp_path} False\n"
    asked, where = command("fail")
    done = forked.run(asked, **where)
    assert done.returncode == 1 and done.stderr.startswith("Traceback") and done.stderr.endswith(" by zero\n")
    assert os.environ.get("NOTE") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_can_be_waited_for_signalled_and_is_ended_with_what_a_test_started(command, number):
    asked, where = command("wait")
    started = forked.Forked(asked, **where)
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(timeout=0.1)
    assert started.poll() is None and started.pid in isolation.started(os.environ[isolation.MARK_VARIABLE])
    os.kill(started.pid, number)
    assert started.wait(timeout=20) == started.poll() == -number
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(asked, **where, timeout=0.1)
    deadline = time.monotonic() + 20
    while isolation.started(os.environ[isolation.MARK_VARIABLE]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert isolation.started(os.environ[isolation.MARK_VARIABLE]) == []     # but for what forks, which goes on
    assert forked.run(command("none")[0], **where).returncode == 0
