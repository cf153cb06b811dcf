"""Runs guided by other runs: a classifier's labels, a CLIP's texts, in pixels and latents; recipes, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from aigc.errors import UserError
from aigc.evaluate import evaluate
from aigc.generate import generate
from aigc.images.generating import sample_uint8
from aigc.images.recipes import read_recipe
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.guidance import guidance_asked
from aigc.models.prompts import joint_of, joint_prompts, written
from aigc.models.requests import images_asked
from aigc.networks.fingerprint import state_sha256
from aigc.scoring.networks import classifier as scoring_classifier
from aigc.training.fit import fit

from .conftest import TINY, compose_train
from .families import READER, staged, words
from .test_matrix import asked
from .test_resume import assert_same

DATA = ["data=shapes", "data.size=16", "data.train=64", "data.validation=24", "data.test=24", "data.heldout=16",
        "trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=16", "budget.minutes=null",
        "budget.images=32"]
ALONE = ["metrics=none", "~callbacks.samples"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    kinds = {
        "plain": [*TINY["diffusion"], "condition=none"],
        "small": [*TINY["diffusion"], "condition=none", "model.network.width=8"],
        "labels": [*TINY["diffusion"], "condition=label"],
        "texts": [*TINY["diffusion"], "condition=text", *READER],
        "latents": [*staged("latent_diffusion", root / "first", *DATA), "condition=none"],
        "classifier": [*words("classifier"), "condition=label"],
        "clip": [*words("clip"), "condition=text"],
        "gan": [*TINY["gan"], "condition=none"],
    }
    for kind, told in kinds.items():
        cfg = compose_train(*told, *DATA, *ALONE, common=False)
        (root / kind / ".hydra").mkdir(parents=True)
        OmegaConf.save(cfg, root / kind / ".hydra" / "config.yaml")
        fit(cfg, root / kind)
    Image.effect_noise((20, 16), 60).convert("RGB").save(root / "start.png")
    return {kind: root / kind for kind in kinds} | {"start": root / "start.png"}


def made(runs, out: Path, run: str = "plain", options: dict | None = None, **given) -> list[np.ndarray]:
    told = [f"++options.{name}={value}" for name, value in (options or {}).items()]
    given = {name: str(runs.get(value, value)) if isinstance(value, str) else value for name, value in given.items()}
    generate(asked("generate", *told, **{"run": runs[run], "out": out, "device": "cpu", "n": 3, **given}))
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("0*.png"))]


def apart(one, other) -> int:
    return max(int(abs(a - b).max()) for a, b in zip(one, other, strict=True))


GUIDED = {
    "classifier": {"classifier": "classifier", "label": ["red star", "blue circle"], "classifier_guidance": 30.0},
    "clip": {"clip": "clip", "text": ["a red star", "a blue circle | green:-0.5"]},
}


@pytest.mark.parametrize(("run", "kind"), [
    ("plain", "classifier"), ("plain", "clip"), ("labels", "classifier"), ("texts", "clip"), ("latents", "classifier"),
    ("latents", "clip"),
])
def test_runs_of_every_kind_are_guided_and_scale_0_changes_no_bit(runs, tmp_path, run, kind):
    given = GUIDED[kind] | ({f"{kind}_guidance": 2000.0} if run == "latents" else {})
    without = {"text": ["a red star", "a blue circle"]} if run == "texts" else {}
    without |= {"label": given["label"]} if run == "labels" else {}
    if without:                                            # guided by their own condition, too
        given, without = given | {"guidance": 2.0}, without | {"guidance": 2.0}
    plain = made(runs, tmp_path / "plain", run, **without, options={"autoguidance": 1})
    off = made(runs, tmp_path / "off", run, **{**given, f"{kind}_guidance": 0.0}, options={"autoguidance": 1})
    bent = made(runs, tmp_path / "bent", run, **given, batch_size=2)
    assert apart(plain, off) == 0 and apart(plain, bent) > 3
    recipe = read_recipe(sorted((tmp_path / "bent").glob("0*.png"))[1])
    word = {"classifier": "label", "clip": "text"}[kind]
    assert recipe[word] == given[word][1] and recipe["options"][kind] == str(runs[kind])
    assert recipe["guided"] == {kind: state_sha256(load_family(runs[kind]).state_dict())}


def test_a_guided_picture_is_made_again_by_its_recipe(runs, tmp_path, capsys):
    both = {**GUIDED["classifier"], **GUIDED["clip"], "symmetry": "horizontal"}
    first = made(runs, tmp_path / "first", **both)
    assert apart([image[:, ::-1] for image in first], first) <= 1
    generate(asked("generate", recipe=tmp_path / "first" / "00001.png", out=tmp_path / "again", device="cpu"))
    assert "the same picture, bit for bit" in capsys.readouterr().out
    begun = made(runs, tmp_path / "begun", init="start", skip=1, options={"steps": 3}, n=1)
    assert apart(begun, made(runs, tmp_path / "other", options={"steps": 3}, n=1)) > 3
    with pytest.raises(UserError, match="no recipe makes a file be read: give init= beside it"):
        generate(asked("generate", recipe=tmp_path / "begun" / "00000.png", out=tmp_path / "no", device="cpu"))


def test_a_text_is_encoded_once_whatever_the_steps_and_the_images(runs, monkeypatch):
    read, clip = [], type(load_family(runs["clip"]))
    own = clip.embed_texts
    monkeypatch.setattr(clip, "embed_texts", lambda self, texts: read.append(list(texts)) or own(self, texts))
    family = load_family(runs["plain"])
    typed = {"clip": str(runs["clip"]), "text": ["a red star", "blue:2 | a red star:-0.5"]}
    guidance = guidance_asked(family, typed, 5, run="x")
    images = list(sample_uint8(family, 5, seed=1, batch_size=2, guides=guidance, steps=5))
    assert len(images) == 5 and read == [["a red star", "blue"]]
    assert guidance.words == [{"text": typed["text"][k % 2]} for k in range(5)]


def test_guides_of_the_recipe_and_of_the_request_stay(runs):
    family = load_family(runs["plain"])
    typed = {"clip": str(runs["clip"]), "text": "a red star", "symmetry": "vertical"}
    family.hparams.sampler["guide"] = "dynamic_threshold"
    guides = guidance_asked(family, typed, 1, run="x").of([0], {})["guide"]
    assert [getattr(guide, "__name__", guide) for guide in guides] == ["dynamic_threshold", "clip", "symmetry"]
    asked_for = guidance_asked(family, typed, 1, run="x").of([0], {"guide": "static_threshold", "clip_tv": 2.0})
    assert asked_for["guide"][0] == "static_threshold" and asked_for["clip_tv"] == 2.0 and len(asked_for["guide"]) == 3
    off = guidance_asked(family, {**typed, "symmetry": None, "clip_guidance": 0}, 1, run="x")
    assert off.of([0], {"clip_tv": 2.0, "steps": 3}) == {"steps": 3}


def test_what_an_image_is_asked_for_is_said_whoever_reads_it(runs):
    given = {"sampler": {}, "options": {}, "guidance": None, "truncation": None, "label": "red star",
             "text": "a star:2 | blue:-1"}
    for run, guide, wanted in (("labels", "clip", given), ("texts", "classifier", {**given, "text": "a star"})):
        asked_for = images_asked(load_family(runs[run]), {**wanted, guide: str(runs[guide])}, 2, run="x")
        assert asked_for.words == [{"label": "red star", "text": wanted["text"]}] * 2
        assert list(asked_for.condition) == (["a star"] * 2 if run == "texts" else [3, 3])      # red star is class 3


@pytest.mark.parametrize(("typed", "wanted"), [
    ("a cat", [(("a cat", 1.0),)]),
    (["a cat:2", "blue:-0.5"], [(("a cat", 2.0), ("blue", -0.5))]),
    (["a cat", "a dog"], [(("a cat", 1.0),), (("a dog", 1.0),)]),
    ("a cat:2 | blue: -.5", [(("a cat", 2.0), ("blue", -0.5))]),
    (["a cat:2 | blue", "a dog"], [(("a cat", 2.0), ("blue", 1.0)), (("a dog", 1.0),)]),
    (["at 12:30 sharp"], [(("at 12:30 sharp", 1.0),)]),
])
def test_texts_may_have_weights_and_belong_together(typed, wanted):
    assert joint_prompts(typed) == wanted
    again = joint_prompts([written(one) for one in wanted])
    assert again == wanted
    assert joint_prompts([written((("a", 3.0),)), written((("b", 2.0),))]) == [(("a", 3.0),), (("b", 2.0),)]


@pytest.mark.parametrize("text", ["", " | ", "a:1 | b:-1", "a:0"])
def test_texts_that_ask_for_nothing_are_refused(text):
    with pytest.raises(UserError, match=r"says nothing for clip=|the weights cancel"):
        joint_of(text)


@pytest.mark.parametrize(("run", "given", "sentence"), [
    ("gan", {"classifier": "classifier"}, "holds a GAN, .*: classifier= needs a run of .*diffusion"),
    ("plain", {"classifier": "clip"}, "holds a CLIP, which tells how well .*: classifier= needs a run of classifier"),
    ("plain", {"clip": "classifier", "text": "a"}, "holds a Classifier, which tells the class .*: clip= needs a run"),
    ("plain", {"clip": "clip"}, "guides images to a text, and there is none: give text="),
    ("plain", {"clip_guidance": 3.0}, "clip_guidance=3.0 needs the run that guides: give clip=<run>"),
    ("plain", {"secondary": "small"}, "secondary= takes gradients for clip=, which is not given"),
    ("plain", {"clip": "clip", "text": "a star", "secondary": "latents"}, "secondary=.* denoises .*: give a run"),
    ("plain", {"classifier": "classifier", "label": "rd star"}, "label=rd star is not a class .* 'red star'"),
    ("plain", {"label": 3}, "label=3, but this Diffusion takes no labels"),
    ("plain", {"symmetry": "round"}, "There is no symmetry 'round': choose from both, horizontal, vertical"),
    ("plain", {"init": "nowhere.png"}, "init='nowhere.png' cannot be read as a picture"),
    ("plain", {"skip": 2}, "skip=2 skips steps to a picture that is there already: give init="),
    ("plain", {"clip": "clip", "text": "a star", "options": {"clip_tvv": 1}}, "'clip_tvv': did you mean 'clip_tv'"),
])
def test_what_cannot_guide_is_refused(runs, tmp_path, run, given, sentence):
    with pytest.raises(UserError, match=sentence):
        made(runs, tmp_path / "no", run, **given)
    assert not (tmp_path / "no").exists()


def test_a_secondary_run_gives_the_gradients(runs, tmp_path):
    given = {"clip": "clip", "text": "a red star"}
    own, other = (made(runs, tmp_path / name, **given, **more) for name, more in (
        ("own", {}), ("other", {"secondary": "small"})))
    assert apart(own, other) > 0


def test_an_evaluation_guides_to_all_classes_and_scores_their_labels(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring_classifier, "_train", lambda *args, **options: None)
    few = {"num_samples": 40, "num_reals": 40, "resamples": 2, "neighbours": 0, "memorisation": False, "second": None,
           "attribute_samples": 0, "kd_subset_size": 10, "kd_subsets": 2, "device": "cpu"}
    found = []
    for name, more in (("plain", {}), ("guided", {"classifier": runs["classifier"], "classifier_guidance": 20.0})):
        evaluate(asked("evaluate", run=runs["plain"], out=tmp_path / f"{name}.json", **few, **more))
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert "label_accuracy" not in found[0]["scores"] and 0 <= found[1]["scores"]["label_accuracy"]["value"] <= 1
    assert found[0]["scores"]["fd_classifier"]["value"] != found[1]["scores"]["fd_classifier"]["value"]
    told = found[1]["sampling"]["guided"]
    assert told["classifier_guidance"] == 20.0
    assert told["classifier"]["sha256"] == state_sha256(load_family(runs["classifier"]).state_dict())
    assert "guided" not in found[0]["sampling"]


def test_a_guided_run_makes_videos(runs, tmp_path, capsys):
    generate(asked("generate", "animation.frames=3", run=runs["plain"], out=tmp_path / "out", device="cpu", n=2,
                   batch_size=1, video="gif", clip=runs["clip"], text="a red star", init=runs["start"]))
    assert "2 videos in" in capsys.readouterr().out
    for name in ("00000.gif", "00001.gif"):
        with Image.open(tmp_path / "out" / name) as file:
            assert file.n_frames == 3 and file.size == (256, 256)
    assert (tmp_path / "out" / "grid.png").is_file()
    with pytest.raises(UserError, match=r"holds a GAN, .*: video= needs a run of"):
        made(runs, tmp_path / "no", "gan", video="gif")


def test_a_classifier_of_other_images_is_refused(runs, tmp_path):
    cfg = compose_train(*words("classifier"), *DATA, *ALONE, "data.size=20", "condition=label", common=False)
    fit(cfg, tmp_path / "run")
    with pytest.raises(UserError, match=r"tells images of 20 x 20 .* apart, and this run makes images of 16"):
        made(runs, tmp_path / "no", classifier=str(tmp_path / "run"))


def test_a_resumed_classifier_equals_an_uninterrupted_one(tmp_path):
    told = [*words("classifier"), *DATA, *ALONE, "condition=label", "model.decay_from=1.0"]
    for folder, budgets in (("whole", (64,)), ("halved", (32, 64))):
        for k, images in enumerate(budgets):
            cfg = compose_train(*told, f"budget.images={images}", common=False)
            fit(cfg, tmp_path / folder, resumed=k > 0)
    one, other = (read_checkpoint(tmp_path / folder / "checkpoints" / "last.ckpt") for folder in ("whole", "halved"))
    assert one["progress"]["images"] == 64
    assert_same(one, other)
