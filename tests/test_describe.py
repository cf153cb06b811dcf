"""Pictures in, words out, by a family that writes: a line a picture, questions, broken files, what does not fit."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.describe import describe
from aigc.errors import RunError, UserError
from aigc.models.capabilities import models_that_can

from .models.test_dalle import WORDS, tiny
from .translators import Negative, save


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")


@pytest.fixture
def run(tmp_path) -> Path:
    save(tiny(), tmp_path / "run" / "checkpoints" / "last.ckpt")
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five pictures of several sizes, one in a folder of its own."""
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    for k, name in enumerate(("0.png", "1.png", "2.png", "3.png", "inner/4.png")):
        noise = np.random.default_rng(k).integers(0, 256, (8 + 4 * k, 8 + k, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def said(**options) -> dict[str, str]:
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        describe(compose("describe", overrides=[f"{name}={value}" for name, value in options.items()]))
    with open(options["out"] / "described.csv", newline="", encoding="utf-8") as file:
        (head, *rows) = csv.reader(file)
    assert head == ["picture", "text"]
    return {path.split("photos/")[1]: text for path, text in rows}


def test_a_line_for_each_picture_in_order_whatever_the_batch(run, photos, tmp_path, capsys):
    found = said(run=run, images=photos, out=tmp_path / "a", temperature=1)
    assert list(found) == ["0.png", "1.png", "2.png", "3.png", "inner/4.png"]
    assert set(" ".join(found.values()).split()) <= set(WORDS[1:]) and len(set(found.values())) > 1
    printed = capsys.readouterr().out
    assert all(f"{photos / name}: {text}" in printed for name, text in found.items())
    assert found == said(run=run, images=photos, out=tmp_path / "b", temperature=1, batch_size=2)
    assert found != said(run=run, images=photos, out=tmp_path / "c", temperature=1, seed=1)
    assert said(run=run, images=photos, out=tmp_path / "d") == said(run=run, images=photos, out=tmp_path / "e", seed=1)


def test_a_question_begins_the_sentence_and_unknown_words_are_told(run, photos, tmp_path, capsys):
    found = said(run=run, images=photos, out=tmp_path / "a", question="'A dark, mauve'")
    assert all(text.startswith("A dark, mauve") for text in found.values())
    assert "not in the training captions, so meaningless to the model: mauve" in capsys.readouterr().err


def test_a_broken_picture_costs_no_other(run, photos, tmp_path):
    (photos / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")
    with pytest.raises(RunError, match=r"1 of the pictures could not be read, the others are described: .*1\.png"):
        said(run=run, images=photos, out=tmp_path / "a", batch_size=3)
    with open(tmp_path / "a" / "described.csv", encoding="utf-8") as file:
        assert [line.split(",")[0].split("photos/")[1] for line in list(file)[1:]] == [
            "0.png", "2.png", "3.png", "inner/4.png"]


def test_mistakes_are_one_sentence_and_leave_nothing(run, photos, tmp_path):
    save(Negative(3), tmp_path / "other" / "checkpoints" / "last.ckpt")
    for folder, more, sentence in (
        (tmp_path / "other", {}, "holds a Negative, which turns images into images: describe needs a run of clip or "
                                 "dalle"),
        (run, {"temperature": -1}, "temperature=-1.0 is below 0"), (run, {"batch_size": 0}, "batch_size=0 must be"),
        (run, {"candidates": "[a,b]"}, "a DALLE describes pictures in words of its own: leave candidates out"),
        (run, {"images": "nowhere"}, "images='nowhere' does not exist"),
    ):
        with pytest.raises(UserError) as caught:
            said(**{"run": folder, "images": photos, "out": tmp_path / "out", **more})
        assert sentence in str(caught.value) and not (tmp_path / "out").exists()
    assert models_that_can("describe") == ["dalle"]
