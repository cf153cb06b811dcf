"""StyleGAN2: what its papers define, each with a number; golden losses; samples, mixing and projection."""

from math import sqrt

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.checkpoints import read_checkpoint
from aigc.models.projection import autocorrelation
from aigc.models.stylegan2 import StyleGAN2
from aigc.networks.equalized import EqualizedConv, EqualizedLinear
from aigc.networks.resample import blur
from aigc.networks.residual import ResidualBlock, minibatch_deviation
from aigc.networks.style import Mapping, StyleLayer, Synthesis, ToImage, demodulation, modulated_convolution
from aigc.noise import SeededNoise
from aigc.training.fit import fit
from tests.conftest import compose_train
from tests.families import SMALLEST, words
from tests.test_resume import assert_same


def recipe(**changes) -> dict:
    """conf/model/stylegan2.yaml at the smallest width."""
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "stylegan2.yaml").model)
    options.pop("_target_")
    return {**options, **SMALLEST["stylegan2"], "generator_widths": [8, 8, 4], "generator_convolutions": [1, 2, 1],
            **changes}


def tiny(size=(8, 8), channels=1, condition="label", **changes) -> StyleGAN2:
    torch.manual_seed(0)
    return StyleGAN2(channels, size, classes=10, condition=condition, **recipe(**changes))


def batch_of(n=8, size=(8, 8), channels=1) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, channels, *size, generator=generator) * 2 - 1, "label": torch.arange(n) % 10,
            "index": torch.arange(n)}


class Count(L.Callback):
    """Counts batches, as training does."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        pl_module.progress.batches += 1


def trained(model: StyleGAN2, steps: int = 2, **trainer) -> StyleGAN2:
    data = [batch_of(8, model.hparams.size, model.hparams.channels)] * steps
    L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
              enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Count()], **trainer,
              ).fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model


# ---- layers ----


def test_equalized_layers_start_at_unit_weights_and_learn_at_their_rate():
    torch.manual_seed(0)
    layer = EqualizedLinear(400, 300, rate=0.01, bias=1.0)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.01)      # N(0, 1) / rate
    x = torch.randn(500, 400)
    y = layer(x)
    assert y.std().item() == pytest.approx(1, rel=0.02) and y.mean().item() == pytest.approx(1, abs=0.02)
    before = layer(x)
    torch.optim.Adam(layer.parameters(), lr=0.5).step(lambda: layer(x).mean().backward())
    change = (layer.weight * layer.gain - (layer.weight + 0.5 * layer.weight.grad.sign()) * layer.gain).abs()
    assert change.max().item() == pytest.approx(0.01 * 0.5 / sqrt(400), rel=1e-2)
    assert not torch.equal(layer(x), before)
    convolution = EqualizedConv(64, 48, 3, active=True)
    y = convolution(torch.randn(4, 64, 8, 8))[..., 1:-1, 1:-1]
    assert y.square().mean().item() == pytest.approx(1.04, rel=0.05)      # gain sqrt 2 after a leaky ReLU of slope .2
    torch.testing.assert_close(
        convolution(x[:4, :, None, None].expand(-1, -1, 5, 5)[:, :64]),
        F.leaky_relu(F.conv2d(x[:4, :64, None, None].expand(-1, -1, 5, 5), convolution.weight / sqrt(64 * 9),
                              padding=1), 0.2) * sqrt(2), rtol=1e-4, atol=1e-5,
    )


def test_latent_and_label_are_normalized_each_before_they_are_joined():
    mapping = Mapping(16, 8, 4, layers=2, rate=0.01)
    seen = []
    mapping.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z, vector = torch.randn(5, 16) * 9, torch.randn(5, 8) * 0.1
    styles = mapping(z, vector)
    for part in seen[0].split([16, 8], dim=1):
        torch.testing.assert_close(part.square().mean(1), torch.ones(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(mapping(3 * z, 0.5 * vector), styles, rtol=1e-3, atol=1e-5)


def per_image(x, weight, s, *, up=False):
    """The paper's own form: one weight for each image, modulated and demodulated (equations 1 and 3), in groups."""
    n, inputs = s.shape
    outputs = len(weight)
    weights = weight * s[:, None, :, None, None]
    weights = weights / (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    x = x.reshape(1, n * inputs, *x.shape[2:])
    if up:
        weights = weights.transpose(1, 2).reshape(n * inputs, outputs, 3, 3)
        x = F.conv_transpose2d(x, weights, stride=2, groups=n)
        return blur(4 * x.view(n, outputs, *x.shape[2:]), 1)
    x = F.conv2d(x, weights.reshape(n * outputs, inputs, 3, 3), padding=1, groups=n)
    return x.view(n, outputs, *x.shape[2:])


@pytest.mark.parametrize("up", [False, True])
def test_the_fast_form_of_modulation_is_that_of_the_paper(up):
    torch.manual_seed(0)
    x, weight, s = torch.randn(3, 6, 5, 7), torch.randn(4, 6, 3, 3), torch.randn(3, 6)
    ours = modulated_convolution(x, weight, s, up=up) * demodulation(weight, s)[:, :, None, None]
    assert ours.shape[2:] == ((10, 14) if up else (5, 7))
    torch.testing.assert_close(ours, per_image(x, weight, s, up=up), rtol=1e-4, atol=1e-5)
    norms = (weight * s[:, None, :, None, None]).flatten(2).norm(dim=2) * demodulation(weight, s)
    torch.testing.assert_close(norms, torch.ones(3, 4))


def test_a_layer_starts_without_noise_and_with_biases_of_its_styles_at_one():
    torch.manual_seed(0)
    layer = StyleLayer(8, 6, 5, (4, 4), up=False)
    assert layer.strength.item() == 0 and torch.equal(layer.affine.bias, torch.ones(8))
    x, style = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    outputs = [layer(x, style, noise) for noise in ("random", "const", "none")]
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[2])
    with torch.no_grad():
        layer.strength.fill_(0.5)
        layer.bias.normal_()
    noise = torch.randn(2, 1, 4, 4)
    expected = per_image(x, layer.weight / sqrt(72), layer.affine(style)) + 0.5 * noise + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x, style, noise), F.leaky_relu(expected, 0.2) * sqrt(2), rtol=1e-4, atol=1e-5)
    assert not torch.equal(layer(x, style, "random"), layer(x, style, "random"))
    assert torch.equal(layer(x, style, "const"), layer(x, style, layer.constant))


def test_to_image_is_modulated_but_not_demodulated():
    torch.manual_seed(0)
    layer, x, style = ToImage(8, 3, 5), torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    with torch.no_grad():
        layer.affine.weight.zero_()                        # s = the bias, 1
    once = layer(x, style)
    torch.testing.assert_close(once, F.conv2d(x, layer.weight) / sqrt(8))
    with torch.no_grad():
        layer.affine.bias.fill_(3.0)
    torch.testing.assert_close(layer(x, style), 3 * once)


def test_images_of_all_resolutions_add_up():
    torch.manual_seed(0)
    network = Synthesis(1, (16, 16), 4, widths=[4, 4, 4], convolutions=[1, 2, 2])
    assert network.styles == 6 and network.start.shape == (4, 4, 4)
    styles = torch.randn(2, 6, 4)
    whole = network(styles, "none")
    with torch.no_grad():
        for to_image in network.images:
            to_image.bias += 1
    torch.testing.assert_close(                            # each 1 goes through filtered doublings, whole but at edges
        network(styles, "none")[..., 4:-4, 4:-4], whole[..., 4:-4, 4:-4] + 3, rtol=1e-4, atol=1e-4
    )
    changed = styles.clone()
    changed[:, -1] += 1                                    # the last style is that of the last image alone
    seen = []
    network.layers[-1][-1].register_forward_hook(lambda *parts: seen.append(parts[-1].clone()))
    network(styles, "none"), network(changed, "none")
    assert torch.equal(*seen)


def test_a_residual_block_keeps_the_variance_and_halves_any_grid():
    torch.manual_seed(0)
    block = ResidualBlock(32, 64)
    assert block(torch.randn(2, 32, 7, 10)).shape == (2, 64, 4, 5)
    x = torch.randn(2, 32, 8, 8)
    direct = block.second(blur(block.first(x), 2))
    assert block.second.scale == pytest.approx(1) and block.skip.scale == pytest.approx(sqrt(0.5))
    again = EqualizedConv(32, 64, 3, stride=2, padding=0, active=True)
    again.load_state_dict(block.second.state_dict())
    torch.testing.assert_close(direct, again(blur(block.first(x), 2)) * sqrt(0.5))


def test_the_minibatch_deviation_is_that_of_groups_of_neighbours():
    x = torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    y = minibatch_deviation(x, 4)
    assert torch.equal(y[:, :5], x)
    for group in (slice(0, 4), slice(4, 8)):
        expected = x[group].var(0, unbiased=False).sqrt().mean()
        torch.testing.assert_close(y[group, 5], expected.expand(4, 3, 3), rtol=1e-4, atol=1e-5)
    two_ranks = torch.cat([minibatch_deviation(part, 4) for part in x.split(4)])
    torch.testing.assert_close(two_ranks, y)               # groups do not depend on how images lie on ranks
    assert torch.equal(minibatch_deviation(x[:6], 4), torch.cat([minibatch_deviation(p, 3) for p in x[:6].split(3)]))
    assert minibatch_deviation(x[:1], 4)[:, 5].max().item() == pytest.approx(1e-4)


def test_the_discriminator_projects_on_the_style_of_the_label():
    model = tiny()
    images, labels = batch_of()["image"], batch_of()["label"]
    network, seen = model.discriminator, []
    network.head.register_forward_hook(lambda *parts: seen.append(parts[-1]))
    logits = network(images, labels)
    style = network.mapping(None, network.encoder(labels, n=8))
    torch.testing.assert_close(logits, (seen[0] * style).sum(1) / sqrt(8))
    assert network.encoder is not model.generator.encoder and len(network.mapping.layers) == 1


# ---- training ----


def test_real_and_generated_images_are_never_in_one_pass():
    model, passes = tiny(path=0.0), []
    batch = batch_of()
    model.discriminator.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].detach().clone()))
    trained(model, steps=1)
    real = [torch.isin(one, batch["image"]).all((1, 2, 3)) for one in passes]
    assert len(passes) == 4 and all(which.all() or not which.any() for which in real)


def test_golden_losses():
    model, batch = tiny(), batch_of()
    torch.manual_seed(2)
    styles = model.mixed_styles(8, batch["label"])
    fake = model.generator(styles, "none")
    loss, _ = model.discriminator_loss(batch["image"], fake.detach(), batch["label"])
    r1 = model.squared_gradient(batch["image"], batch["label"])
    path = model.path_penalty(4, batch["label"])
    got = [loss.item(), F.softplus(-model.discriminator(fake, batch["label"])).mean().item(), r1.item(), path.item()]
    assert got == pytest.approx(GOLDEN, abs=1e-4, rel=1e-4)


GOLDEN = [1.321048, 0.703903, 1.377609, 0.017244]  # discriminator, generator, R1, path lengths


def test_r1_comes_every_sixteen_steps_as_much_heavier_and_adam_makes_up_for_it():
    steady = {"path": 0.0, "mixing": 0.0, "augment_target": 0.0, "r1_every": 16, "r1": 3.0}
    model = tiny(**steady)
    for_discriminator, for_generator = model.configure_optimizers()
    options = for_discriminator.param_groups[0]
    assert options["lr"] == pytest.approx(model.hparams.discriminator_rate * 16 / 17)
    assert options["betas"] == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert for_generator.param_groups[0]["lr"] == model.hparams.generator_rate
    with_path = tiny(path=2.0, path_every=4).configure_optimizers()[1].param_groups[0]
    assert (with_path["lr"], with_path["betas"][1]) == pytest.approx((0.8 * model.hparams.generator_rate, 0.99**0.8))
    losses = []
    model.manual_backward = lambda loss: (losses.append(loss.item()), loss.backward())
    trained(model, steps=17)
    assert len(losses) == 2 * 17 + 2                       # at steps 0 and 16
    fresh = tiny(**steady)
    torch.manual_seed(0)
    fresh.generator_rate = fresh.discriminator_rate = 0.0
    expected = fresh.squared_gradient(batch_of()["image"], batch_of()["label"])
    frozen = tiny(**steady, discriminator_rate=0.0)
    frozen.manual_backward = lambda loss: (losses.append(loss.item()), loss.backward())
    losses.clear()
    trained(frozen, steps=1)
    assert losses[1] == pytest.approx(16 * 3.0 / 2 * expected.item(), rel=1e-4)


def test_path_lengths_are_those_of_the_jacobian_and_their_mean_moves_slowly():
    model = tiny(size=(4, 4), generator_widths=[4], generator_convolutions=[1])
    torch.manual_seed(5)
    model.path_penalty(3, batch_of()["label"])
    torch.manual_seed(5)
    z = torch.randn(3, 8)
    styles = model.generator.styles(model.generator.style(z, batch_of()["label"][:3])).detach()
    torch.manual_seed(5)
    torch.randn(3, 8)
    jacobian = torch.autograd.functional.jacobian(lambda s: model.generator(s, "none"), styles)
    noise = [torch.randn(3, 1, *shape[1:]) for shape in model.generator.synthesis.noise_shapes()]
    assert noise[0].shape == (3, 1, 4, 4)                  # drawn before the direction
    direction = torch.randn(3, 1, 4, 4) / 4                # over the root of the number of pixels
    lengths = torch.stack([
        torch.einsum("chw,chwls->ls", direction[k], jacobian[k, ..., k, :, :]).square().sum(1).mean().sqrt()
        for k in range(3)
    ])
    assert model.path_mean.item() == pytest.approx(0.01 * lengths.mean().item(), rel=1e-4)


def test_the_mean_style_follows_unmixed_styles_and_psi_zero_is_it():
    model = tiny(mixing=1.0)
    torch.manual_seed(4)
    styles = model.mixed_styles(8, batch_of()["label"])
    torch.manual_seed(4)
    w = model.generator.style(torch.randn(8, 8), batch_of()["label"])
    torch.testing.assert_close(model.generator.average, 0.005 * w.mean(0))
    assert torch.equal(styles[:, 0], w) and not torch.equal(styles[:, -1], w)
    other = styles[:, -1]
    for image in range(8):                                 # one switch, from a random layer on
        of = [torch.equal(layer, w[image]) for layer in styles[image]]
        assert of == sorted(of, reverse=True) and torch.equal(styles[image, -1], other[image])
    every = model.generator.styles(w, psi=0.0)
    assert torch.equal(every, model.generator.average.expand_as(every))
    cut = model.generator.styles(w, psi=0.5, cutoff=2)
    torch.testing.assert_close(cut[:, 0], (w + model.generator.average) / 2)
    assert torch.equal(cut[:, 2:], w[:, None].expand(-1, 3, -1))


def test_augmentation_follows_the_discriminator_and_is_in_the_checkpoint():
    sure = tiny(generator_rate=0.0, discriminator_rate=0.0)
    for network in (sure, sure_again := tiny(generator_rate=0.0, discriminator_rate=0.0)):
        network.discriminator.forward = lambda images, labels=None: images.sum((1, 2, 3)) * 0 + 1
        network.squared_gradient = lambda real, labels: real.new_zeros((), requires_grad=True)
        network.manual_backward = lambda loss: None
    trained(sure, steps=4)
    assert sure.augment.p.item() == pytest.approx(4 * 8 / 64)             # up by 4 batches of the images
    assert {"augment.p", "augment.signs", "path_mean", "generator.average"} <= set(sure.state_dict())
    sure_again.augment.p.fill_(0.8)
    sure_again.discriminator.forward = lambda images, labels=None: images.sum((1, 2, 3)) * 0 - 1
    trained(sure_again, steps=4)
    assert sure_again.augment.p.item() == pytest.approx(0.8 - 0.5)


def test_resumed_between_two_changes_of_p_is_the_run_that_never_stopped(tmp_path):
    cfg = compose_train(*words("stylegan2"), "condition=label", "metrics=none", "~callbacks.samples", "log_every=3",
                        "model.decay_from=1", "budget.images=256", "budget.minutes=null")
    fit(cfg, tmp_path / "whole")
    cfg.budget.images = 96                                 # 6 steps: p changed after the fourth
    fit(cfg, tmp_path / "broken")
    half = read_checkpoint(tmp_path / "broken" / "checkpoints" / "last.ckpt")["state_dict"]
    assert half["augment.signs"][1] == 32 and half["path_mean"] > 0
    cfg.budget.images = 256
    fit(cfg, tmp_path / "broken", resumed=True)
    whole, again = (read_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "broken"))
    assert_same(whole, again)


@pytest.mark.parametrize(("channels", "size"), [(3, (17, 23)), (4, (8, 8)), (1, (28, 28)), (2, (40, 6)), (1, (1, 3))])
@pytest.mark.parametrize("stem", [1, 2])
def test_any_size_and_channels(channels, size, stem):
    model = trained(tiny(size, channels, discriminator_stem=stem), steps=2)
    images = model.sample(3, condition=[0, 1, 2], seeds=[5, 6, 7])
    assert images.shape == (3, channels, *size) and images.abs().max() <= 1 and torch.isfinite(images).all()


def test_the_average_copies_buffers_and_averages_weights():
    model = trained(tiny())
    model.ema.update(model.generator, 1000, 8)
    assert torch.equal(model.averaged.average, model.generator.average)
    assert torch.equal(model.averaged.synthesis.layers[0][0].constant, model.generator.synthesis.layers[0][0].constant)
    assert not torch.equal(model.averaged.synthesis.start, model.generator.synthesis.start)


# ---- use ----


def noisy(**changes) -> StyleGAN2:
    """A model whose noise shows."""
    model = tiny(**changes)
    with torch.no_grad():
        for name, parameter in model.ema.network.named_parameters():
            if name.endswith("strength"):
                parameter.fill_(0.3)
        model.ema.network.average.normal_()
    return model


def test_image_k_depends_on_seed_k_alone_with_every_noise():
    model = noisy()
    for noise in ("random", "const", "none"):
        together = model.sample(4, condition=[1, 2, 3, 4], seeds=[1, 2, 3, 4], noise=noise)
        alone = model.sample(1, condition=[3], seeds=[3], noise=noise)
        torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)
    assert not torch.equal(*(model.sample(1, condition=[3], seeds=[3], noise=noise) for noise in ("random", "none")))


def test_truncation_and_mixing_in_samples():
    model = noisy()
    still = {"noise": "const"}
    mean = model.decode(model.averaged.average[None])
    torch.testing.assert_close(model.sample(1, condition=[3], seeds=[3], psi=0.0, **still), mean)
    assert torch.equal(model.sample(1, condition=[3], seeds=[3], psi=0.5, cutoff=0, **still),
                       model.sample(1, condition=[3], seeds=[3], **still))
    own, donor = (model.sample(1, condition=[label], seeds=[seed], **still) for label, seed in ((3, 3), (7, 9)))
    mixed = {layer: model.sample(1, condition=[3], seeds=[3], mix=layer, mix_seed=9, mix_label=7, **still)
             for layer in (0, 2, 5)}
    torch.testing.assert_close(mixed[0], donor)
    torch.testing.assert_close(mixed[5], own)
    w = torch.stack([model.averaged.style(SeededNoise([s])(8), torch.tensor([y]))[0] for s, y in ((3, 3), (9, 7))])
    codes = model.averaged.styles(w)
    torch.testing.assert_close(mixed[2], model.decode(torch.cat([codes[:1, :2], codes[1:, 2:]], 1)))


@pytest.mark.parametrize(("space", "shape"), [("w", (8,)), ("z", (8,)), ("w+", (5, 8))])
def test_projection_finds_images_of_its_own(space, shape):
    model = tiny()
    labels = [1, 2]
    images = model.sample(2, condition=labels, seeds=[1, 2], noise="const")
    found = model.project(images, space=space, condition=labels, steps=25)
    assert found.latents.shape == (2, *shape)
    again = model.decode(found.latents, space=space, condition=labels, noise=found.noise)
    start = model.decode(model.averaged.average[None].expand(2, -1))
    assert (again - images).square().mean() < 0.2 * (start - images).square().mean()
    alone = model.encode(images[1:], space=space, condition=labels[1:], steps=25)
    torch.testing.assert_close(alone, found.latents[1:], rtol=1e-2, atol=1e-2)
    for one in found.noise:
        torch.testing.assert_close(one.square().mean((1, 2, 3)), torch.ones(2), rtol=1e-3, atol=0)


def test_projection_without_labels_and_with_a_perceptual_distance():
    model, asked = tiny(), []

    def perceptual(made, targets):
        asked.append(made.shape)
        return (made - targets).abs().mean((1, 2, 3))

    images = model.sample(2, condition=[1, 2], seeds=[1, 2])
    with torch.inference_mode():
        assert model.encode(images, steps=3, perceptual=perceptual).shape == (2, 8)
    assert len(asked) == 64 + 3 and all(p.grad is None for p in model.parameters())
    with pytest.raises(UserError, match="space=z needs the images' labels"):
        model.encode(images, space="z")
    with pytest.raises(UserError, match=r"space=w\+\+ is unknown"):
        model.encode(images, space="w++")


def test_autocorrelation_tells_noise_from_pictures():
    white = [torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))]
    flat = [torch.ones(4, 1, 32, 32)]
    assert autocorrelation(white).max() < 0.1
    assert torch.equal(autocorrelation(flat), torch.full((4,), 6.0))      # two directions on three scales


@pytest.mark.parametrize(
    ("options", "said"),
    [({"generator_convolutions": [1]}, r"model\.generator_convolutions=\[1\] are not one or more for each"),
     ({"discriminator_stem": 3}, r"model\.discriminator_stem=3 is unknown")],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(options, said):
    with pytest.raises(UserError, match=said):
        tiny(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"noise": "constant"}, "noise=constant is unknown: did you mean 'const'"),
     ({"mix": 7}, "mix=7 is not a layer: give a number from 0 to 5"), ({"cutoff": -1}, "cutoff=-1 is not a layer"),
     ({"truncation": 0.7}, "no sampling option 'truncation'")],
)
def test_what_samples_cannot_have_is_refused_in_a_sentence(options, said):
    with pytest.raises(UserError, match=said):
        tiny().sample(1, condition=[1], seeds=[1], **options)
