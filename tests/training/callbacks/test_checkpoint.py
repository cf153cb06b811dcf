"""The copy of a checkpoint that is called best: whole, or as it was."""

import os
import shutil

import pytest

from aigc.errors import RunError
from aigc.training.callbacks.checkpoint import copy


@pytest.mark.parametrize("links", [True, False])
def test_the_best_checkpoint_is_copied_whole_or_stays_as_it_was(links, tmp_path, monkeypatch):
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    last.write_bytes(b"new"), best.write_bytes(b"old")

    def refused(*_):
        raise OSError(1, "Operation not permitted")

    def full(source, target):
        target.write_bytes(b"n")
        raise OSError(28, "No space left on device")

    if not links:
        monkeypatch.setattr(os, "link", refused)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", full)
            with pytest.raises(RunError, match=r"best.ckpt could not be copied from last.ckpt \(No space left on "
                                               r"device\), the previous best.ckpt is intact: make room and resume"):
                copy(last, best)
        assert best.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    copy(last, best)
    assert best.read_bytes() == b"new" and os.path.samefile(last, best) == links and len(list(tmp_path.iterdir())) == 2
