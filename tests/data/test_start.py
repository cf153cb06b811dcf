"""How a run starts on its data: what it says, and what it does without images held out."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from aigc.data.shapes import Shapes
from aigc.errors import UserError
from aigc.runs.summary import read_summary
from aigc.training.fit import fit
from aigc.wording import counted, cut
from tests.conftest import TINY, compose_train

SMALL = [*TINY["gan"], "budget.images=32", "callbacks.samples.n=4"]


def pictures(root: Path) -> Path:
    """Two classes, with a caption beside each picture, and a hidden file."""
    for name in ("cat10", "cat9"):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (20 * i, 90, 5)).save(root / name / f"{i}.png")
            (root / name / f"{i}.txt").write_text(f"a cat of kind {name[3:]}")
    (root / "._x.png").write_bytes(b"")
    return root


def test_a_run_says_what_it_found_and_needs_nothing_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = [f"data.path={pictures(tmp_path / 'pets')}", "data.validation=0", "data.test=0"]
    with caplog.at_level(logging.INFO, logger="aigc.training"):
        fit(compose_train(*SMALL, "data=image_folder", *data, "metrics=none", "condition=label"), tmp_path / "run")
    assert caplog.messages[:2] == [
        'data      20 images of 2 classes (cat9, cat10), 8 x 8 pixels, colour, captions such as "a cat of kind 10"; '
        "20 to train on",
        "left out  hidden files: 1 (._x.png)"]
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and summary["data"]["images"] == {"train": 20}
    assert (tmp_path / "run" / "samples" / "000000032.png").is_file()
    assert "| training images | 20, 8 x 8, 3 channels, 2 classes |" in (tmp_path / "run" / "README.md").read_text()


def test_what_needs_held_out_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.validation_images=1000 needs images held out for validation, and "
                                        r"data.validation=0: set metrics.validation_images=0"):
        fit(compose_train(*SMALL, "data.validation=0", "metrics=losses"), tmp_path / "run")


def test_scores_that_need_training_images_only_are_taken_without_held_out_ones(tmp_path: Path) -> None:
    metrics = ["metrics.num_samples=20", "metrics.second=null", "metrics.validation_images=0",
               "metrics.kd_subset_size=10"]
    fit(compose_train(*SMALL, "data.validation=0", "data.test=0", *metrics), tmp_path / "run")
    scores = read_summary(tmp_path / "run")["scores"]["last"]
    assert scores["fd_classifier"] > 0 and "fd_classifier_over_floor" not in scores


def test_labels_that_one_loose_picture_turns_off_are_explained(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pets")
    Image.new("RGB", (8, 8)).save(root / "loose.png")
    with pytest.raises(UserError, match=r"pets has none \(1 image in no class folder: loose\.png\): use condition"):
        fit(compose_train(*SMALL, "data=image_folder", f"data.path={root}", "condition=label"), tmp_path / "run")


def test_many_classes_are_named_as_far_as_a_line_holds_them() -> None:
    data = Shapes(batch_size=4, train=16, validation=8, test=8, heldout=4)
    names = "red circle, red square, ... 33 more"
    assert f" of 35 classes ({names}), 32 x 32 pixels, colour, " in data.found()[0]
    assert cut(list("0123456789"), 40) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert cut(["a" * 60, "b" * 60, "c"], 40) == f"{'a' * 60}, {'b' * 60}, ... 1 more"
    assert cut(["only"], 2) == "only" and cut([], 40) == "" and cut(["a", "b"], 1) == "a, b"


def test_the_default_run_says_nothing_of_scores_that_it_rules_out(tmp_path: Path, caplog) -> None:
    small = ["data.train=16", "data.validation=8", "data.test=8", "data.heldout=4", "data.size=16"]
    words = [word for word in TINY["gan"] if not word.startswith("data")]
    with caplog.at_level(logging.INFO):
        fit(compose_train(*words, "trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=4", "data=shapes",
                          *small, "budget.images=8", "~callbacks.samples", "metrics.num_samples=8",
                          "metrics.validation_images=0", "metrics.attribute_samples=0", "condition=none",
                          common=False), tmp_path / "run")
    assert not any("label_accuracy" in line for line in caplog.messages)
    assert read_summary(tmp_path / "run")["scores_missing"]["label_accuracy"] == "the images are made without labels"


def test_one_of_a_thing_is_singular() -> None:
    assert [counted(n, "file") for n in (0, 1, 2431)] == ["0 files", "1 file", "2,431 files"]
    assert [counted(n, "class") for n in (1, 2)] == ["1 class", "2 classes"]
    assert [counted(n, "job", "is", "are") for n in (0, 1, 2)] == ["0 jobs are", "1 job is", "2 jobs are"]
