"""The tasks over codes: completion keeps what is given, variations change a share; by DALL-E and by a prior."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.edit import edit
from aigc.editing.complete import complete
from aigc.editing.vary import vary
from aigc.errors import UserError
from aigc.models.capabilities import models_that_can

from .models import test_dalle, test_prior
from .translators import Negative, save


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")


FAMILIES = {"dalle": lambda: test_dalle.tiny(), "causal": lambda: test_prior.tiny("label"),
            "masked": lambda: test_prior.tiny("text", order="masked")}


def pictures(n=6, side=8):
    return test_dalle.batch_of(n, (side, side))["image"]


def codes_of(family, images):
    return family.tokenizer.tokenize(images).view(-1, 4, 4)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("keep", "rows"), [(0.5, 2), (0.3, 1), (0.0, 0), (1.0, 4)])
def test_completion_keeps_the_codes_and_the_pixels_of_the_upper_part(name, keep, rows):
    family, images = FAMILIES[name](), pictures()
    made = complete(family, images, None, range(6), keep=keep, paste=False)
    before, after = codes_of(family, images), codes_of(family, made)
    assert torch.equal(before[:, :rows], after[:, :rows]) and torch.equal(before, after) == (rows == 4)
    pasted = complete(family, images, None, range(6), keep=keep)
    assert torch.equal(pasted[:, :, : 2 * rows], images[:, :, : 2 * rows])
    assert torch.equal(pasted[:, :, 2 * rows :], made[:, :, 2 * rows :])
    large = pictures(2, 40)
    assert torch.equal(complete(family, large, None, [1, 2], keep=keep)[:, :, : 10 * rows], large[:, :, : 10 * rows])


@pytest.mark.parametrize("name", FAMILIES)
def test_variations_change_a_share_of_the_codes_by_the_pictures_own_seed(name):
    family, images = FAMILIES[name](), pictures()
    before = codes_of(family, images)
    made = vary(family, images, None, range(6), strength=0.25)
    changed = (codes_of(family, made) != before).flatten(1).sum(1)
    assert int(changed.max()) <= 4 and int(changed.sum()) > 6
    assert torch.equal(codes_of(family, vary(family, images, None, range(6), strength=0.0)), before)
    assert torch.equal(vary(family, images[2:3], None, [2], strength=0.25)[0], made[2])
    twice = vary(family, images[:1].expand(2, -1, -1, -1), None, [7, 8], strength=0.75)
    assert not torch.equal(twice[0], twice[1])
    assert (codes_of(family, vary(family, images, None, range(6), strength=1.0)) != before).any((1, 2)).all()


def test_what_is_said_of_the_pictures_counts_and_nothing_is_no_condition():
    family, images = FAMILIES["dalle"](), pictures()
    nothing = complete(family, images, None, range(6))
    assert torch.equal(nothing, complete(family, images, None, range(6), text=""))
    assert not torch.equal(nothing, complete(family, images, None, range(6), text="a dark picture"))
    family = FAMILIES["causal"]()
    asked = [complete(family, images, None, range(6), label=label, guidance=4.0) for label in (0, 1)]
    assert not torch.equal(*asked)
    assert torch.equal(complete(family, images, None, range(6)),
                       complete(family, images, None, range(6), label=2, guidance=0.0))


def run_edit(**options) -> None:
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        edit(compose("edit", overrides=[f"{name}={value}" for name, value in options.items()]))


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    for k in range(2):
        noise = np.random.default_rng(k).integers(0, 256, (16, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{k}.png")
    return tmp_path / "photos"


def test_both_are_tasks_of_edit(photos, tmp_path):
    save(FAMILIES["dalle"](), tmp_path / "run" / "checkpoints" / "last.ckpt")
    run_edit(task="complete", run=tmp_path / "run", images=photos, out=tmp_path / "a", **{"task.text": "'a dark'"})
    run_edit(task="vary", run=tmp_path / "run", images=photos, out=tmp_path / "b", **{"task.options": "{top_k: 3}"})
    for name in ("0.png", "1.png"):
        grey = np.asarray(Image.open(photos / name).convert("L"))
        made = Image.open(tmp_path / "a" / name)
        assert (made.mode, made.size) == ("L", (24, 16)) and np.array_equal(np.asarray(made)[:8], grey[:8])
        assert not np.array_equal(np.asarray(made)[8:], grey[8:])
        assert Image.open(tmp_path / "b" / name).size == (24, 16)


@pytest.mark.parametrize(("task", "option", "value", "sentence"), [
    ("complete", "keep", 1.5, "task.keep=1.5 is no share of the height"),
    ("vary", "strength", -1, "task.strength=-1 is no strength"),
    ("vary", "label", 3, "this DALLE takes no labels"),
    ("complete", "text", "[a,b]", "names several: all pictures have the same one"),
    ("complete", "top_p", 0, "top_p=0 is no probability above 0"),
])
def test_mistakes_are_one_sentence_and_leave_nothing(task, option, value, sentence, photos, tmp_path):
    save(FAMILIES["dalle"](), tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError) as caught:
        run_edit(task=task, run=tmp_path / "run", images=photos, out=tmp_path / "out", **{f"task.{option}": value})
    assert sentence in str(caught.value) and not (tmp_path / "out").exists()


def test_families_without_codes_are_refused(photos, tmp_path):
    save(Negative(3), tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="task=complete needs a run of dalle or prior"):
        run_edit(task="complete", run=tmp_path / "run", images=photos, out=tmp_path / "out")
    assert models_that_can("complete") == ["dalle", "prior"]
