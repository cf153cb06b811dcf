"""GAN: golden losses, both conditionings, any size, each step moves its own network, images by seed."""

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.utils.parametrize import is_parametrized

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.losses.adversarial import LOSSES
from aigc.models.checkpoints import load_family
from aigc.models.gan import GAN, truncate
from aigc.noise import SeededNoise

TINY = {"latent": 8, "generator_widths": [8, 8, 4], "discriminator_widths": [4, 8, 8], "embedding": 4}


def recipe(name: str = "gan", **changes) -> dict:
    """conf/model/<name>.yaml at a tiny width."""
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml").model)
    options.pop("_target_")
    return {**options, **TINY, **changes}


def tiny(size=(8, 8), channels=1, condition="label", name="gan", **changes) -> GAN:
    torch.manual_seed(0)
    return GAN(channels, size, classes=10, condition=condition, **recipe(name, **changes))


def batch_of(n=8, size=(8, 8), channels=1) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(n, channels, *size, generator=generator) * 2 - 1,
        "label": torch.arange(n) % 10,
        "index": torch.arange(n),
    }


def trained(model: GAN, steps: int = 2, **trainer) -> GAN:
    """`model` after so many steps of Lightning's own loop, on one batch."""
    data = [batch_of(8, model.hparams.size, model.hparams.channels)] * steps
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **trainer,
    ).fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model


GOLDEN = {  # discriminator's loss, generator's, penalties
    "gan": [1.378500, 0.697505, 0.009298],
    "sngan": [1.990500, 0.002679],
    "dcgan": [1.408935, 0.826377],
    "r3gan": [0.686453, 0.707609, 0.009298, 0.010264],
    "wgan_gp": [9.524897, -0.003584, 0.952863],
}


@pytest.mark.parametrize("case", ["gan", "sngan", "dcgan", "r3gan", "wgan_gp"])
def test_golden_losses(case):
    spectral = {"discriminator_norm": "spectral", "r1": 0.0}
    changes = {
        "sngan": {"loss": "hinge", **spectral},
        "r3gan": {"loss": "relativistic", "r2": 0.5},
        "wgan_gp": {"loss": "wasserstein", "gradient_penalty": 10.0, "conditioning": "concat", **spectral},
    }.get(case, {})
    changes["penalty_every"] = 1
    model = tiny(name="dcgan" if case == "dcgan" else "gan", **{"init_std": 0.2, **changes})
    batch = batch_of()
    torch.manual_seed(2)
    fake = model.generator(torch.randn(8, 8), batch["label"])
    d_loss, logs = model.discriminator_loss(batch["image"], fake.detach(), batch["label"])
    g_loss, _ = model.generator_loss(batch["image"], fake, batch["label"])
    got = [d_loss.item(), g_loss.item(), *(logs[name].item() for name in sorted(logs) if name.startswith("penalty"))]
    assert got == pytest.approx(GOLDEN[case], abs=1e-4, rel=1e-4)


def test_r3gan_has_no_norm_and_learns_from_pairs_and_both_penalties():
    chosen = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "r3gan.yaml").model)
    assert chosen == {"generator_norm": "none", "loss": "relativistic", "r1": 1.0, "r2": 1.0}
    model = tiny(init_std=0.2, penalty_every=1, **chosen)
    norms = [module for module in model.modules() if "Norm" in type(module).__name__ or is_parametrized(module)]
    assert norms == [] and model.generator.start.in_features == 8 + 4 and model.generator.start.bias is not None
    assert hasattr(model.discriminator, "project")
    batch = batch_of()
    torch.manual_seed(2)
    fake = model.generator(torch.randn(8, 8), batch["label"])
    d_loss, logs = model.discriminator_loss(batch["image"], fake.detach(), batch["label"])
    g_loss, _ = model.generator_loss(batch["image"], fake, batch["label"])
    got = [d_loss.item(), g_loss.item(), logs["penalty/r1"].item(), logs["penalty/r2"].item()]
    assert got == pytest.approx([0.724233, 0.676935, 0.014529, 0.012307], abs=1e-4, rel=1e-4)
    on_real, on_fake = model.logits(batch["image"], fake, batch["label"])
    assert g_loss.item() == pytest.approx(torch.nn.functional.softplus(on_real - on_fake).mean().item(), rel=1e-5)
    zero, one = (model.generator(torch.ones(4, 8), torch.full((4,), label)) for label in (0, 1))
    assert (zero - one).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_each_loss_moves_both_networks_and_each_only_itself(loss, name):
    model = tiny(name=name, loss=loss, gradient_penalty=10.0 if loss == "wasserstein" else 0.0)
    batch = batch_of()
    fake = model.generator(torch.randn(8, 8), batch["label"])
    model.discriminator_loss(batch["image"], fake.detach(), batch["label"])[0].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.discriminator.parameters())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained(model)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {"generator.start.weight", "generator.last.weight"} <= moved
    assert any(key.startswith("discriminator.layers.0.") for key in moved)
    assert not any(key.startswith("ema.") for key in moved)             # the EMA callback's task
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_the_discriminator_step_leaves_the_generator_and_the_reverse():
    for still, moving in (("generator", "discriminator"), ("discriminator", "generator")):
        model = tiny(discriminator_norm="none", **{f"{still}_rate": 0.0})
        before = {key: value.clone() for key, value in model.named_parameters()}
        trained(model)
        for key, value in model.named_parameters():
            if key.startswith(still):
                assert torch.equal(value, before[key]), key
        assert any(not torch.equal(v, before[k]) for k, v in model.named_parameters() if k.startswith(moving))


def test_autocast_gives_the_generator_the_updated_discriminator():
    """Autocast caches low-precision copies of weights; the generator must not be led by last step's discriminator."""
    model = tiny(discriminator_norm="none", discriminator_rate=0.5)
    seen = []

    def record(images, labels):
        logits = type(model.discriminator).forward(model.discriminator, images, labels)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            seen.append((logits, type(model.discriminator).forward(model.discriminator, images, labels)))
        return logits

    model.discriminator.forward = record
    trained(model, steps=1, precision="bf16-mixed")
    assert len(seen) == 2
    torch.testing.assert_close(*seen[1])


@pytest.mark.parametrize("name", ["gan", "dcgan"])
@pytest.mark.parametrize("conditioning", ["projection", "concat"])
@pytest.mark.parametrize(("channels", "size"), [(3, (17, 23)), (4, (8, 8)), (1, (28, 28)), (1, (40, 6))])
def test_any_size_and_channels(name, conditioning, channels, size):
    model = trained(tiny(size, channels, name=name, conditioning=conditioning), steps=1)
    images = model.sample(3, condition=[0, 1, 2], seeds=[5, 6, 7])
    assert images.shape == (3, channels, *size)
    assert images.abs().max() <= 1
    assert torch.isfinite(images).all()


def test_dcgan_has_the_layers_of_its_paper():
    model = GAN(1, (32, 32), **{**recipe("dcgan"), **{k: recipe_value("dcgan", k) for k in TINY}})
    assert model.generator.grid == (4, 4)
    assert model.generator.start.weight.shape == (256 * 16, 100)
    assert [tuple(layer.weight.shape) for layer in [*model.generator.doublings, model.generator.last]] == [
        (256, 128, 4, 4), (128, 64, 4, 4), (64, 1, 4, 4),
    ]
    convolutions = [layer for layer in model.discriminator.layers if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.weight.shape[0] for layer in convolutions] == [64, 128, 256]
    assert model.discriminator.head.weight.shape == (1, 256 * 16)
    assert model.generator.last.weight.std().item() == pytest.approx(0.02, rel=0.1)


def recipe_value(name: str, key: str):
    """The recipe's own value, not the tiny one."""
    return OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml").model)[key]


def test_image_k_belongs_to_its_seed_and_label_whatever_the_batch():
    model = trained(tiny(init_std=0.2))
    seeds, labels = list(range(100, 112)), [k % 10 for k in range(12)]
    together = model.sample(12, condition=labels, seeds=seeds)
    one_by_one = torch.cat([model.sample(1, condition=[y], seeds=[s]) for s, y in zip(seeds, labels, strict=True)])
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[10]).abs().max() > 1e-3              # same label, another seed
    other = model.sample(12, condition=[(y + 1) % 10 for y in labels], seeds=seeds)
    assert ((together - other).abs().amax((1, 2, 3)) > 1e-4).all()
    drawn = model.sample(12, seeds=seeds)
    torch.testing.assert_close(drawn[3:5], model.sample(2, seeds=seeds[3:5]), atol=1e-5, rtol=1e-4)


def test_with_projection_only_the_noise_says_what_is_where():
    """A condition that joined the latent could draw one picture by itself, whatever the noise, and did."""
    model = trained(tiny(init_std=0.2)).eval()
    starts = []
    model.generator.norms[0].register_forward_pre_hook(lambda module, inputs: starts.append(inputs[0]))
    z = torch.randn(4, 8)
    zero, one = (model.generator(z, torch.full((4,), label)) for label in (0, 1))
    assert torch.equal(*starts)
    assert (zero - one).abs().amax((1, 2, 3)).min() > 1e-4
    assert tiny(conditioning="concat").generator.start.in_features == 8 + 4


@pytest.mark.parametrize("conditioning", ["projection", "concat"])
def test_discriminator_depends_on_the_label(conditioning):
    model = tiny(conditioning=conditioning, init_std=0.2)
    images = batch_of(4)["image"]
    zero, one = (model.discriminator.eval()(images, torch.full((4,), label)) for label in (0, 1))
    assert ((zero - one).abs() > 1e-4).all()


def test_samples_come_from_the_average_and_leave_no_trace():
    model = trained(tiny())
    before = model.sample(4, seeds=range(4))
    with torch.no_grad():
        model.generator.last.bias += 1
    torch.testing.assert_close(model.sample(4, seeds=range(4)), before, rtol=0, atol=0)
    model.ema.update(model.generator, images_seen=1, batch=8)
    assert (model.sample(4, seeds=range(4)) - before).abs().min() > 0
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.sample(4, seeds=range(4), standing_statistics=64)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_standing_statistics_are_those_of_the_averaged_weights():
    model = trained(tiny())
    norm = model.with_standing_statistics(64).norms[0].norm
    first = model.ema.network.start
    grid = first(SeededNoise(range(64))(8)).unflatten(1, (-1, *model.generator.grid))
    torch.testing.assert_close(norm.running_mean, grid.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, grid.var((0, 2, 3)))


def test_truncation_is_a_truncated_normal():
    torch.manual_seed(0)
    z = torch.randn(200_000)
    cut = truncate(z, 1.0)
    assert cut.abs().max() <= 1
    assert cut.var().item() == pytest.approx(0.2911, abs=0.003)         # of a normal cut off at +-1
    assert (cut[z.argsort()].diff() >= 0).all()                         # monotone
    torch.testing.assert_close(truncate(z, 9.0), z, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="truncation=0"):
        truncate(z, 0)


def test_lazy_penalty_comes_every_so_often_and_weighs_so_much_more():
    model = tiny(r1=2.0, penalty_every=4, discriminator_norm="none", init_std=0.2)
    batch = batch_of()
    fake = torch.zeros_like(batch["image"])
    plain, logs = model.discriminator_loss(batch["image"], fake, batch["label"], penalise=False)
    assert "penalty/r1" not in logs
    heavy, logs = model.discriminator_loss(batch["image"], fake, batch["label"], penalise=True)
    assert (heavy - plain).item() == pytest.approx(4 * 2.0 / 2 * logs["penalty/r1"].item(), rel=1e-5)


def test_r1_is_the_gradient_on_real_images_alone():
    model = tiny(r1=1.0, discriminator_norm="none", init_std=0.2)
    batch = batch_of()
    logs = model.discriminator_loss(batch["image"], torch.zeros_like(batch["image"]), batch["label"])[1]
    image = batch["image"].requires_grad_()
    (gradient,) = torch.autograd.grad(model.discriminator(image, batch["label"]).sum(), image)
    assert logs["penalty/r1"].item() == pytest.approx(gradient.square().sum((1, 2, 3)).mean().item(), rel=1e-4)


def test_clip_bounds_what_the_optimizer_sees():
    model = tiny(clip=1e-3)
    optimizer = model.configure_optimizers()[0]
    for p in model.discriminator.parameters():
        p.grad = torch.ones_like(p)
    model.on_before_optimizer_step(optimizer)
    norm = sum(p.grad.square().sum() for p in model.discriminator.parameters()).sqrt()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_checkpoint_loads_weights_only_and_samples_the_same(tmp_path):
    model = trained(tiny())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "gan.ckpt")
    torch.load(tmp_path / "gan.ckpt", weights_only=True)
    again = GAN.load_from_checkpoint(tmp_path / "gan.ckpt", weights_only=True)
    torch.testing.assert_close(again.sample(4, seeds=range(4)), model.sample(4, seeds=range(4)), rtol=0, atol=0)


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    model = tiny()
    weights = model.state_dict() | {"generator.start.weight": torch.zeros(3, 3)}
    content = {"state_dict": weights, "family": "aigc.models.gan.GAN", "hyper_parameters": dict(model.hparams),
               "progress": model.progress.state_dict()}
    torch.save(content, tmp_path / "gan.ckpt")
    with pytest.raises(UserError, match=r"does not fit GAN as installed: .*generator\.start\.weight"):
        load_family(tmp_path / "gan.ckpt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "hing"}, "model.loss=hing .* 'hinge'"),
        ({"conditioning": "film"}, "model.conditioning=film"),
        ({"discriminator_norm": "batch", "r1": 1.0}, "one gradient per image"),
        ({"loss": "wasserstein"}, "gradient_penalty=10"),
        ({"augment": ["color"]}, "'colour'"),
        ({"generator_norm": "layer"}, "model.generator_norm=layer"),
    ],
)
def test_impossible_options_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**changes)


def test_wrong_samples_are_one_sentence():
    model = tiny()
    with pytest.raises(UserError, match="'truncation'"):
        model.sample(1, trunc=1)
    with pytest.raises(UserError, match="label 10 is out of range"):
        model.sample(1, condition=[10])
    with pytest.raises(UserError, match="condition=none"):
        tiny(condition="none").sample(1, condition=[1])


def test_held_out_logit():
    model = tiny()
    batch = batch_of()
    expected = model.discriminator.eval()(batch["image"], batch["label"]).mean()
    torch.testing.assert_close(model.validation_step(batch, 0), {"logits/held_out": expected})
