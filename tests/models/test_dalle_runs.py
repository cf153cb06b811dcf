"""Runs of DALL-E: resumed bit for bit without the tokenizer's run, refused without captions, prompts and words."""

import shutil

import pytest
import torch
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.requests import prompts_of
from aigc.runs.resume import resumed_config
from aigc.training.fit import fit
from tests.conftest import compose_train
from tests.families import staged, words
from tests.test_resume import assert_same

BRIEF = ["trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=16", "budget.minutes=null"]
QUICK = [*BRIEF, "metrics=none", "~callbacks.samples"]
SHAPES = ["data=shapes", "data.size=16", "data.train=64", "data.validation=8", "data.test=8", "data.heldout=8"]


def test_it_goes_on_without_the_tokenizers_run_as_if_it_had_never_stopped(tmp_path):
    chosen = [*staged("dalle", tmp_path / "vqvae", *SHAPES, *BRIEF, "budget.images=64"), *SHAPES, *QUICK,
              "model.decay_from=1.0"]
    for name, images in (("whole", 320), ("broken", 160)):
        cfg = compose_train(*chosen, f"budget.images={images}", common=False)
        (tmp_path / name / ".hydra").mkdir(parents=True)
        OmegaConf.save(cfg, tmp_path / name / ".hydra" / "config.yaml")
        before = fit(cfg, tmp_path / name)
    assert before["condition"] == "text" and "complete" in before["capabilities"]
    shutil.rmtree(tmp_path / "vqvae")
    more = ["budget.images=320"]
    typed = compose_train(*words("dalle"), *SHAPES, *QUICK, *more, common=False)
    after = fit(resumed_config(typed, tmp_path / "broken", more), tmp_path / "broken", resumed=True)
    assert (after["images"], after["signature"], after["parts"]) == (320, before["signature"], before["parts"])
    whole, broken = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for key in ("state_dict", "optimizer_states", "hyper_parameters"):
        assert_same(whole[key], broken[key], key)
    model = load_family(tmp_path / "broken")
    made = model.sample(2, condition=["a small red star"] * 2, seeds=[1, 2])
    assert made.shape == (2, 3, 16, 16) and float(made.abs().max()) <= 1
    torch.testing.assert_close(made[1:], model.sample(1, condition=["a small red star"], seeds=[2]), atol=1e-5, rtol=0)
    assert prompts_of(model, ["a mauve star", "a a a a a a a"], 2)[1] == [
        "1 of the prompts cut off after 6 tokens: 'a a a a a a a...'",
        "not in the training captions, so meaningless to the model: mauve"]
    assert all(len(text.split()) <= 6 for text in model.describe(made))


def test_data_without_captions_are_refused(tmp_path):
    for condition in ("auto", "text"):
        with pytest.raises(UserError, match=r"needs captions, and digits has none: choose data=shapes"):
            fit(compose_train(*words("dalle"), *QUICK, "data=digits", "model.tokenizer=x", f"condition={condition}",
                              common=False), tmp_path / "run")
    with pytest.raises(UserError, match="DALLE has no condition 'label'"):
        fit(compose_train(*words("dalle"), *QUICK, "model.tokenizer=x", "condition=label"), tmp_path / "run")
