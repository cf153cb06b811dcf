"""The diffusion family: golden losses, guidance, seeds, sizes, checkpoints, the measured sigma_data."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.samplers import SAMPLERS
from aigc.errors import UserError
from aigc.models.diffusion import Diffusion
from aigc.runs.progress import Progress

CONF = Path(__file__).parents[2] / "conf" / "model"
TINY = {"width": 8, "multipliers": [1, 2], "vector": 16, "patch": 1}
TINY_DIT = {"width": 16, "layers": 2, "heads": 2, "patch": 2}


def recipe(name="diffusion"):
    """The numbers of a recipe, as Hydra would compose them."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    if name != "diffusion":
        config = OmegaConf.merge(OmegaConf.load(CONF / "diffusion.yaml"), config)
    numbers = OmegaConf.to_container(config.model)
    numbers.pop("_target_")
    return numbers


def wake(model):
    """Gives layers that start at zero values: without them every test would see a constant."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.data.normal_(0, 0.2, generator=generator)
    model.ema.network.load_state_dict(model.network.state_dict())


def tiny(name="diffusion", *, size=(8, 8), channels=1, condition="label", awake=True, **overrides):
    torch.manual_seed(0)
    numbers = recipe(name)
    numbers["network"] = {**numbers["network"], **TINY}
    numbers["dit"] = {**numbers["dit"], **TINY_DIT}
    model = Diffusion(
        channels, size, classes=3 if condition == "label" else None, condition=condition, **{**numbers, **overrides}
    )
    if awake:
        wake(model)
    return model.eval()


def batch_of(n=16, *, size=(8, 8), channels=1):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(n, channels, *size, generator=generator) * 2 - 1
    return {"image": images, "label": torch.arange(n) % 3, "index": torch.arange(n)}


# float32, one CPU: first loss and validation loss of the tiny network
GOLDEN = {"diffusion": (1.665827, 1.796404), "ddpm": (1.185212, 1.185831), "edm": (1.486014, 1.472586),
          "dit": (2.187016, 2.168093)}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(name):
    model, batch = tiny(name), batch_of()
    torch.manual_seed(3)
    trained = float(model.training_step(batch, 0)["loss"].detach())
    held_out = float(model.validation_step(batch, 0)["loss"])
    assert (trained, held_out) == pytest.approx(GOLDEN[name], abs=1e-4)


def test_loss_of_a_silent_network_is_the_mean_square_of_its_target():
    model, batch = tiny(awake=False), batch_of(256)
    u, noise = torch.rand(256), torch.randn(256, 1, 8, 8)
    errors = model.errors(model.network, batch["image"], batch["label"], u=u, noise=noise)
    torch.testing.assert_close(errors, (batch["image"] - noise).square().mean((1, 2, 3)))


def test_validation_loss_is_the_same_in_any_batch():
    model, batch = tiny(), batch_of(12)
    whole = model.validation_step(batch, 0)["loss"]
    parts = [model.validation_step({k: v[i : i + 4] for k, v in batch.items()}, 0)["loss"] for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", GOLDEN)
def test_learns_two_constant_images(name):
    model = tiny(name, awake=False, warmup_images=0, decay_from=1.0, lr=5e-3)
    optimizer = model.configure_optimizers()
    labels = torch.arange(32) % 2
    batch = {"image": (labels * 1.6 - 0.8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), "label": labels}
    torch.manual_seed(0)
    for step in range(1, 121):
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        model.configure_gradient_clipping(optimizer)
        optimizer.step()
        model.ema.update(model.network, 32 * step, 32)
    made = model.sample(4, condition=[0, 0, 1, 1], seeds=range(4), guidance=1, steps=8)
    torch.testing.assert_close(made[:2].mean(), torch.tensor(-0.8), atol=0.15, rtol=0)
    torch.testing.assert_close(made[2:].mean(), torch.tensor(0.8), atol=0.15, rtol=0)


# ---- sampling ----


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_fits_any_process_and_image_k_ignores_its_batch(name, sampler):
    model = tiny(name)
    options = {"sampler": sampler, "steps": 4, "guidance": 2.0}
    together = model.sample(3, condition=[0, 1, 2], seeds=[5, 6, 7], **options)
    alone = torch.cat([model.sample(1, condition=[k], seeds=[5 + k], **options) for k in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.shape == (3, 1, 8, 8)
    assert together.abs().max() <= 1
    assert float((together[0] - together[1]).abs().max()) > 1e-2


def test_noise_of_every_step_belongs_to_its_image():
    model = tiny()
    options = {"condition": [0, 0], "sampler": "ancestral", "steps": 5}
    first, again = (model.sample(2, seeds=[1, 2], **options) for _ in range(2))
    assert torch.equal(first, again)
    swapped = model.sample(2, seeds=[2, 1], **options)
    torch.testing.assert_close(swapped.flip(0), first, atol=1e-5, rtol=1e-5)


def test_without_seeds_the_global_generator_decides():
    model = tiny()
    torch.manual_seed(0)
    first = model.sample(2, steps=2)
    second = model.sample(2, steps=2)
    torch.manual_seed(0)
    assert torch.equal(model.sample(2, steps=2), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", GOLDEN)
def test_guidance_is_u_plus_w_times_the_difference(name):
    model = tiny(name)
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.7)
    at = {w: model.denoise(x, alpha, sigma, labels=labels, guidance=w) for w in (0.0, 1.0, 2.5)}
    torch.testing.assert_close(at[0.0], model.denoise(x, alpha, sigma))
    torch.testing.assert_close(at[2.5], at[0.0] + 2.5 * (at[1.0] - at[0.0]), atol=1e-5, rtol=1e-5)
    assert float((at[1.0] - at[0.0]).abs().max()) > 1e-3
    outside = model.denoise(x, alpha, sigma, labels=labels, guidance=2.5, guidance_interval=(2.0, 9.0))
    torch.testing.assert_close(outside, at[1.0])


def test_guidance_acts_on_every_channel():
    """Peebles and Xie's code guides the first three of four only."""
    model = tiny("dit", channels=4)
    x, labels, alpha, sigma = torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 2]), torch.tensor(0.6), torch.tensor(0.7)
    at = [model.denoise(x, alpha, sigma, labels=labels, guidance=w) for w in (1.0, 3.0)]
    assert ((at[0] - at[1]).abs().amax((0, 2, 3)) > 1e-3).all()
    assert model.network.encoder.table.num_embeddings == 3 + 1                    # the null row is `classes`, 3


def test_guidance_off_costs_one_evaluation():
    model = tiny()
    sizes = []
    model.ema.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    for guidance in (1.0, 0.0, 1.5):
        model.sample(
            2, condition=[0, 1], seeds=[0, 1], sampler="euler", steps=3, guidance=guidance, guidance_interval=None
        )
    assert sizes == [2, 2, 2, 2, 2, 2, 4, 4, 4]


def test_denoiser_is_the_same_in_every_frame():
    model = tiny()
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 1])
    flow = model.denoise(x, torch.tensor(0.4), torch.tensor(0.6), labels=labels)
    exploding = model.denoise(x / 0.4, torch.tensor(1.0), torch.tensor(1.5), labels=labels)
    torch.testing.assert_close(flow, exploding, atol=1e-5, rtol=1e-5)


def test_denoiser_undoes_the_parametrisation():
    model = tiny("ddpm")
    t = torch.full((2,), 0.3)
    alpha, sigma = model.process.scales(t[:1])
    x = torch.randn(2, 1, 8, 8)
    prediction = model.predict(model.ema, x, t, None)
    expected = Parametrisation("v", 0.5).x0(prediction, x, alpha, sigma)
    torch.testing.assert_close(model.denoise(x, alpha[0], sigma[0]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [((17, 23), 1), ((8, 8), 3), ((5, 4), 2)])
@pytest.mark.parametrize("condition", ["none", "label"])
def test_odd_sizes_train_and_sample(size, channels, condition):
    model = tiny(size=size, channels=channels, condition=condition)
    loss = model.training_step(batch_of(4, size=size, channels=channels), 0)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert model.sample(2, seeds=[0, 1], steps=2).shape == (2, channels, *size)


def test_bf16_sampling_stays_near_float32():
    model = tiny()
    exact = model.sample(4, condition=[0, 1, 2, 0], seeds=range(4), steps=4)
    near = model.sample(4, condition=[0, 1, 2, 0], seeds=range(4), steps=4, precision="bf16")
    assert near.dtype == torch.float32
    assert 0 < float((exact - near).abs().mean()) < 0.02


# ---- training state ----


def test_conditions_are_dropped_per_sample():
    model = tiny(drop=0.4)
    seen = []
    model.network.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["drop"]), with_kwargs=True
    )
    torch.manual_seed(0)
    model.training_step(batch_of(2000), 0)
    assert seen[0].shape == (2000,)
    assert float(seen[0].float().mean()) == pytest.approx(0.4, abs=0.03)


def test_sigma_data_is_measured_on_the_first_images_only():
    model = tiny(sigma_images=24)
    assert float(model.sigma_data()) == 0.5
    batch = batch_of(16)
    for _ in range(2):
        model.training_step(batch, 0)
    assert float(model.sigma_data()) == pytest.approx(float(batch["image"].std(correction=0)), rel=1e-5)
    model.training_step({**batch, "image": batch["image"] * 0.1}, 0)
    assert float(model.sigma_data()) == pytest.approx(float(batch["image"].std(correction=0)), rel=1e-5)
    assert int(model.moments[0]) == 32
    assert float(tiny(sigma_data=0.7).sigma_data()) == pytest.approx(0.7)


@pytest.mark.parametrize(("name", "moved"), [("diffusion", {"conv1", "conv2", "0", "1", "skip"}),
                                             ("dit", {"qkv", "out", "hidden", "back"})])
def test_muon_moves_the_matrices_between_the_first_layer_and_the_last(name, moved):
    model = tiny(name, network={**recipe()["network"], **TINY, "width": 16}, muon_lr=0.02)
    optimizer, before = model.configure_optimizers(), {n: p.clone() for n, p in model.network.named_parameters()}
    theirs = {n for n, p in model.network.named_parameters() if any(p is m for m in optimizer.matrices)}
    assert {n.split(".")[-2] for n in theirs} == moved and not any(n.startswith("dit.out") for n in theirs)
    model.training_step(batch_of(), 0)["loss"].backward()
    optimizer.step()
    steps = {n: float((p - before[n]).detach().norm()) for n, p in model.network.named_parameters() if n in theirs}
    wide = {n: max(1.0, p.shape[0] / p[0].numel()) ** 0.5 * min(p.shape[0], p[0].numel()) ** 0.5 * 0.02
            for n, p in model.network.named_parameters() if n in theirs}
    assert all(0.6 < steps[n] / wide[n] < 1.25 for n in theirs), "every direction alike"


@pytest.mark.parametrize("scale", [1, 1024])
def test_gradients_are_clipped_at_the_recipes_norm_also_where_fp16_has_scaled_them(scale):
    model = tiny(clip=0.01, muon_lr=0.0)
    optimizer = model.configure_optimizers()
    assert optimizer.param_groups[0]["fused"]
    if scale > 1:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))                       # a scaler has its scale from its first use on
        model._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    (scale * model.training_step(batch_of(), 0)["loss"]).backward()
    model.configure_gradient_clipping(optimizer)
    norm = torch.stack([p.grad.norm() for p in model.network.parameters() if p.grad is not None]).norm()
    assert float(norm) / scale == pytest.approx(0.01, rel=1e-3)


def test_checkpoint_loads_without_the_config_and_samples_the_same(tmp_path):
    model = tiny()
    model.training_step(batch_of(), 0)
    model.progress.images = 640
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, barebones=False,
    )
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    loaded = Diffusion.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True).eval()
    assert loaded.progress.images == 640
    assert float(loaded.sigma_data()) == float(model.sigma_data())
    options = {"condition": [2, 1], "seeds": [3, 4], "steps": 3}
    assert torch.equal(loaded.sample(2, **options), model.sample(2, **options))


# ---- refusals ----


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"prediction": "eps"}, "zero terminal SNR"),
        ({"process": "edn"}, "did you mean 'edm'"),
        ({"weighting": "minsnr"}, "did you mean 'min_snr'"),
        ({"sigma_data": "outo"}, "neither a positive number nor auto"),
        ({"denoiser": "dti"}, "did you mean 'dit'"),
        ({"sampler": {"name": "heum", "steps": 3}}, "did you mean 'heun'"),
        ({"sampler": {"name": "heun", "steps": 3, "eta": 1.0}}, "has no option 'eta'"),
    ],
)
def test_impossible_recipes_are_refused_at_construction(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**overrides)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
        ({"stps": 3}, "did you mean 'steps'"),
        ({"steps": 0}, "at least 1"),
        ({"precision": "float8"}, "no sampling precision 'float8'"),
        ({"spacing": "karas"}, "did you mean 'karras'"),
    ],
)
def test_impossible_samples_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny().sample(1, condition=[0], **options)


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(UserError, match="condition=none"):
        tiny(condition="none").sample(1, guidance=2.0)


def test_autoguidance_is_the_papers_line_and_off_at_one():
    """Karras et al. 2024, eq. 3: b + w (d - b), of images as of predictions, which an image is linear in."""
    model = tiny(condition="none", early=0.5, autoguidance=3.0, autoguidance_interval=None).eval()
    plain = tiny(condition="none").eval()
    plain.ema.load_state_dict(model.ema.state_dict())
    x, alpha, sigma = torch.randn(2, 1, 8, 8), torch.tensor(0.4), torch.tensor(0.6)
    good = plain.denoise(x, alpha, sigma)
    assert torch.equal(model.denoise(x, alpha, sigma, autoguidance=3.0), good)  # none is kept yet
    model.early_kept.fill_(True)
    for parameter in model.early.parameters():
        parameter.mul_(0.9)
    plain.ema.network.load_state_dict(model.early.state_dict())
    worse = plain.denoise(x, alpha, sigma)
    assert not torch.allclose(good, worse)
    assert torch.equal(model.denoise(x, alpha, sigma, autoguidance=1.0), good)
    guided = model.denoise(x, alpha, sigma, autoguidance=3.0)
    assert torch.allclose(guided, worse + 3 * (good - worse), atol=1e-4)
    outside = model.denoise(x, alpha, sigma, autoguidance=3.0, autoguidance_interval=[2.0, 9.0])  # sigma / alpha 1.5
    assert torch.equal(outside, good)


def test_the_early_network_is_kept_once_and_only_without_a_condition():
    assert tiny(early=0.5, autoguidance=3.0).early is None  # condition=label
    model = tiny(condition="none", early=0.5, autoguidance=3.0)
    model._rates, model.progress = [], Progress(budget_images=100)
    for images, kept in ((40, None), (50, 1.0), (60, 1.0)):        # kept at half of the budget, and then left alone
        model.progress.images = images
        for parameter in model.ema.parameters():
            parameter.data.fill_(images / 50)
        model.on_train_batch_start(None, 0)
        found = {float(value) for p in model.early.parameters() for value in p.flatten()}
        assert bool(model.early_kept) == (kept is not None) and (kept is None or found == {kept})
    with pytest.raises(UserError, match=r"model\.early=0"):
        tiny(condition="none", early=0.0, autoguidance=3.0)
