"""Runs that an older version trained are sampled, evaluated, compared and resumed as it did (tests/runs/kept.py)."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from . import kept
from .kept import NAMES

SHARES = ("precision", "recall", "density", "coverage", "memorised", "label_accuracy", "attributes")  # of 64 images
LEARNED = ("network_sha256", "network_accuracy")  # of a network that each machine trains on these data
GREY = 1 / 127.5                                  # a level of uint8, where images are in [-1, 1]


def expected(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], bool]:
    """What the older version made of a run, and whether this machine computes the same bits."""
    told, images = kept.expected(name)
    return told, images, told["machine"] == kept.machine()


@pytest.fixture
def copied(tmp_path: Path):
    """A run of the given name in a folder of the test's own: evaluating and resuming write into it."""
    return lambda name: Path(shutil.copytree(kept.FOLDER / name, tmp_path / name))


def assert_equal(now: Any, before: Any, where: str, *, exact: bool, rel: float = 1e-3) -> None:
    """All that was there is there, and equal: to the bit, or numbers nearly."""
    if isinstance(before, dict):
        for key, value in before.items():
            assert key in now, f"{where}.{key} is gone"
            if exact or key not in LEARNED:
                assert_equal(now[key], value, f"{where}.{key}", exact=exact, rel=rel)
    elif exact or not isinstance(before, float):
        assert now == before, where
    else:
        share = any(name in where for name in SHARES)
        assert math.isclose(now, before, rel_tol=rel, abs_tol=0.05 if share else 1e-4), (where, now, before)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_version_that_trained_it(name):
    _, images, same = expected(name)
    made = kept.images(kept.FOLDER / name, images.get("inputs", torch.empty(0)))
    assert made.keys() == images.keys() - {"inputs"}
    for which, now in made.items():
        before = images[which]
        assert now.dtype == before.dtype == torch.float32 and now.shape == before.shape
        assert not same or torch.equal(now, before), which
        assert (now - before).abs().max() <= 1e-4, which
        levels = [(x.clamp(-1, 1) / GREY).round() for x in (now, before)]
        assert (levels[0] - levels[1]).abs().max() <= 1, which
        assert before.std() > 0.01 and (before[0] - before[1]).abs().max() > 0.01     # a difference would show


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_version_that_trained_it(name, copied):
    told, _, same = expected(name)
    before, now = told["evaluation"], kept.evaluation(copied(name))
    learned = before["protocol"].get("a2b/fd_classifier", {}).get("network") == "classifier"
    if learned and not same:                      # another classifier has other distances
        before["scores"] = {key: value for key, value in before["scores"].items() if "classifier" not in key}
    assert len(before["scores"]) >= 3
    assert_equal(now, before, name, exact=same)


@pytest.mark.parametrize("score", kept.SCORES)
def test_all_are_compared_as_before(score):
    assert kept.compared(kept.FOLDER, score) == json.loads(kept.TABLE.read_text())[score]


@pytest.mark.parametrize("name", kept.RESUMED)
def test_training_goes_on_where_the_older_version_stopped(name, copied):
    told, images, same = expected(name)
    run = copied(name)
    lines = kept.resumed(run)
    assert lines[-1]["images"] == kept.IMAGES
    assert_equal(dict(enumerate(lines)), dict(enumerate(told["resumed"])), name, exact=same, rel=0.02)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["images"]) == ("finished", kept.IMAGES)
    (now,), (before,) = kept.images(run, torch.empty(0)).values(), images.values()
    assert not torch.equal(now, before)           # it has learned
