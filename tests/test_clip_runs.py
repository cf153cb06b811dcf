"""Runs of CLIP: resumed exactly, and what they are good for: judging samples in training and in evaluations."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aigc.conditions.rewording import caption_numbers
from aigc.errors import UserError
from aigc.evaluate import evaluate
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.networks.fingerprint import state_sha256
from aigc.runs.protocol import facts
from aigc.runs.summary import read_summary
from aigc.scoring.networks import classifier
from aigc.scoring.scores.clip_score import RunJudge, open_judge
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
