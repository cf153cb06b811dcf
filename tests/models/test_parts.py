"""A trained run inside another: frozen, stored once, known by its weights, and needed no more once training began."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.diffusion import Diffusion
from aigc.models.parts import LatentSpace
from aigc.networks.fingerprint import state_sha256
from aigc.runs.resume import resumed_config
from aigc.runs.summary import read_summary, signature
from aigc.training.fit import fit
from tests.conftest import TINY, compose_train
from tests.test_resume import assert_same

QUICK = ["metrics=none", "~callbacks.samples", "log_every=7"]
LATENT = ["model.latent_network.width=16", "model.latent_network.blocks=1", "model.decay_from=1.0"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """A short run of a VAE; treat it as read-only."""
    folder = tmp_path_factory.mktemp("vae")
    fit(compose_train(*TINY["vae"], *QUICK, "condition=none", "budget.images=1600"), folder)
    return folder


def configured(first_stage: Path, images: int, *more: str):
    return compose_train(*TINY["diffusion"], *QUICK, *LATENT, "condition=label", f"budget.images={images}",
                         f"model.first_stage={first_stage}", *more)


def trained(first_stage: Path, folder: Path, images: int = 1600, *more: str) -> dict:
    cfg = configured(first_stage, images, *more)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return fit(cfg, folder)


@pytest.fixture(scope="module")
def later(autoencoder, tmp_path_factory) -> tuple[Path, dict]:
    """A diffusion run in latents, whose first stage is gone, and its summary."""
    folder = tmp_path_factory.mktemp("later")
    shutil.copytree(autoencoder, folder / "vae")
    summary = trained(folder / "vae", folder / "run")
    shutil.rmtree(folder / "vae")
    return folder / "run", summary


def test_it_samples_alone_and_everything_works_in_latents(later, autoencoder):
    model = load_family(later[0])
    assert model.shape == (4, 1, 1)
    given = {"condition": [0, 1, 2], "seeds": [1, 2, 3]}
    made = model.sample(3, **given)
    assert made.shape == (3, 1, 8, 8)
    assert made.abs().max() <= 1
    assert float((made[0] - made[1]).abs().max()) > 1e-3
    for sampler in ("ancestral", "dpmpp_2m"):
        assert model.sample(3, sampler=sampler, guidance=3.0, **given).isfinite().all()
    shapes = []

    def still(x, x0, alpha, sigma):
        shapes.append(tuple(x0.shape))
        return torch.zeros_like(x0)

    held = model.sample(3, guide=still, **given)
    zero = load_family(autoencoder).decode(torch.zeros(3, 4))
    torch.testing.assert_close(held, zero, atol=1e-5, rtol=1e-5)
    assert set(shapes) == {(3, 4, 1, 1)}


def test_what_is_stored(later, autoencoder):
    content, vae = read_checkpoint(later[0] / "checkpoints" / "last.ckpt"), load_family(autoencoder)
    kept = content["hyper_parameters"]["first_stage"]
    assert kept["family"] == "aigc.models.vae.VAE"
    assert str(autoencoder) not in str(content["hyper_parameters"])
    part = {name: value for name, value in content["state_dict"].items() if name.startswith("first_stage.")}
    averaged = vae.ema.network.state_dict()
    for name, value in averaged.items():
        assert torch.equal(part[f"first_stage.family.ema.network.{name}"], value), "frozen: as it was"
        shared = part[f"first_stage.family.network.{name}"].untyped_storage().data_ptr()
        assert shared == part[f"first_stage.family.ema.network.{name}"].untyped_storage().data_ptr(), "stored once"
    moved = len(content["optimizer_states"][0]["state"])
    model = load_family(later[0])
    assert moved == len(list(model.network.parameters()))
    assert not any(name.startswith("ema.network.first_stage") for name in content["state_dict"])
    assert not any(parameter.requires_grad for parameter in model.first_stage.parameters())
    assert not model.train().first_stage.family.training


def test_latents_have_unit_variance_in_the_first_batch(later):
    model = load_family(later[0])
    assert float(model.first_stage.scale) > 0
    assert float(model.sigma_data()) == pytest.approx(1, abs=0.15)
    images = torch.rand(64, 1, 8, 8) * 2 - 1
    space = LatentSpace(model.first_stage.description(), 1, (8, 8))
    space.load_state_dict({k: v for k, v in model.first_stage.state_dict().items() if k != "scale"}, strict=False)
    first = space.encode(images, measure=True)
    assert float(first.std(correction=0)) == pytest.approx(1, rel=1e-4)
    again = space.encode(images * 0.5, measure=True)
    torch.testing.assert_close(again, space.encode(images * 0.5))
    torch.testing.assert_close(space.decode(first), space.family.decode(space.family.encode(images)))


def test_its_fingerprint_takes_the_paths_place(later, autoencoder, tmp_path):
    folder, summary = later
    model = load_family(folder)
    assert summary["parts"] == {"first_stage": model.first_stage.fingerprint}
    assert model.first_stage.fingerprint == state_sha256(model.first_stage.family.state_dict())
    elsewhere = trained(autoencoder / "checkpoints" / "last.ckpt", tmp_path / "same")
    assert elsewhere["signature"] == summary["signature"]
    other = tmp_path / "other"
    fit(compose_train(*TINY["vae"], *QUICK, "condition=none", "budget.images=800"), other)
    assert trained(other, tmp_path / "different", 800)["parts"] != summary["parts"]
    plain = OmegaConf.to_container(configured(autoencoder, 1600), resolve=True)
    assert signature(plain, {"first_stage": "a"}) != signature(plain, {"first_stage": "b"})


def test_without_a_first_stage_its_options_do_not_count():
    with_options = {"model": {"lr": 1, "first_stage": None, "latent_network": {"width": 3}}, "seed": 1}
    model = Diffusion.__new__(Diffusion)
    object.__setattr__(model, "first_stage", None)
    assert signature(with_options, model.fingerprints()) == signature({"model": {"lr": 1}, "seed": 1})


def test_it_goes_on_without_the_earlier_run_as_if_it_had_never_stopped(autoencoder, tmp_path):
    shutil.copytree(autoencoder, tmp_path / "vae")
    trained(tmp_path / "vae", tmp_path / "whole", 1600)
    before = trained(tmp_path / "vae", tmp_path / "broken", 800)
    shutil.rmtree(tmp_path / "vae")
    words = ["budget.images=1600"]
    cfg = resumed_config(compose_train(*TINY["diffusion"], *QUICK, *words), tmp_path / "broken", words)
    after = fit(cfg, tmp_path / "broken", resumed=True)
    assert after["images"] == 1600
    assert (after["signature"], after["parts"]) == (before["signature"], before["parts"])
    whole, broken = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for key in ("state_dict", "optimizer_states", "hyper_parameters"):
        assert_same(whole[key], broken[key], key)
    assert read_summary(tmp_path / "broken")["status"] == "finished"


def test_without_a_condition_autoguidance_works_in_latents(autoencoder, tmp_path):
    cfg = configured(autoencoder, 800, "condition=none")
    fit(cfg, tmp_path)
    model = load_family(tmp_path)
    plain, guided = (model.sample(2, seeds=[1, 2], autoguidance=w) for w in (1.0, 4.0))
    assert float((plain - guided).abs().max()) > 1e-5


# ---- refusals ----


def test_a_run_that_does_not_exist_or_makes_no_latents_is_refused(autoencoder, tmp_path):
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint"):
        fit(configured(tmp_path / "nowhere", 800), tmp_path / "a")
    fit(compose_train(*TINY["diffusion"], *QUICK, "condition=none", "budget.images=320"), tmp_path / "pixels")
    with pytest.raises(UserError, match=r"holds a Diffusion, which .*: model\.first_stage needs a run of .*\bvae\b"):
        fit(configured(tmp_path / "pixels", 800), tmp_path / "b")
    with pytest.raises(UserError, match="on 8 x 8 images with 1 channel, these are 16 x 16 images with 3 channels:"):
        fit(configured(autoencoder, 800, "data=shapes", "data.size=16", "data.train=100", "data.heldout=20",
                       "data.validation=20", "data.test=20"), tmp_path / "c")


@pytest.mark.parametrize("description", [
    {"family": "os.system", "sha256": "x", "hyper_parameters": {}},
    {"family": "torch.nn.Linear", "sha256": "x", "hyper_parameters": {}},
    {"family": "aigc.models.vae.VAE"},
])
def test_a_description_from_a_stranger_is_read_with_care(description):
    with pytest.raises(UserError, match=r"model\.first_stage"):
        LatentSpace(description, 1, (8, 8))
