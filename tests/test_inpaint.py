"""Inpainting and outpainting by every kind of run that can: what is known stays, and the rest is drawn by seed."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from aigc.edit import edit
from aigc.editing.inpaint import inpaint
from aigc.errors import RunError, UserError
from aigc.images.recipes import read_recipe

from .models import test_dalle, test_prior, test_vae, test_vqgan
from .models.test_diffusion import tiny
from .test_matrix import asked
from .translators import Negative, save


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")


RUNS = {"flow": tiny, "ddpm": partial(tiny, "ddpm"), "edm": partial(tiny, "edm", condition="none"),
        "dalle": test_dalle.tiny, "causal": lambda: test_prior.tiny("label"),
        "masked": lambda: test_prior.tiny("text", order="masked")}
FEW = {"options": {"steps": 3}}


def pictures(n=4):
    return test_dalle.batch_of(n, (8, 8))["image"]


def masks(n=4):
    found = torch.zeros(n, 1, 8, 8, dtype=torch.bool)
    for k in range(n):
        found[k, :, 2 : 5 + k % 3, k % 4 : 6] = True
    return found


@pytest.mark.parametrize(("name", "more"), [
    *((name, {}) for name in RUNS), *((name, {"method": "posterior"}) for name in ("flow", "ddpm", "edm")),
    ("flow", {"resample": 3, "jump": 2}),
])
def test_what_is_drawn_depends_on_what_is_known_and_the_seed_and_never_on_what_was_there(name, more):
    family, images, where = RUNS[name](), pictures(), masks()
    given = {**(FEW if family.can("denoise") else {}), **more}
    made = inpaint(family, images, where, range(4), **given)
    assert made.shape == images.shape and not made.requires_grad
    before = torch.where(where, -images, images)
    assert torch.equal(made, inpaint(family, before, where, range(4), **given))
    alone = inpaint(family, images[2:3], where[2:3], [2], **given)[0]
    torch.testing.assert_close(alone, made[2], atol=1e-4, rtol=1e-4)
    other = inpaint(family, images, where, range(10, 14), **given)
    assert (made - other).abs()[where].max() > 1e-3
    if family.can("denoise") and "method" not in more:
        torch.testing.assert_close(made[~where], images[~where], atol=2e-3, rtol=0)


def test_a_label_says_what_appears_and_without_one_nothing_is_said():
    family, images, where = tiny(), pictures(), masks()
    made = [inpaint(family, images, where, range(4), label=label, options={"steps": 3, "guidance": 3.0})
            for label in (0, 1)]
    assert (made[0] - made[1]).abs().max() > 1e-3
    assert torch.equal(inpaint(family, images, where, range(4), **FEW),
                       inpaint(family, images, where, range(4), label=1,
                               options={"steps": 3, "guidance": 0.0, "guidance_interval": None}))


@pytest.mark.parametrize("methods", [("replace", "posterior"), ("posterior",)], ids=["grid", "vector"])
def test_latents_are_filled_in_place_or_through_their_decoder(methods, tmp_path):
    first = test_vqgan.tiny("kl", (8, 8), 1) if len(methods) == 2 else test_vae.tiny()
    save(first.eval(), tmp_path / "first" / "checkpoints" / "last.ckpt")
    family, images = tiny(first_stage=str(tmp_path / "first")), pictures()
    where = torch.zeros(len(images), 1, *images.shape[2:], dtype=torch.bool)
    where[..., images.shape[3] // 2 :] = True
    for method in methods:
        made = inpaint(family, images, where, range(len(images)), method=method, **FEW)
        assert made.shape == images.shape and torch.isfinite(made).all()
        assert torch.equal(made, inpaint(family, torch.where(where, -images, images), where, range(len(images)),
                                         method=method, **FEW))
    if "replace" not in methods:
        with pytest.raises(UserError, match=r"this run's are vectors: give task.method=posterior"):
            inpaint(family, images, where, range(len(images)), **FEW)


# ---- the verb ----


def run_edit(*words: str, **options) -> None:
    cfg = asked("edit", *words, device="cpu")
    for name, value in options.items():
        OmegaConf.update(cfg, name, str(value) if isinstance(value, Path) else value)
    edit(cfg)


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    draw = np.random.default_rng(0)
    for k, shape in enumerate([(8, 8), (8, 8), (30, 21, 3), (8, 8, 4)]):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / "photos" / f"{k}.png")
    Image.fromarray(draw.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(tmp_path / "photos" / "5.jpg")
    (tmp_path / "photos" / "4.png").write_bytes(b"broken")
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path) -> Path:
    save(tiny(), tmp_path / "run" / "checkpoints" / "best.ckpt")
    return tmp_path / "run"


QUICK = {"task.options": {"steps": 2}, "task.resample": 1}


def test_a_folder_is_inpainted_and_every_result_is_made_again_from_its_recipe(run, photos, tmp_path, capsys):
    with pytest.raises(RunError, match=r"1 of 6 pictures failed, the other 5 are in .*4\.png"):
        run_edit("task=inpaint", run=run, images=photos, out=tmp_path / "a", seed=4, **QUICK,
                 **{"mask.box": [0.25, 0.3, 0.8, 0.9], "mask.feather": 1})
    for name in ("0", "1", "2", "3"):
        before, after = (np.asarray(Image.open(folder / f"{name}.png")) for folder in (photos, tmp_path / "a"))
        assert before.shape == after.shape and before.dtype == after.dtype
        h, w = before.shape[:2]
        outside = np.ones((h, w), bool)
        outside[round(0.3 * h) : round(0.9 * h), round(0.25 * w) : round(0.8 * w)] = False
        assert np.array_equal(before[outside], after[outside]) and (before[~outside] != after[~outside]).mean() > 0.5
    lossless = np.asarray(Image.open(tmp_path / "a" / "5.png"))
    assert np.array_equal(lossless[0], np.asarray(Image.open(photos / "5.jpg"))[0]), "a JPEG becomes a PNG"
    recipe = read_recipe(tmp_path / "a" / "1.png")
    assert recipe["options"]["mask"] == {"box": [0.25, 0.3, 0.8, 0.9], "feather": 1} and "pad" not in recipe["options"]
    assert recipe["task"] == "inpaint" and recipe["batch"]["size"] == 5 and recipe["parents"][0]["name"] == "1.png"
    for name in ("1", "2", "5"):                           # among five at the model's size
        run_edit(recipe=tmp_path / "a" / f"{name}.png", out=tmp_path / f"again{name}")
        assert capsys.readouterr().out.endswith("recipe    the same picture, bit for bit\n")
        again = tmp_path / f"again{name}" / f"{name}.png"
        assert read_recipe(again) == read_recipe(tmp_path / "a" / f"{name}.png")
        assert again.read_bytes() == (tmp_path / "a" / f"{name}.png").read_bytes()


def test_a_mask_is_a_parent_and_options_beside_a_recipe_count(run, photos, tmp_path, capsys):
    mask = np.zeros((8, 8), np.uint8)
    mask[3:6, 2:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run_edit("task=inpaint", run=run, images=photos / "0.png", out=tmp_path / "a", **QUICK,
             **{"mask.path": tmp_path / "mask.png"})
    recipe = read_recipe(tmp_path / "a" / "0.png")
    assert [one.get("role") for one in recipe["parents"]] == [None, "mask"] and "mask" not in recipe["options"]
    run_edit(recipe=tmp_path / "a" / "0.png", out=tmp_path / "b")
    assert (tmp_path / "b" / "0.png").read_bytes() == (tmp_path / "a" / "0.png").read_bytes()
    run_edit(recipe=tmp_path / "a" / "0.png", out=tmp_path / "c", seed=9)
    assert "not the same bits, as options were changed" in capsys.readouterr().out
    run_edit(recipe=tmp_path / "a" / "0.png", images=photos / "1.png", out=tmp_path / "d")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "d" / "1.png"))[mask == 0],
                          np.asarray(Image.open(photos / "1.png"))[mask == 0])
    (photos / "0.png").unlink()
    with pytest.raises(UserError, match=r"was made from '0.png', which is not here as it was"):
        run_edit(recipe=tmp_path / "a" / "0.png", out=tmp_path / "no")
    (tmp_path / "mask.png").unlink()
    with pytest.raises(UserError, match=r"was made with a mask that is not here as it was: give mask.path="):
        run_edit(recipe=tmp_path / "a" / "0.png", images=photos / "1.png", out=tmp_path / "no")


def test_pictures_are_continued_beyond_their_edges(run, photos, tmp_path):
    run_edit("task=outpaint", run=run, images=photos / "2.png", out=tmp_path / "a", **QUICK,
             **{"pad.left": 6, "pad.bottom": 0.5})
    before, after = (np.asarray(Image.open(folder / "2.png")) for folder in (photos, tmp_path / "a"))
    assert after.shape == (45, 27, 3) and np.array_equal(after[:30, 6:], before)
    run_edit(recipe=tmp_path / "a" / "2.png", out=tmp_path / "b")
    assert (tmp_path / "b" / "2.png").read_bytes() == (tmp_path / "a" / "2.png").read_bytes()


@pytest.mark.parametrize(("words", "options", "sentence"), [
    (["task=inpaint"], {}, "nothing says what is to change"),
    (["task=inpaint"], {"mask.box": [0, 0, 1, 1], "task.method": "magic"}, "task.method=magic is unknown"),
    (["task=inpaint"], {"mask.box": [0, 0, 1, 1], "task.resample": 0}, "resample=0 is no number of times"),
    (["task=inpaint"], {"mask.box": [0, 0, 1, 1], "task.label": 12}, "label=12 is not a class"),
    (["task=inpaint"], {"mask.box": [0, 0, 1, 1], "task.options": {"stepz": 1}}, "no option 'stepz'"),
    (["task=inpaint"], {"mask.box": [0, 0, 1, 1], "task.strength": 0, "task.method": "posterior"}, "must be above 0"),
    (["task=outpaint"], {}, "nothing says where pictures grow"),
    (["task=outpaint"], {"pad.left": 3, "mask.box": [0, 0, 1, 1]}, "this task changes all: leave it out"),
])
def test_mistakes_are_one_sentence_and_leave_nothing(words, options, sentence, run, photos, tmp_path):
    with pytest.raises(UserError) as caught:
        run_edit(*words, run=run, images=photos / "0.png", out=tmp_path / "out", **options)
    assert sentence in str(caught.value) and not (tmp_path / "out").exists()


def test_families_that_cannot_are_refused(photos, tmp_path):
    save(Negative(3), tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"task=inpaint needs a run of .*diffusion"):
        run_edit("task=inpaint", run=tmp_path / "run", images=photos, out=tmp_path / "out",
                 **{"mask.box": [0, 0, 1, 1]})
