"""Runs of CLIP: resumed exactly, and what they are good for: judging, reranking, searching and describing images."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from aigc.conditions.rewording import caption_numbers
from aigc.data.decode import decode
from aigc.describe import describe
from aigc.errors import RunError, UserError
from aigc.evaluate import evaluate
from aigc.generate import generate
from aigc.images.grids import to_uint8
from aigc.images.recipes import read_recipe
from aigc.images.reranking import Reranked
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.networks.fingerprint import state_sha256
from aigc.noise import mix
from aigc.runs.protocol import facts
from aigc.runs.summary import read_summary
from aigc.scoring.networks import classifier
from aigc.scoring.scores.clip_score import RunJudge, open_judge
from aigc.search import search
from aigc.training.fit import fit

from .conftest import TINY, compose_train
from .families import READER, words
from .test_matrix import asked
from .test_resume import assert_same

DATA = ["data=shapes", "data.size=16", "data.train=64", "data.validation=24", "data.test=24", "data.heldout=16"]
QUICK = [*DATA, "trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=16", "budget.minutes=null",
         "condition=text"]
ALONE = ["metrics=none", "~callbacks.samples"]
SCORED = ["metrics.every_images=32", "metrics.num_samples=20", "metrics.num_reals=20", "metrics.second=null",
          "metrics.validation_images=8", "metrics.batch_size=7", "metrics.attribute_samples=0",
          "metrics.kd_subset_size=10", "callbacks.samples.n=4"]


def trained(folder: Path, *told: str, resumed: bool = False) -> dict:
    cfg = compose_train(*QUICK, *told, common=False)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return fit(cfg, folder, resumed=resumed)


@pytest.fixture(scope="module", autouse=True)
def _untrained_judges():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_train", lambda *args, **options: None)
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "run"
    trained(folder, *words("clip"), *ALONE, "budget.images=64")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that makes images of captions."""
    folder = tmp_path_factory.mktemp("diffusion") / "run"
    trained(folder, *TINY["diffusion"], *READER, *ALONE, "budget.images=32")
    return folder


def test_resumed_equals_uninterrupted(tmp_path):
    told = [*words("clip"), *ALONE, "model.decay_from=1.0", "model.crop=0.8", "model.captions.replace=0.5"]
    for folder, images in (("whole", (64,)), ("halved", (32, 64))):
        for k, count in enumerate(images):
            trained(tmp_path / folder, *told, f"budget.images={count}", resumed=k > 0)
    one, other = (read_checkpoint(tmp_path / folder / "checkpoints" / "last.ckpt") for folder in ("whole", "halved"))
    assert one["progress"]["images"] == 64
    assert_same(one, other)


def test_a_checkpoint_knows_which_captions_it_learned_from(clip):
    family = load_family(clip)
    wanted = caption_numbers(compose_and_load().texts("train")).unique()
    assert torch.equal(family.learned_captions, wanted) and 20 < len(wanted) < 64


def compose_and_load():
    from aigc.config.targets import instantiate

    data = instantiate(compose_train(*QUICK, common=False).data, "data")
    data.setup()
    return data


def test_a_run_judges_as_its_family_scores(clip):
    judge, family = open_judge(str(clip)), load_family(clip)
    assert isinstance(judge, RunJudge) and judge.sha256 == state_sha256(family.state_dict())
    images = torch.randint(0, 256, (5, 3, 20, 16), dtype=torch.uint8)
    texts = ["a small red circle", "a large blue star", "a large blue star", "", "a zebra"]
    with torch.no_grad():
        wanted = 100 * family.score_text(images.float() / 127.5 - 1, texts).clamp(min=0)
    assert torch.allclose(judge(images, texts).float(), wanted, atol=1e-4) and judge.resizer == "16 x 16, bicubic"
    seen = caption_numbers([compose_and_load().texts("train")[0], "a zebra", "a large purple zebra", "b"])
    assert judge.saw(seen) == 0.25 and judge.facts(seen)["judge_saw_captions"] == 0.25
    assert "was trained on 25% of the captions that it judges" in judge.remark(seen)
    assert judge.remark(seen[1:]) is None and judge.facts(seen[1:])["judge_saw_captions"] == 0.0


def test_training_is_judged_by_a_run_and_the_record_says_what_it_saw(clip, tmp_path):
    summary = trained(tmp_path, *TINY["diffusion"], *READER, *SCORED, f"metrics.clip={clip}", "budget.images=32")
    score = summary["scores"]["last"]["clip_score"]
    (told,) = summary["protocol"]["others"]
    assert 0 <= score <= 100 and told["scores"] == ["clip_score"] and told["judge_saw_captions"] == 1.0
    assert told["network_sha256"] == open_judge(str(clip)).sha256 and told["resizer"] == "16 x 16, bicubic"
    assert any("was trained on 100% of the captions" in note for note in summary["scores_notes"])
    assert summary["catalogue"]["clip_score"]["better"] == "more"
    bearing = facts("clip_score", summary["protocol"])
    assert bearing["network_sha256"] == told["network_sha256"] and bearing["judge_saw_captions"] == 1.0
    other = facts("fd_classifier", summary["protocol"])
    assert other["network_sha256"] == summary["protocol"]["network_sha256"] != told["network_sha256"]
    assert "judge_saw_captions" not in other and "others" not in other


def test_an_evaluation_is_judged_alike(clip, made, tmp_path):
    record = tmp_path / "record.json"
    evaluate(asked("evaluate", run=made, out=record, clip=clip, device="cpu", num_samples=20, num_reals=20,
                   resamples=2, neighbours=0, memorisation=False, second=None, attribute_samples=0, kd_subset_size=10,
                   kd_subsets=2))
    found = json.loads(record.read_text())
    score, how = found["scores"]["clip_score"], found["protocol"]["clip_score"]
    assert 0 <= score["low"] <= score["value"] <= score["high"] and score["floor"] is not None
    assert how["network"] == "clip" and how["judge_saw_captions"] == 1.0 and how["num_samples"] == 20
    assert any("was trained on 100% of the captions" in note for note in found["scores_notes"])


def test_what_cannot_judge_or_be_judged_is_refused(clip, made, tmp_path):
    with pytest.raises(UserError, match="holds a Diffusion, which makes images from noise: clip= needs a run of clip"):
        open_judge(str(made))
    with pytest.raises(UserError, match=r"metrics.clip= scores images by their captions, but this run uses none"):
        trained(tmp_path, *TINY["gan"], *SCORED, f"metrics.clip={clip}", "budget.images=32", "condition=label")
    with pytest.raises(UserError, match="clip: a family that makes no images is scored by its own losses"):
        evaluate(asked("evaluate", run=clip, out=tmp_path / "no.json", clip=clip, device="cpu"))
    assert read_summary(clip)["capabilities"] == ["score_text"] and not (tmp_path / "no.json").exists()


# ---- reranking ----


def generated(run: Path, out: Path, **more) -> list:
    generate(asked("generate", run=run, out=out, device="cpu", n=3, text="a small red circle", **more))
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("0*.png"))]


def test_reranking_keeps_the_best_of_several_whatever_the_batch(clip, made, tmp_path):
    plain = generated(made, tmp_path / "plain", seed=5)
    best = generated(made, tmp_path / "best", seed=5, rerank=clip, rerank_of=4, batch_size=5)
    again = generated(made, tmp_path / "again", seed=5, rerank=clip, rerank_of=4, batch_size=64)
    assert len(best) == 3 and max(abs(a - b).max() for a, b in zip(best, again, strict=True)) <= 1
    judge, family = open_judge(str(clip)), load_family(made)
    one = Reranked(family, judge, ["a small red circle"] * 3, of=4, seed=5)
    recipes = [read_recipe(path) for path in sorted((tmp_path / "best").glob("0*.png"))]
    for k, recipe in enumerate(recipes):
        seeds = [one.seed_of(k, j) for j in range(4)]
        assert seeds[0] == mix(5, k) and len(set(seeds)) == 4
        pixels = to_uint8(family.sample(4, condition=["a small red circle"] * 4, seeds=seeds))
        fits = judge(pixels, ["a small red circle"] * 4)
        assert recipe["candidate"] == int(fits.argmax())
        assert recipe["fit"] == pytest.approx(float(fits.max()), abs=0.05)
        shown = pixels[recipe["candidate"]].permute(1, 2, 0).numpy().astype(int)
        assert abs(shown - best[k]).max() <= 1
        assert recipe["rerank"] == {"of": 4, "sha256": judge.sha256} and recipe["text"] == "a small red circle"
        if recipe["candidate"] == 0:
            assert abs(plain[k] - best[k]).max() <= 1      # the image that there is without reranking
    assert any(recipe["candidate"] for recipe in recipes)


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"text": None}, "rerank= chooses images by their captions, and not all have one: give text=<prompt>"),
    ({"rerank_of": 1}, "rerank_of=1 leaves no choice: give at least 2"),
])
def test_reranking_needs_captions_and_a_choice(clip, made, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(asked("generate", **{"run": made, "out": tmp_path / "no", "device": "cpu", "n": 2, "text": "a star",
                                      "rerank": clip, **changes}))
    with pytest.raises(UserError, match="Diffusion, which makes images from noise: rerank= needs a run of clip"):
        generate(asked("generate", run=made, out=tmp_path / "no", device="cpu", n=2, text="a star", rerank=made))
    assert not (tmp_path / "no").exists()


# ---- search, describe ----


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten renders of any size, one in a subfolder, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    images = compose_and_load().images("test")[:10]
    for k, image in enumerate(images):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16 + 2 * k, 16 + 2 * k))
        picture.save(folder / ("more" if k == 9 else ".") / f"{k}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def found_in(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_searched_by_text_and_each_picture_looked_at_once(clip, photos, tmp_path, monkeypatch, capsys):
    looked, family = [], load_family(clip)
    own = type(family).embed_images
    monkeypatch.setattr(type(family), "embed_images", lambda self, x: looked.append(len(x)) or own(self, x))
    texts = ["a small red circle", "a large zebra"]
    with pytest.raises(RunError, match=r"1 of the pictures could not be read, the others were searched: .*broken.jpg"):
        search(asked("search", clip=clip, images=photos, text=texts, n=4, out=tmp_path / "a", device="cpu"))
    assert sum(looked) == 10
    rows = found_in(tmp_path / "a" / "found.csv")
    assert [(row["query"], row["rank"]) for row in rows] == [(text, str(k)) for text in texts for k in (1, 2, 3, 4)]
    names = sorted(path for path in photos.rglob("*.png"))
    pixels = [decode(path.read_bytes(), size=(16, 16), channels=3) for path in names]
    with torch.no_grad():
        fit = own(family, torch.stack(pixels).float() / 127.5 - 1) @ family.embed_texts(texts).T
    for column, text in enumerate(texts):
        mine = [row for row in rows if row["query"] == text]
        wanted = fit[:, column].sort(descending=True)[0][:4].tolist()
        assert [float(row["fit"]) for row in mine] == pytest.approx(wanted, abs=1e-3)
        assert mine[0]["picture"] == str(names[int(fit[:, column].argmax())])
    assert Image.open(tmp_path / "a" / "grid.png").size[0] > 4 * 90
    said = capsys.readouterr()
    assert "a small red circle: " in said.out and "meaningless to the model: zebra" in said.err
    looked.clear()
    os.utime(photos / "3.png", (1, 1))                     # changed since: looked at again
    with pytest.raises(RunError):
        search(asked("search", clip=clip, images=photos, text=texts, n=4, out=tmp_path / "b", device="cpu"))
    assert sum(looked) == 1 and found_in(tmp_path / "b" / "found.csv") == rows


def test_a_folder_is_searched_by_a_picture(clip, photos, tmp_path):
    with pytest.raises(RunError):
        search(asked("search", clip=clip, images=photos, image=photos / "4.png", n=3, out=tmp_path / "a",
                     device="cpu"))
    rows = found_in(tmp_path / "a" / "found.csv")
    assert rows[0]["query"] == "like 4.png" and rows[0]["picture"] == str(photos / "4.png")
    assert float(rows[0]["fit"]) == pytest.approx(1, abs=1e-3) and len(rows) == 3


@pytest.mark.parametrize(("changes", "sentence"), [
    ({}, "there is nothing to look for: give one of text="),
    ({"text": "a", "image": "b"}, "text= and image= are two questions: give one of"),
    ({"text": "a", "images": "nowhere"}, "images='nowhere' does not exist"),
    ({"image": "nowhere"}, "image='nowhere' does not exist"),
    ({"text": "a", "n": 0}, "n=0 must be at least 1"),
])
def test_what_cannot_be_searched_is_refused(clip, photos, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        search(asked("search", **{"clip": clip, "images": photos, "out": tmp_path / "no", "device": "cpu", **changes}))
    assert not (tmp_path / "no").exists()


def test_a_run_that_scores_no_texts_neither_searches_nor_describes(made, photos, tmp_path):
    holds = "holds a Diffusion, which makes images from noise"
    with pytest.raises(UserError, match=f"{holds}: search needs a run of clip"):
        search(asked("search", clip=made, images=photos, text="a", out=tmp_path / "no", device="cpu"))
    with pytest.raises(UserError, match=f"{holds}: describe needs a run of clip"):
        describe(asked("describe", run=made, images=photos, candidates=["a"], out=tmp_path / "no", device="cpu"))


def test_pictures_are_described_by_the_candidates_that_fit_best(clip, photos, tmp_path, capsys):
    texts = ["a small red circle", "a large blue star", "a large green cross"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    for name, candidates in (("a", texts), ("b", f"@{tmp_path / 'texts.txt'}")):
        describe(asked("describe", run=clip, images=f"{photos}/[0-3].png", candidates=candidates, n=2, device="cpu",
                       out=tmp_path / name))
    rows = found_in(tmp_path / "a" / "described.csv")
    assert rows == found_in(tmp_path / "b" / "described.csv") and len(rows) == 8
    family = load_family(clip)
    for k in range(4):
        image = decode((photos / f"{k}.png").read_bytes(), size=(16, 16), channels=3)[None].float() / 127.5 - 1
        with torch.no_grad():
            fit = (family.embed_images(image) @ family.embed_texts(texts).T)[0]
        mine = [row for row in rows if row["picture"] == str(photos / f"{k}.png")]
        assert [row["text"] for row in mine] == [texts[j] for j in fit.argsort(descending=True)[:2]]
        assert float(mine[0]["fit"]) == pytest.approx(float(fit.max()), abs=1e-3)
    assert f"{photos / '0.png'}: {rows[0]['text']} (" in capsys.readouterr().out
    with pytest.raises(UserError, match="a CLIP tells which of several texts fits a picture: give them as cand"):
        describe(asked("describe", run=clip, images=photos, out=tmp_path / "no", device="cpu"))
    with pytest.raises(UserError, match=r"a CLIP chooses among candidates, .*: leave question and top_k out"):
        describe(asked("describe", run=clip, images=photos, candidates=["a"], question="a", top_k=3,
                       out=tmp_path / "no", device="cpu"))
