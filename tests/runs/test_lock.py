"""The lock of a folder: one holder, freed by the kernel, shared by those it is handed to."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading

import pytest

from aigc.errors import UserError
from aigc.runs.lock import VARIABLE, FolderLock, turn

from ..conftest import environment

HOLD = """
import sys, time
from pathlib import Path
from aigc.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print(lock.inherit() if "inherit" in sys.argv else lock.take(), flush=True)
time.sleep(60)
"""


def start(folder, *words, **more):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *words], stdout=subprocess.PIPE, text=True,
                             **{"env": environment(), **more})
    return child, child.stdout.readline().strip()


def test_a_killed_process_frees_its_lock_and_its_note_said_who_held_it(tmp_path):
    child, said = start(tmp_path)
    lock = FolderLock(tmp_path)
    assert said == "True" and not lock.take()
    assert lock.holder() == (socket.gethostname(), child.pid)
    child.kill()
    child.wait()
    assert lock.take() and lock.holder() == (socket.gethostname(), os.getpid())
    lock.release()
    assert lock.path.is_file()                             # a note that stays; `remove` takes it away
    assert lock.take()
    lock.release(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_child_takes_part_only_in_the_lock_that_it_is_handed(tmp_path):
    lock, other = FolderLock(tmp_path / "a"), FolderLock(tmp_path / "b")
    assert lock.take() and other.take()
    told = environment(**{VARIABLE: str(lock.descriptor)})
    handed = {"env": told, "pass_fds": (lock.descriptor, other.descriptor)}
    child, said = start(tmp_path / "a", "inherit", **handed)
    stranger, denied = start(tmp_path / "b", "inherit", **handed)
    unheard, nothing = start(tmp_path / "a", "inherit", env=told)     # the variable alone, as a grandchild may see it
    assert (said, denied, nothing) == ("True", "False", "False")
    lock.release()
    assert not FolderLock(tmp_path / "a").take()                      # the child holds it still
    for one in (child, stranger, unheard):
        one.kill()
        one.wait()
    assert FolderLock(tmp_path / "a").take()


def test_a_forked_worker_does_not_keep_the_lock_of_a_process_that_was_killed(tmp_path):
    fork = "import os\nif os.fork() == 0:\n    print('fork', flush=True)\ntime.sleep(60)"
    forks = HOLD.replace("time.sleep(60)", fork)
    child = subprocess.Popen([sys.executable, "-c", forks, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                             env=environment(), start_new_session=True)
    assert [child.stdout.readline().strip() for _ in range(2)] == ["True", "fork"]
    assert not FolderLock(tmp_path).take()
    child.kill()
    child.wait()
    try:
        assert FolderLock(tmp_path).take()
    finally:
        os.killpg(child.pid, 9)                            # the worker, which sleeps still


def test_a_lock_whose_file_was_removed_meanwhile_is_not_taken_for_the_one_that_is_there(tmp_path, monkeypatch):
    first = FolderLock(tmp_path)
    assert first.take()
    flock, seen = fcntl.flock, []

    def removed_in_between(descriptor, how):
        if not seen:
            seen.append(descriptor)
            first.release(remove=True)                     # after the second has opened it, before it locks it
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_in_between)
    second, third = FolderLock(tmp_path), FolderLock(tmp_path)
    assert second.take() and seen
    assert second.path.is_file() and not third.take()


def test_where_a_file_system_knows_no_locks_the_note_keeps_processes_of_this_machine_out(tmp_path, monkeypatch):
    def no_locks(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    lock = FolderLock(tmp_path)
    lock.path.write_text(f"{socket.gethostname()} {os.getppid()}\n")
    assert not lock.take()
    lock.path.write_text("elsewhere 1\n")                  # nobody can be asked
    assert lock.take()
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock.release()
    lock.path.write_text(f"{socket.gethostname()} {ended.pid}\n")
    assert lock.take()


def test_a_folder_that_takes_no_lock_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the folder '.*file/run' cannot be written to \(Not a directory\)"):
        FolderLock(tmp_path / "file" / "run").take()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".lock").symlink_to("victim")
    with pytest.raises(UserError, match="cannot be written to"):
        FolderLock(tmp_path).take()
    assert (tmp_path / "victim").read_text() == "precious"


def test_turns_exclude_each_other_and_leave_nothing(tmp_path):
    inside, most = [], []

    def go():
        for _ in range(5):
            with turn(tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20 and list(tmp_path.iterdir()) == []
