"""Imagen's super-resolution: one resize, noise on the small picture, crops, a level that is told, its use."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from aigc.errors import UserError
from aigc.images.pictures import resize
from aigc.images.streams import samples
from aigc.models.checkpoints import read_checkpoint
from aigc.models.imagen_sr import SuperResolution
from aigc.runs.resume import resumed_config
from aigc.training.fit import fit
from tests.conftest import compose_train
from tests.families import words
from tests.models.test_diffusion import TINY, batch_of, recipe, wake
from tests.test_resume import assert_same

QUICK = [*words("imagen_sr"), "model.decay_from=1.0", "data=digits", "batch_size=32", "metrics=none",
         "~callbacks.samples", "log_every=7"]


def tiny(name="imagen_sr", *, size=(16, 16), channels=1, condition="none", awake=True, **overrides):
    torch.manual_seed(0)
    numbers = recipe(name)
    numbers["network"] = {**numbers["network"], **TINY, "blocks": 1, **overrides.pop("network", {})}
    given = {"crop": 8, **overrides}
    model = SuperResolution(channels, size, classes=3 if condition == "label" else None, condition=condition,
                            **{**numbers, **given})
    if awake:
        wake(model)
    return model.eval()


class Watched(nn.Module):
    """A network that keeps what it is given."""

    encoder = None

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, clock, condition, drop=None, second=None, picture=None):
        self.calls.append({"x": x, "clock": clock, "level": second, "picture": picture, "condition": condition})
        return torch.zeros_like(x)


def watched(**options):
    model = tiny(awake=False, **options)
    model.network = model.ema = Watched()
    return model, model.ema.calls


# float32, one CPU: first loss and validation loss of the tiny network
GOLDEN = {"none": (1.560399, 1.458305), "label": (1.448156, 1.386787)}


@pytest.mark.parametrize("condition", GOLDEN)
def test_golden_losses(condition):
    model, batch = tiny(condition=condition), batch_of(size=(16, 16))
    torch.manual_seed(3)
    trained = float(model.training_step(batch, 0)["loss"].detach())
    held_out = float(model.validation_step(batch, 0)["loss"])
    assert (trained, held_out) == pytest.approx(GOLDEN[condition], abs=1e-4)


# ---- what the network sees ----


@pytest.mark.parametrize(("factor", "size", "small"), [
    (2, (16, 16), (8, 8)), (4, (17, 30), (5, 8)), (3, (9, 7), (3, 3)),
])
def test_training_and_sampling_have_the_same_resize(factor, size, small):
    model, calls = watched(factor=factor, size=size, crop=0, augmentation=0.0, level=0.0, levels=[])
    images = batch_of(4, size=size)["image"]
    torch.testing.assert_close(model.small(images), resize(images, small))       # of the rest of the program, too
    model.training_step({"image": images}, 0)
    model.fakes({"image": images}, seeds=range(4), steps=1, sampler="euler")
    trained, sampled = calls
    assert trained["picture"].shape == images.shape and torch.equal(trained["picture"], sampled["picture"])
    spread = float(model.sigma_data())
    torch.testing.assert_close(trained["picture"] * spread, nn.functional.interpolate(
        resize(images, small), size=size, mode="bicubic", antialias=True), atol=1e-5, rtol=1e-5)


def test_noise_is_on_the_small_picture_at_a_level_of_its_own_which_the_network_is_told():
    model, calls = watched(size=(64, 64), crop=0, augmentation=0.6, sigma_data=0.5)
    images = torch.full((200, 1, 64, 64), 0.8)
    torch.manual_seed(0)
    model.training_step({"image": images}, 0)
    level, picture = calls[0]["level"], calls[0]["picture"]
    assert level.shape == (200,) and 0 <= float(level.min()) < 0.02 and 0.58 < float(level.max()) <= 0.6
    assert float(level.mean()) == pytest.approx(0.3, abs=0.03), "uniform"
    alpha, sigma = (level * math.pi / 2).cos(), (level * math.pi / 2).sin()
    scale = ((alpha * 0.5) ** 2 + sigma**2).rsqrt()
    torch.testing.assert_close(picture.mean((1, 2, 3)), scale * alpha * 0.8, atol=0.12, rtol=0)
    noise = nn.functional.interpolate(torch.randn(1, 1, 32, 32), size=(64, 64), mode="bicubic", antialias=True)
    deviation = picture.std((1, 2, 3)) / (scale * sigma)
    assert float(deviation[level > 0.1].mean()) == pytest.approx(float(noise.std()), rel=0.03), "noise of 32 x 32"


def test_the_answer_does_not_depend_on_the_level_at_the_start_and_does_later():
    for awake, expected in ((False, 0.0), (True, 1e-3)):
        model = tiny(awake=False)
        for parameter in model.ema.network.denoiser.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        if awake:
            nn.init.normal_(model.ema.network.step[-1].weight, std=0.3)
        x, picture = torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
        clock = torch.tensor([0.2, 0.7])
        low, high = (model.ema(x, clock, None, None, torch.full((2,), level), picture) for level in (0.0, 0.4))
        apart = float((low - high).abs().max())
        assert apart == 0 if expected == 0 else apart > expected
        other = model.ema(x, clock, None, None, torch.zeros(2), picture + 1)
        assert float((other - low).abs().max()) > 1e-3, "it sees the picture"


def test_it_learns_from_crops_and_samples_whole_pictures_of_any_size():
    model, calls = watched(size=(24, 32), crop=12, augmentation=0.0, level=0.0, levels=[], channels=3)
    assert model.grid == 2
    plane = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")) / 16 - 1
    images = torch.cat([plane, torch.zeros(1, 24, 32)]).expand(64, -1, -1, -1)
    cropped, again = model.cropped(images, images)
    assert cropped.shape == (64, 3, 12, 12) and torch.equal(cropped, again)
    corners = (16 * (cropped[:, :2, 0, 0] + 1)).round().long()
    assert not (corners % model.grid).any() and len(corners.unique(dim=0)) > 20
    assert corners[:, 0].max() <= 12 and corners[:, 1].max() <= 20
    for crop, (top, left) in zip(cropped, corners.tolist(), strict=True):
        assert torch.equal(crop, images[0, :, top : top + 12, left : left + 12])
    model.training_step({"image": images}, 0)
    assert calls[0]["x"].shape == calls[0]["picture"].shape == (64, 3, 12, 12)
    made = tiny(size=(24, 32), crop=12, channels=3).upscale(torch.rand(2, 3, 11, 5), seeds=[1, 2], steps=2)
    assert made.shape == (2, 3, 22, 10) and float(made.abs().max()) <= 1
    assert model.cropped(images[:, :, :8])[0].shape == (64, 3, 8, 12), "no side is longer than the image"


# ---- what the network adds to ----


@pytest.mark.parametrize("name", ["diffusion", "ddpm", "edm"])
@pytest.mark.parametrize("level", [0.0, 0.4])
def test_the_estimate_is_that_of_gaussians_and_its_error_has_the_deviation_that_it_says(name, level):
    process = {key: recipe(name)[key] for key in ("process", "processes", "prediction")}
    model = tiny(sigma_data=0.5, detail=0.2, awake=False, **process)
    generator = torch.Generator().manual_seed(0)
    small, lacking, eps, noise = torch.randn(4, 400, 1, 16, 16, generator=generator) * torch.tensor(
        [0.5, 0.2, 1.0, 1.0])[:, None, None, None, None]
    images = small + lacking
    t, levels = model.process.quantile(torch.linspace(0.1, 0.9, 400)), torch.full((400,), level)
    alpha, sigma = (c[:, None, None, None] for c in model.process.scales(t))
    a = level * math.pi / 2
    picture = math.cos(a) * small + math.sin(a) * noise
    mean, deviation = model.estimate(alpha * images + sigma * eps, t, levels, picture)
    unit = (images - mean) / deviation
    assert float(unit.square().mean()) == pytest.approx(1, abs=0.02)
    assert float((unit * mean).mean()) == pytest.approx(0, abs=0.01), "nothing linear is left to find"


def test_what_a_small_image_lacks_is_measured_on_the_first_images():
    model, images = tiny(sigma_images=24, crop=0), batch_of(16, size=(16, 16))["image"]
    assert float(model.detail()) == pytest.approx(0.1)
    for _ in range(4):
        model.training_step({"image": images}, 0)
    apart = resize(images, (8, 8))
    lacking = nn.functional.interpolate(apart, size=(16, 16), mode="bicubic", antialias=True) - images
    assert float(model.detail()) == pytest.approx(float(lacking.square().mean().sqrt()), rel=1e-4)
    assert model.lacking.tolist()[0] == 32 and "lacking" in model.state_dict()
    assert float(tiny(detail=0.3).detail()) == pytest.approx(0.3)


def test_untrained_it_is_enlargement_by_the_resize_with_noise_of_the_detail_that_is_lacking():
    model = tiny(awake=False, sigma_data=0.5, detail=0.1, size=(32, 32))
    small = 0.5 * batch_of(8, size=(16, 16))["image"]
    made = model.upscale(small, seeds=range(8), level=0.0, steps=20, spacing="karras")
    apart = made - resize(small, (32, 32))
    assert float(apart.mean()) == pytest.approx(0, abs=1e-3)
    assert float(apart.std()) == pytest.approx(0.1, rel=0.07), "20 steps are not many"


# ---- sampling ----


def test_a_picture_depends_on_itself_its_seed_and_the_options_alone():
    model = tiny(condition="label")
    small = batch_of(4, size=(8, 8))["image"]
    given = {"condition": [0, 1, 2, 0], "seeds": [5, 6, 7, 8], "steps": 2}
    whole = model.upscale(small, **given)
    torch.testing.assert_close(model.upscale(small[2:3], condition=[2], seeds=[7], steps=2), whole[2:3])
    for other in ({"seeds": [1, 2, 3, 4]}, {"level": 0.4}, {"condition": [1, 2, 0, 1]}, {"condition": None}):
        assert float((model.upscale(small, **{**given, **other}) - whole).abs().amax((1, 2, 3)).min()) > 1e-4, other
    torch.testing.assert_close(model.upscale(small, **given, level=0.1), whole)        # the recipe's
    free = model.upscale(small, **{**given, "condition": None})
    torch.testing.assert_close(model.upscale(small, **given, guidance=0.0), free)
    guided = model.upscale(small, **given, guidance=3.0, guide="dynamic_threshold")
    assert float((guided - whole).abs().max()) > 1e-3


def test_what_is_scored_is_the_image_made_small_and_enlarged_under_its_own_label():
    class Data:
        ranges: dict = {}
        classes = 3

        def count(self, split):
            return 6

        def eval_dataloader(self, split, *, limit, batch_size, rank, world):
            images = (batch_of(6, size=(16, 16))["image"] * 127.5 + 127.5).round().to(torch.uint8)
            yield {"image": images[:limit], "label": torch.tensor([2, 2, 2, 1, 0, 0])[:limit],
                   "index": torch.arange(6)[:limit]}

        def prepare(self, batch, device):
            return {**batch, "image": batch["image"].float() / 127.5 - 1}

    model = tiny(condition="label")
    ((_, batch, made),) = samples(model, Data(), "validation", 6, batch_size=6, seed=0)
    assert batch["label"].tolist() == [2, 2, 2, 1, 0, 0], "not those of a balanced draw"
    ((_, _, other),) = samples(model, Data(), "validation", 6, batch_size=6, seed=0, options={"level": 0.5})
    assert made.shape == other.shape == (6, 1, 16, 16) and not torch.equal(made, other)
    panel = model.panels({**Data().prepare(batch, "cpu")})["upscaled"]
    assert panel.shape == (6, 1, 16, (len(model.hparams.levels) + 2) * 16)
    assert not model.can("sample") and not model.can("denoise") and model.can("upscale") and model.makes_images()


@pytest.mark.parametrize(("options", "sentence"), [
    ({"augmentation": 1.5}, "model.augmentation=1.5 is no level of noise: give a number between 0 and 1"),
    ({"level": 0.6}, r"level=0.6 is no level .* between 0 and 0.5 \(model.augmentation\)"),
    ({"levels": [0.0, 0.7]}, "level=0.7 is no level"),
    ({"augmentation": 0.0}, "level=0.1 is no level of noise that this model learned from"),
    ({"factor": 1}, "model.factor must be a whole number of at least 2, not 1"),
    ({"factor": 16}, "model.factor=16 leaves less than 2 pixels of images of 16 x 16"),
    ({"crop": -1}, "model.crop must be a whole number of at least 0"),
    ({"detail": 0.0}, "model.detail=0.0 is neither a positive number nor auto: give one of them"),
    ({"detail": "much"}, "model.detail=much is neither"),
    ({"denoiser": "dit"}, "model.denoiser=dit has no place in imagen_sr, which enlarges pixels by a U-Net"),
    ({"first_stage": "runs/some"}, "model.first_stage=runs/some has no place in imagen_sr"),
    ({"weighting": "min_snr"}, "model.weighting=min_snr has no place .* weighs errors in its own way: leave it out"),
])
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**options)


def test_mistakes_in_sampling_are_one_sentence():
    model = tiny()
    for options, sentence in (({"level": 0.9}, "level=0.9 is no level"), ({"level": True}, "level=True is no level"),
                              ({"levl": 0.1}, "no option 'levl'"), ({"condition": [1]}, "takes no labels")):
        with pytest.raises(UserError, match=sentence):
            model.upscale(torch.zeros(1, 1, 8, 8), **options)
    with pytest.raises(UserError, match="makes small images larger: it cannot make them from noise"):
        model.sample(1)


# ---- what it is for ----


def rectangles(n, side=16):
    """Flat rectangles on a flat ground: their edges are what bicubic enlargement loses."""
    grid = torch.arange(side)
    low, length = torch.randint(1, side // 2, (2, n, 1)), torch.randint(side // 3, side // 2, (2, n, 1))
    inside = (grid >= low) & (grid < low + length)
    mask = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    figure, ground = 0.4 + 0.4 * torch.rand(2, n, 1, 1, 1)
    return torch.where(mask, figure, -ground)


def psnr(made, images):
    return float((10 * (4 / (made - images).square().mean((1, 2, 3))).log10()).mean())


def test_trained_it_beats_bicubic_by_3_db_and_its_result_made_small_is_its_input():
    model = tiny(awake=False, crop=12, warmup_images=0, decay_from=1.0, level=0.0, levels=[],
                 network={"width": 16, "multipliers": [1, 2]})
    optimizer, steps = model.configure_optimizers(), 80
    rate = optimizer.param_groups[0]["lr"]
    for k in range(steps):
        loss = model.training_step({"image": rectangles(32)}, 0)["loss"]
        optimizer.param_groups[0]["lr"] = rate * min(1, 2 * (1 - k / steps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        optimizer.step()
    model.ema.network.load_state_dict(model.network.state_dict())
    images = rectangles(64)
    small = model.small(images)
    made, bicubic = model.upscale(small, seeds=range(64), steps=4), resize(small, (16, 16))
    assert psnr(made, images) > psnr(bicubic, images) + 3
    assert psnr(model.small(made), small) > 30


# ---- runs ----


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path):
    def configured(images):
        return compose_train(*QUICK, "condition=label", f"budget.images={images}", "budget.minutes=null")

    fit(configured(256), tmp_path / "whole")
    (tmp_path / "broken" / ".hydra").mkdir(parents=True)
    OmegaConf.save(configured(128), tmp_path / "broken" / ".hydra" / "config.yaml")
    fit(configured(128), tmp_path / "broken")
    after = fit(resumed_config(configured(256), tmp_path / "broken", ["budget.images=256"]), tmp_path / "broken",
                resumed=True)
    assert after["images"] == 256
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for key in ("state_dict", "optimizer_states"):
        assert_same(one[key], two[key], key)
