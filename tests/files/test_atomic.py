"""A file is whole or not there, whoever writes and whatever interrupts."""

import os
import stat

import pytest

from aigc.files import atomic


@pytest.mark.parametrize("content", ["ä b\n", "ä b\n".encode(), lambda file: file.write("ä b\n".encode())])
@pytest.mark.parametrize("options", [{}, {"sync": True}, {"shared": True}])
def test_text_bytes_and_what_a_function_writes(content, options, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    mode = stat.S_IMODE(path.stat().st_mode)
    assert atomic.write(path, content, **options) == path
    assert path.read_bytes() == "ä b\n".encode() and stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_interruption_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def interrupted(file):
        file.write(b"half")
        raise KeyboardInterrupt

    for options in ({}, {"shared": True}):
        with pytest.raises(KeyboardInterrupt):
            atomic.write(path, interrupted, **options)
        assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.txt"]


def test_the_disk_has_the_content_before_the_name_does(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("sync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("name"), replace(*names)))
    atomic.write(tmp_path / "a", b"x", sync=True)
    assert done == ["sync", "name"]


def test_what_many_write_at_once_has_a_temporary_name_for_each(tmp_path):
    with atomic.replacing(tmp_path / "a", shared=True) as one, atomic.replacing(tmp_path / "a", shared=True) as two:
        assert one != two and one.parent == tmp_path
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a").read_text() == "one" and os.listdir(tmp_path) == ["a"]     # the last one to end
