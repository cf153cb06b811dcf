"""VAE: the bound against quadrature, closed forms, golden losses, any size, images by seed, the fitted mixture."""

import math

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.vae import (
    GREY_LEVEL,
    VAE,
    bernoulli_log_likelihood,
    fit_mixture,
    gaussian_log_density,
    kl_to_standard_normal,
)

TINY = {"latent": 4, "widths": [4, 8], "hidden": 16, "embedding": 4, "mixture_images": 64, "mixture_components": 2}


def recipe(**changes) -> dict:
    """conf/model/vae.yaml at a tiny width."""
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "vae.yaml").model)
    options.pop("_target_")
    return {**options, **TINY, **changes}


def tiny(size=(8, 8), channels=1, condition="none", **changes) -> VAE:
    torch.manual_seed(0)
    return VAE(channels, size, classes=10, condition=condition, **recipe(**changes))


def batch_of(n=8, size=(8, 8), channels=1) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.rand(n, channels, *size, generator=generator) * 2 - 1,
        "label": torch.arange(n) % 10,
        "index": torch.arange(n) + 50,
    }


def trained(model: VAE, steps: int = 2, **trainer) -> VAE:
    """`model` after so many steps of Lightning's own loop, on one batch."""
    data = [batch_of(8, model.hparams.size, model.hparams.channels)] * steps
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **trainer,
    ).fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model


GOLDEN = {  # loss, elbo, reconstruction, kl
    "gaussian": [57.078705, -57.214066, -57.078705, 0.135359],
    "bernoulli": [44.530884, -44.530884, -44.395523, 0.135359],
    "beta": [57.301147, -56.709423, -56.512180, 0.197242],
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_losses(case):
    changes = {
        "bernoulli": {"likelihood": "bernoulli", "kl_warmup_images": 0},
        "beta": {"beta": 4.0, "kl_warmup_images": 0, "blocks": 1},
    }.get(case, {})
    model = tiny(condition="label", **changes)
    torch.manual_seed(2)
    logs = model.training_step(batch_of(), 0)
    got = [logs[name].item() for name in ("loss", "elbo", "reconstruction", "kl")]
    assert got == pytest.approx(GOLDEN[case], abs=1e-5, rel=3e-6)  # other noise shows at 1e-5


def test_kl_is_the_closed_form():
    mean, deviation = torch.randn(5, 3), torch.rand(5, 3) + 0.1
    q, p = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, deviation), expected)
    assert kl_to_standard_normal(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0


def test_likelihoods_are_densities():
    x, mean = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 3, 3)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_log_density(x, mean, 0.3), expected)
    binary = torch.where(torch.rand(4, 1, 3, 3) < 0.5, 1.0, -1.0)
    expected = torch.distributions.Bernoulli(logits=mean).log_prob((binary + 1) / 2).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_log_likelihood(binary, mean), expected)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_bound_against_quadrature(likelihood):
    """One latent dimension: log p(x) by quadrature lies above both bounds, and ELBO + KL(q || posterior) equals it."""
    observe = "binarised" if likelihood == "bernoulli" else "grey"
    model = tiny((4, 4), latent=1, widths=[2], likelihood=likelihood, observe=observe, importance_samples=300)
    with torch.no_grad():
        for p in model.ema.parameters():                   # away from the initial, nearly constant decoder
            p.add_(torch.randn_like(p) * 0.3)
    network = model.averaged
    x = torch.where(torch.rand(1, 1, 4, 4) < 0.5, 1.0, -1.0)   # binarising leaves it as it is
    grid = torch.linspace(-8, 8, 8001)[:, None]
    step = 16 / 8000
    with torch.no_grad():
        given_z = model.log_likelihood(network, x.expand(8001, -1, -1, -1), network.decode(grid))
        mean, deviation = network.encode(x)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid[:, 0])
    evidence = (given_z + prior).logsumexp(0) + math.log(step)
    log_q = torch.distributions.Normal(mean[0, 0], deviation[0, 0]).log_prob(grid[:, 0])
    q = log_q.exp() * step
    reconstruction = (q * given_z).sum()
    gap = (q * (log_q - (given_z + prior - evidence))).sum()

    noisy = [
        model.validation_step({"image": x.expand(400, -1, -1, -1), "index": torch.arange(400)}, 0) for _ in range(2)
    ]
    assert noisy[0] == noisy[1]                            # the noise belongs to the images
    scores = noisy[0]
    kl = kl_to_standard_normal(mean, deviation)[0]
    assert scores["kl"].item() == pytest.approx(kl.item(), rel=1e-4)
    assert (reconstruction - kl + gap).item() == pytest.approx(evidence.item(), abs=1e-3)
    spread = (q * (given_z - reconstruction).square()).sum().sqrt().item() / math.sqrt(400)
    assert scores["reconstruction"].item() == pytest.approx(reconstruction.item(), abs=4 * spread + 1e-3)
    assert scores["elbo"].item() < evidence.item()
    assert scores["iwae"].item() == pytest.approx(evidence.item(), abs=0.02)


def test_bits_per_dim_of_a_known_density():
    """A decoder that says N(0, 0.5^2) everywhere and a posterior equal to the prior: entropy is a plain integral."""
    model = tiny((2, 2), latent=1, widths=[2], observe="dequantised", scale=0.5)
    with torch.no_grad():
        for p in (*model.averaged.up[-1].parameters(), *model.averaged.narrow[-1].parameters()):
            p.zero_()
    images = (torch.randint(0, 256, (4000, 1, 2, 2)) / 127.5) - 1
    scores = model.validation_step({"image": images}, 0)
    second_moment = (1 + GREY_LEVEL / 2) ** 2 / 3          # of grey levels, uniform once dequantised
    nats = 0.5 * second_moment / 0.25 + math.log(0.5) + 0.5 * math.log(2 * math.pi)
    assert scores["kl"].item() == 0
    assert scores["bits_per_dim"].item() == pytest.approx((nats - math.log(GREY_LEVEL)) / math.log(2), abs=0.03)


def test_warm_up_and_beta_weigh_the_kl_term_only():
    model = tiny(beta=4.0, kl_warmup_images=1000)
    for images, weight in ((0, 0.0), (250, 1.0), (1000, 4.0), (9000, 4.0)):
        model.progress.images = images
        logs = model.training_step(batch_of(), 0)
        expected = weight * logs["kl"] - logs["reconstruction"]
        assert logs["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
        assert logs["elbo"].item() == pytest.approx((logs["reconstruction"] - logs["kl"]).item(), rel=1e-6)


def test_learned_scale_finds_the_noise_and_a_fixed_one_stays():
    model = tiny(widths=[4], scale=0.5, scale_rate=0.05, decay_from=1.0)
    noise = {"image": torch.randn(64, 1, 8, 8) * 0.1}
    optimizer = model.configure_optimizers()
    for _ in range(150):
        optimizer.zero_grad()
        model.training_step(noise, 0)["loss"].backward()
        optimizer.step()
    assert model.network.scale.item() == pytest.approx(0.1, rel=0.1)
    fixed = trained(tiny(scale=0.3, scale_rate=0.0))
    assert fixed.network.scale.item() == pytest.approx(0.3)
    with torch.no_grad():
        model.network.log_scale.fill_(-50)
    assert model.network.scale.item() == pytest.approx(GREY_LEVEL)


@pytest.mark.parametrize("condition", ["none", "label"])
@pytest.mark.parametrize(("channels", "size"), [(3, (17, 23)), (4, (8, 8)), (1, (28, 28)), (1, (70, 5))])
def test_any_size_and_channels(condition, channels, size):
    model = trained(tiny(size, channels, condition=condition), steps=1)
    batch = batch_of(3, size, channels)
    assert model.sample(3, seeds=[5, 6, 7]).shape == (3, channels, *size)
    assert model.encode(batch["image"]).shape == (3, 4)
    picture = model.panels(batch)["reconstructions"]
    assert picture.shape == (3, channels, size[0], 2 * size[1])
    torch.testing.assert_close(picture[..., : size[1]], batch["image"])
    labels = batch["label"] if condition == "label" else None
    again = model.decode(model.encode(batch["image"], condition=labels), condition=labels)
    torch.testing.assert_close(picture[..., size[1] :], again)
    assert again.abs().max() <= 1


@pytest.mark.parametrize(
    "changes", [{}, {"likelihood": "bernoulli"}, {"likelihood": "bernoulli", "observe": "binarised"}]
)
def test_training_lowers_the_loss(changes):
    model = tiny(kl_warmup_images=0, rate=1e-2, **changes)
    batch = {"image": torch.linspace(-1, 1, 8).view(8, 1, 1, 1).expand(8, 1, 8, 8)}
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(200):  # with some draws the code stays unused for a hundred
        loss = model.training_step(batch, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) - 25


@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_image_k_belongs_to_its_seed_and_label_whatever_the_batch(prior):
    model = trained(tiny(condition="label"), steps=20)
    seeds, labels = list(range(100, 112)), [k % 8 for k in range(12)]
    together = model.sample(12, condition=labels, seeds=seeds, prior=prior)
    alone = [model.sample(1, condition=[y], seeds=[s], prior=prior) for s, y in zip(seeds, labels, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert (together[0] - together[8]).abs().max() > 1e-4               # same label, another seed
    other = model.sample(12, condition=[(y + 1) % 8 for y in labels], seeds=seeds, prior=prior)
    assert ((together - other).abs().amax((1, 2, 3)) > 1e-5).all()


def test_latents_of_the_last_training_images_are_kept():
    model = tiny(condition="label", mixture_images=20)
    for first in (0, 8, 16):
        model.remember(torch.arange(first, first + 8.0)[:, None].expand(8, 4), torch.arange(first, first + 8) % 10)
    assert int(model.latents_seen) == 24
    assert model.latents[:, 0].tolist() == [20, 21, 22, 23, *range(4, 20)]
    assert model.latent_labels.tolist() == [value % 10 for value in model.latents[:, 0].int().tolist()]
    model.remember(torch.arange(50.0)[:, None].expand(50, 4), torch.arange(50) % 10)   # more than are kept
    assert sorted(model.latents[:, 0].tolist()) == list(range(30, 50))


def test_mixture_finds_the_clusters_of_the_latents():
    torch.manual_seed(0)
    left, right = torch.randn(300, 2) * 0.1 - 3, torch.randn(900, 2) * 0.5 + 3
    mixture = fit_mixture(torch.cat([left, right]), 2)
    order = mixture.means[:, 0].argsort()
    torch.testing.assert_close(mixture.means[order], torch.tensor([[-3.0, -3.0], [3.0, 3.0]]), atol=0.1, rtol=0)
    drawn = mixture(torch.randn(20_000, 3), 1.0)
    assert (drawn[:, 0] < 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert drawn[drawn[:, 0] > 0].std(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert len(fit_mixture(left[:9], 5).shares) == 2       # fewer latents, fewer components


def test_mixture_follows_the_latents_of_each_class_and_falls_back_to_the_prior():
    model = tiny(condition="label", mixture_images=64, mixture_components=10)
    normal = model.sample(4, condition=[0, 0, 1, 1], seeds=range(4), prior="normal")
    torch.testing.assert_close(model.sample(4, condition=[0, 0, 1, 1], seeds=range(4), prior="mixture"), normal)
    model.remember(torch.randn(32, 4) * 0.01 + 2, torch.zeros(32, dtype=torch.int64))
    images = model.sample(4, condition=[0, 0, 1, 1], seeds=range(4), prior="mixture")
    centre = model.decode(torch.full((1, 4), 2.0), condition=[0])
    torch.testing.assert_close(images[:2], centre.expand(2, -1, -1, -1), atol=0.02, rtol=0)
    torch.testing.assert_close(images[2:], normal[2:], atol=1e-6, rtol=1e-5)            # class 1 is still unknown


def test_a_checkpoint_samples_alone(tmp_path):
    model = trained(tiny(condition="label"), steps=20)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "vae.ckpt")
    again = VAE.load_from_checkpoint(tmp_path / "vae.ckpt", weights_only=True)
    for prior in ("normal", "mixture"):
        images = [m.sample(4, seeds=range(4), prior=prior) for m in (model, again)]
        torch.testing.assert_close(*images, rtol=0, atol=0)
    assert int(again.latents_seen) == 160


def test_dropped_labels_train_the_null_condition():
    model = tiny(condition="label", condition_drop=1.0)
    model.training_step(batch_of(), 0)["loss"].backward()
    rows = model.network.labels.table.weight.grad.abs().sum(1)
    assert rows[-1] > 0
    assert (rows[:-1] == 0).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"likelihood": "gauss"}, "'gaussian'"),
        ({"observe": "binarised"}, "observe=binarised does not fit .*gaussian: set it to grey or dequantised"),
        ({"likelihood": "bernoulli", "observe": "dequantised"}, "grey or binarised"),
        ({"prior": "mixtur"}, "'mixture'"),
        ({"scale": 0.0}, "scale=0"),
    ],
)
def test_impossible_options_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(**changes)


def test_wrong_samples_are_one_sentence():
    model = tiny(condition="label")
    with pytest.raises(UserError, match="'prior'"):
        model.sample(1, priors="mixture")
    with pytest.raises(UserError, match="prior=gmm"):
        model.sample(1, prior="gmm")
    with pytest.raises(UserError, match="label -1 is out of range"):
        model.sample(1, condition=[-1])
