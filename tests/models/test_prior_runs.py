"""Runs of a prior: over a tokenizer that may go once training began, resumed bit for bit, and told in the record."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.models import over_codes
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.over_codes import MEMORY
from aigc.models.parts import CodeSpace
from aigc.networks.fingerprint import state_sha256
from aigc.runs.resume import resumed_config
from aigc.runs.summary import read_summary
from aigc.training.fit import fit
from tests.conftest import compose_train
from tests.families import words
from tests.test_resume import assert_same

QUICK = ["metrics=none", "~callbacks.samples", "log_every=7"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A short run of a VQ-VAE on digits; treat it as read-only."""
    folder = tmp_path_factory.mktemp("vqvae")
    fit(compose_train(*words("vqvae"), *QUICK, "condition=none", "budget.images=320"), folder)
    return folder


def trained(tokenizer: Path, folder: Path, images: int, *more: str) -> dict:
    cfg = compose_train(*words("prior"), *QUICK, "condition=label", "model.decay_from=1.0", f"budget.images={images}",
                        f"model.tokenizer={tokenizer}", *more)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return fit(cfg, folder)


@pytest.mark.parametrize("order", ["causal", "masked"])
def test_it_goes_on_without_the_tokenizers_run_as_if_it_had_never_stopped(tokenizer, tmp_path, order):
    shutil.copytree(tokenizer, tmp_path / "vqvae")
    order = f"model.order={order}"
    trained(tmp_path / "vqvae", tmp_path / "whole", 800, order)
    before = trained(tmp_path / "vqvae", tmp_path / "broken", 400, order)
    shutil.rmtree(tmp_path / "vqvae")
    more = ["budget.images=800"]
    after = fit(resumed_config(compose_train(*words("prior"), *QUICK, *more), tmp_path / "broken", more),
                tmp_path / "broken", resumed=True)
    assert after["images"] == 800
    assert (after["signature"], after["parts"]) == (before["signature"], before["parts"])
    whole, broken = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for key in ("state_dict", "optimizer_states", "hyper_parameters"):
        assert_same(whole[key], broken[key], key)
    model = load_family(tmp_path / "broken")
    made = model.sample(3, condition=[0, 1, 2], seeds=[1, 2, 3])
    assert made.shape == (3, 1, 8, 8) and float(made.abs().max()) <= 1
    torch.testing.assert_close(made[1:2], model.sample(1, condition=[1], seeds=[2]), atol=1e-5, rtol=0)


def test_what_is_kept_and_told_of_the_tokenizer(tokenizer, tmp_path):
    summary, source = trained(tokenizer, tmp_path / "run", 160), load_family(tokenizer)
    content, model = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt"), load_family(tmp_path / "run")
    assert str(tokenizer) not in str(content["hyper_parameters"])
    assert summary["parts"] == {"tokenizer": state_sha256(model.tokenizer.family.state_dict())}
    told = read_summary(tokenizer)
    assert summary["stages"]["tokenizer"] == {
        "family": "VQGAN", "images": 320, "seconds": pytest.approx(told["seconds"], abs=1e-3),
        "data": {name: told["data"][name] for name in ("name", "fingerprint")}}
    assert summary["parameters"] == sum(p.numel() for p in model.network.parameters())
    assert len(content["optimizer_states"][0]["state"]) == len(list(model.network.parameters()))
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    codes = model.tokenizer.tokenize(images)
    assert torch.equal(codes, source.tokenize(images).flatten(1)) and model.tokenizer.codes == source.codes
    torch.testing.assert_close(model.tokenizer.decode(codes), source.decode(source.lookup(source.tokenize(images))))


def test_a_tokenizer_that_has_seen_the_held_out_images_is_told(tokenizer, tmp_path, caplog):
    trained(tokenizer, tmp_path / "same", 160)
    assert "split" not in caplog.text
    trained(tokenizer, tmp_path / "other", 160, "data.split_seed=1")
    assert "model.tokenizer was trained on another split of digits: " in caplog.text


def test_images_that_always_look_alike_are_tokenized_once(tokenizer, tmp_path, monkeypatch):
    few = ["data.validation=1000", "data.test=733"]        # 64 of 1,797 are left to train on
    batches, tokenize = [], CodeSpace.tokenize
    monkeypatch.setattr(CodeSpace, "tokenize", lambda self, x: (batches.append(len(x)), tokenize(self, x))[1])
    seen, kept = {}, {}
    for name, more, most in (("once", [], MEMORY), ("each", [], 0), ("mirrored", ["data.flip=true"], MEMORY)):
        monkeypatch.setattr(over_codes, "MEMORY", most)
        trained(tokenizer, tmp_path / name, 192, *few, *more)
        kept[name] = read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
        seen[name], batches[:] = list(batches), []
    assert seen == {"once": [16] * 4, "each": [16] * 12, "mirrored": [16] * 12}
    assert_same(kept["once"], kept["each"])


def test_what_is_no_tokenizer_of_these_images_is_refused(tokenizer, tmp_path):
    fit(compose_train(*words("vae"), *QUICK, "condition=none", "budget.images=160"), tmp_path / "vae")
    with pytest.raises(UserError, match=r"holds a VAE, which .*: model\.tokenizer needs a run of vqgan or vqvae"):
        trained(tmp_path / "vae", tmp_path / "a", 160)
    with pytest.raises(UserError, match="on 8 x 8 images with 1 channel, these are 16 x 16 images with 3 channels:"):
        trained(tokenizer, tmp_path / "b", 160, "data=shapes", "data.size=16", "data.train=100", "data.heldout=20",
                "data.validation=20", "data.test=20")
    with pytest.raises(UserError, match=r"Prior stands on a trained run, and model\.tokenizer names none: train one"):
        fit(compose_train(*words("prior"), *QUICK, "condition=label", "budget.images=160"), tmp_path / "c")
