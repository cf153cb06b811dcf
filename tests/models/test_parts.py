"""A trained run inside another: frozen, stored once, known by its weights, and needed no more once training began."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.diffusion import Diffusion
from aigc.models.latent_diffusion import LatentDiffusion
from aigc.models.parts import LatentSpace
from aigc.models.stylegan2 import StyleGAN2
from aigc.models.vae import VAE
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
    middle = load_family(autoencoder).decode(model.first_stage.mean.view(1, 4).expand(3, -1))
    torch.testing.assert_close(held, middle, atol=1e-5, rtol=1e-5)
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


def unmeasured(model, images=4096):
    """The first stage of a model before anything is measured."""
    space = LatentSpace(model.first_stage.description(), 1, (8, 8), images=images)
    family = {k: v for k, v in model.first_stage.state_dict().items() if k.startswith("family.")}
    space.load_state_dict(family, strict=False)
    return space


def test_latents_of_the_first_images_have_mean_zero_in_each_channel_and_variance_one(later):
    model = load_family(later[0])
    assert float(model.first_stage.scale) > 0 and int(model.first_stage.moments[0]) == 64      # sigma_images=64
    assert float(model.sigma_data()) == pytest.approx(1, abs=0.15)
    images = torch.rand(96, 1, 8, 8) * 2 - 1
    space = unmeasured(model, images=64)
    plain = space.family.encode(images)
    torch.testing.assert_close(space.encode(images).view(96, 4), plain)                        # nothing is known yet
    for part in images[:64].split(16):
        space.encode(part, measure=True)
    again = space.encode(images * 0.5, measure=True)                                           # more than 64: not seen
    torch.testing.assert_close(again, space.encode(images * 0.5))
    first = space.encode(images[:64])
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    assert float(first.square().mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(first.flatten(1) / first.std(), (plain - plain[:64].mean(0))[:64] / first.std() *
                               space.scale, atol=1e-4, rtol=1e-4)                              # one scale for all
    wild = 5 * torch.randn(8, 4, 1, 1)
    torch.testing.assert_close(space.decode(wild), space.family.decode((wild / space.scale + space.mean).flatten(1)))
    torch.testing.assert_close(space.decode(first), space.family.decode(plain[:64]), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        linear = unmeasured(model)
        linear.family.encode = linear.family.decode = lambda x: x.flatten(1)[:, :4]
        linear.encode(images, measure=True)
        torch.testing.assert_close(linear.decode(linear.encode(images)), images.flatten(1)[:, :4])  # undone exactly


def test_checkpoints_with_a_scale_alone_keep_it(later):
    """Older runs divided by the standard deviation of the first batch, and subtracted nothing."""
    model = load_family(later[0])
    state = {k: v.clone() for k, v in model.state_dict().items()
             if k not in ("first_stage.mean", "first_stage.moments")}
    state["first_stage.scale"] = torch.tensor(0.7)
    again = Diffusion(**model.hparams)
    again.load_state_dict(state)
    images, space = torch.rand(8, 1, 8, 8) * 2 - 1, again.first_stage
    plain = space.family.encode(images).view(8, 4, 1, 1)
    assert torch.equal(space.encode(images, measure=True), plain * 0.7)
    assert torch.equal(space.decode(plain), space.family.decode((plain / 0.7).view(8, 4)))
    state["first_stage.scale"] = torch.tensor(0.0)                          # of a run that had not begun
    again.load_state_dict(state)
    again.first_stage._measuring = True
    assert float(again.first_stage.encode(images, measure=True).square().mean()) == pytest.approx(1, rel=1e-4)


def test_its_record_has_the_first_stages_time_and_warns_of_another_split(later, autoencoder, tmp_path, caplog):
    whole = read_summary(autoencoder)
    stage = later[1]["stages"]["first_stage"]
    assert stage == {"family": "VAE", "images": 1600, "seconds": whole["seconds"],
                     "data": {"name": "digits", "fingerprint": whole["data"]["fingerprint"]}}
    assert load_family(later[0]).first_stage.description()["trained"] == {k: stage[k] for k in stage if k != "family"}
    trained(autoencoder, tmp_path / "same", 320)
    assert not [r for r in caplog.records if "another split" in r.message]
    trained(autoencoder, tmp_path / "other", 320, "data.split_seed=1")
    (said,) = [r.message for r in caplog.records if "another split" in r.message]
    assert said.startswith("model.first_stage was trained on another split of digits: images that are held out here")


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


def test_a_family_that_needs_a_trained_run_is_refused_without_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"LatentDiffusion stands on a trained run, and model\.first_stage names none: "
                                        r"train an autoencoder .*model=autoencoder .* model\.first_stage=runs/first"):
        fit(compose_train("model=latent_diffusion", *QUICK, "data=mnist", "data.root=/nowhere"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    options = OmegaConf.to_container(compose_train("model=latent_diffusion").model)
    options.pop("_target_")
    with pytest.raises(UserError, match=r"model\.first_stage names none"):
        LatentDiffusion(1, (8, 8), **options)


def test_a_run_that_does_not_exist_or_makes_no_latents_is_refused(autoencoder, tmp_path):
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint"):
        fit(configured(tmp_path / "nowhere", 800), tmp_path / "a")
    fit(compose_train(*TINY["diffusion"], *QUICK, "condition=none", "budget.images=320"), tmp_path / "pixels")
    with pytest.raises(UserError, match=r"holds a Diffusion, which .*: model\.first_stage needs a run of .*\bvae\b"):
        fit(configured(tmp_path / "pixels", 800), tmp_path / "b")
    with pytest.raises(UserError, match="on 8 x 8 images with 1 channel, these are 16 x 16 images with 3 channels:"):
        fit(configured(autoencoder, 800, "data=shapes", "data.size=16", "data.train=100", "data.heldout=20",
                       "data.validation=20", "data.test=20"), tmp_path / "c")


def test_a_run_that_searches_for_latents_is_no_first_stage(autoencoder, monkeypatch):
    assert StyleGAN2.encodes_by_search and StyleGAN2.can("encode")
    monkeypatch.setattr(VAE, "encodes_by_search", True)
    with pytest.raises(UserError, match=r"model\.first_stage holds a VAE, which searches .* \(model=autoencoder\)"):
        LatentSpace(str(autoencoder), 1, (8, 8))


@pytest.mark.parametrize("description", [
    {"family": "os.system", "sha256": "x", "hyper_parameters": {}},
    {"family": "torch.nn.Linear", "sha256": "x", "hyper_parameters": {}},
    {"family": "aigc.models.vae.VAE"},
])
def test_a_description_from_a_stranger_is_read_with_care(description):
    with pytest.raises(UserError, match=r"model\.first_stage"):
        LatentSpace(description, 1, (8, 8))
