"""CycleGAN, CUT, pix2pix: golden losses, closed forms, each step moves its own networks, any size, exact pools."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.losses.adversarial import LOSSES
from aigc.models.checkpoints import AtomicCheckpointIO, load_family
from aigc.models.cut import CUT
from aigc.models.cyclegan import CycleGAN
from aigc.models.pix2pix import Pix2Pix
from aigc.training.fit import check_resumable
from tests.families import SMALLEST

FAMILIES = {"cyclegan": CycleGAN, "cut": CUT, "pix2pix": Pix2Pix}
GENERATORS = {"cyclegan": ("a2b", "b2a"), "cut": ("generator", "heads"), "pix2pix": ("generator",)}
JUDGES = {"cyclegan": ("judge_a", "judge_b"), "cut": ("discriminator",), "pix2pix": ("discriminator",)}
USABLE = [name for name in LOSSES if name != "wasserstein"]


def recipe(name: str, **changes) -> dict:
    """conf/model/<name>.yaml at a tiny width."""
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml").model)
    options.pop("_target_")
    return {**options, **SMALLEST[name], **changes}


def tiny(name: str, channels=3, size=(16, 16), **changes):
    torch.manual_seed(0)
    return FAMILIES[name](channels, size, **recipe(name, **{"init_std": 0.2, **changes}))


def batch_of(name: str, n=2, channels=3, size=(16, 16), seed=1) -> dict:
    torch.manual_seed(seed)
    first, second = torch.rand(2, n, channels, *size) * 2 - 1
    keys = ("source", "target") if name == "pix2pix" else ("a", "b")
    return {keys[0]: first, keys[1]: second, "index": torch.arange(n)}


def trained(model, name: str, steps=3, **trainer):
    """A few steps of Lightning's own loop, on one batch."""
    shape = {"channels": model.hparams.channels, "size": model.hparams.size}
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **trainer,
    ).fit(model, torch.utils.data.DataLoader([batch_of(name, **shape)] * steps, batch_size=None))
    return model


def losses(model, name: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The generators' loss, the discriminators', and all parts, as one training step computes them."""
    batch = batch_of(name)
    torch.manual_seed(2)
    if name == "cyclegan":
        generator, logs, fake_a, fake_b = model.generator_loss(batch["a"], batch["b"])
        discriminator, more = model.discriminator_loss(batch["a"], batch["b"], fake_a, fake_b)
    elif name == "cut":
        generator, logs, fake = model.generator_loss(batch["a"], batch["b"])
        discriminator, more = model.discriminator_loss(batch["b"], fake)
    else:
        model.generator.eval()
        fake = model.generator(batch["source"])
        generator, logs = model.generator_loss(batch["source"], batch["target"], fake)
        discriminator, more = model.discriminator_loss(batch["source"], batch["target"], fake.detach())
    return generator, discriminator, logs | more


GOLDEN = {  # generators' loss, discriminators'
    "cyclegan": [28.008154, 5.014415], "cyclegan_unet": [21.183390, 6.150290], "cyclegan_r1": [25.446630, 1.368850],
    "cut": [10.624645, 2.161216], "fastcut": [82.729012, 2.161216], "pix2pix": [75.388489, 3.259106],
}
PLAIN = {"upsample": "resize", "discriminator_norm": "instance", "lambda_adversarial": 2.0, "augment": []}
CHANGES = {
    "cyclegan": {"residual": False, "kernel": 5, "lambda_a": 10.0, "lambda_b": 10.0, "lambda_identity": 0.5,
                 "r1": 0.0},
    "cut": {"residual": False, "kernel": 5, "lambda_nce": 1.0, "nce_identity": True, "r1": 0.0},
    "pix2pix": {"dropout": 0.5, "dropout_layers": 1, "lambda_l1": 100.0},
    "cyclegan_unet": {"generator": "unet", "halvings": 3, "lambda_identity": 0.0},
    "cyclegan_r1": {"r1": 1.0, "loss": "relativistic", "discriminator_norm": "spectral", "upsample": "transposed"},
    "fastcut": {"lambda_nce": 10.0, "nce_identity": False, "flip_equivariance": True},
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_losses(case):
    name = {"fastcut": "cut"}.get(case, case.split("_")[0])
    model = tiny(name, **{"loss": "least_squares", **PLAIN, **CHANGES[name], **CHANGES[case]})
    generator, discriminator, _ = losses(model, name)
    got = [generator.item(), discriminator.item()]
    assert got == pytest.approx(GOLDEN[case], abs=2e-4, rel=2e-4)


def test_cyclegan_minimises_the_published_sum():
    """Zhu et al. 2017, equations 1 to 3, written out with one pass for every term."""
    plain = {"loss": "least_squares", "augment": [], "residual": False, "discriminator_norm": "instance"}
    model, batch = tiny("cyclegan", **plain), batch_of("cyclegan")
    a, b, h = batch["a"], batch["b"], model.hparams
    fake_b, fake_a = model.a2b(a), model.b2a(b)
    cycle = h.lambda_a * (model.b2a(fake_b) - a).abs().mean() + h.lambda_b * (model.a2b(fake_a) - b).abs().mean()
    identity = h.lambda_a * (model.b2a(a) - a).abs().mean() + h.lambda_b * (model.a2b(b) - b).abs().mean()
    deceive = ((model.judge_b(fake_b) - 1) ** 2).mean() / 2 + ((model.judge_a(fake_a) - 1) ** 2).mean() / 2
    expected = h.lambda_adversarial * deceive + cycle + h.lambda_identity * identity
    loss, _, made_a, made_b = model.generator_loss(a, b)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close((made_a, made_b), (fake_a.detach(), fake_b.detach()))
    judged = sum(((judge(x) - 1) ** 2).mean() / 2 + (judge(y) ** 2).mean() / 2
                 for judge, x, y in ((model.judge_a, a, made_a), (model.judge_b, b, made_b)))
    torch.testing.assert_close(model.discriminator_loss(a, b, made_a, made_b)[0], judged)


def test_cut_compares_features_of_the_same_place():
    """Park et al. 2020, equations 4 and 5, with encoders run anew for every term."""
    model, batch = tiny("cut", augment=[], nce_patches=10_000), batch_of("cut")
    layers = model.hparams.nce_layers

    def contrast(images):
        keys, queries = (model.generator.features(x, layers)[1] for x in (images, model.generator(images)))
        total = 0
        for head, key, query in zip(model.heads.layers, keys, queries, strict=True):
            key, query = (F.normalize(head(x.flatten(2).transpose(1, 2)), dim=2) for x in (key, query))
            logits = torch.einsum("npf,nqf->npq", query, key) / 0.07
            total = total - logits.log_softmax(2).diagonal(dim1=1, dim2=2).mean() / len(layers)
        return total

    _, logs, _ = model.generator_loss(batch["a"], batch["b"])
    torch.testing.assert_close(logs["loss/nce"], contrast(batch["a"]).detach())
    torch.testing.assert_close(logs["loss/nce_identity"], contrast(batch["b"]).detach())


def test_mirrored_features_are_mirrored_back(monkeypatch):
    """A generator that commutes with mirroring is given the same PatchNCE either way."""
    changes = {"halvings": 0, "nce_layers": [0, 1, 4], "flip_equivariance": True, "nce_patches": 10_000}
    model, batch = tiny("cut", augment=[], **changes), batch_of("cut")
    for parameter in model.generator.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data + parameter.data.flip(3)
    draws = iter([0.9, 0.1])
    original = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *s, **k: torch.tensor(next(draws)) if s == ((),) else original(*s, **k))
    code = model.generator.features(batch["a"], [0])[0].flip(3)
    torch.testing.assert_close(code, model.generator.features(batch["a"].flip(3), [0])[0], rtol=1e-3, atol=1e-3)
    plain, mirrored = (model.generator_loss(batch["a"], batch["b"])[1]["loss/nce"] for _ in range(2))
    torch.testing.assert_close(plain, mirrored, rtol=1e-3, atol=1e-3)


def test_pix2pix_minimises_the_published_sum():
    model, batch = tiny("pix2pix", augment=[]), batch_of("pix2pix")
    source, target = batch["source"], batch["target"]
    model.generator.eval()
    fake = model.generator(source)
    on_fake, on_real = (model.discriminator(torch.cat([source, x], dim=1)) for x in (fake, target))
    loss, _ = model.generator_loss(source, target, fake)
    assert model.hparams.lambda_l1 == 100
    torch.testing.assert_close(loss, F.softplus(-on_fake).mean() + 100 * (fake - target).abs().mean())
    judged, _ = model.discriminator_loss(source, target, fake.detach())
    torch.testing.assert_close(judged, F.softplus(-on_real).mean() + F.softplus(on_fake).mean())


@pytest.mark.parametrize("loss", USABLE)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_loss_moves_each_network_and_only_its_own(name, loss):
    for still, rate in ((GENERATORS, "generator_rate"), (JUDGES, "discriminator_rate")):
        model = tiny(name, loss=loss, **{rate: 0.0})
        before = {key: value.clone() for key, value in model.named_parameters()}
        trained(model, name, steps=2, precision="bf16-mixed")  # the first may move last layers alone
        for key, value in model.named_parameters():
            if key.startswith((*still[name], "ema")):
                assert torch.equal(value, before[key]), key
            elif value.ndim > 1:                            # biases before a norm, or of a difference, change nothing
                assert not torch.equal(value, before[key]), key
        assert all(p.requires_grad for part in JUDGES[name] for p in getattr(model, part).parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_autocast_judges_with_weights_of_the_moment(name):
    """Autocast caches low-precision copies of weights; no pass may see those of before an update."""
    model = tiny(name, discriminator_rate=0.5, generator_rate=0.5, discriminator_norm="none")
    part = getattr(model, JUDGES[name][0])
    seen = []

    def record(images):
        logits = type(part).forward(part, images)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            seen.append((logits.detach(), type(part).forward(part, images).detach()))
        return logits

    part.forward = record
    trained(model, name, steps=2, precision="bf16-mixed")
    assert len(seen) == 4
    for ours, fresh in seen:
        torch.testing.assert_close(ours, fresh)


def test_autocast_does_not_lower_the_way_back_of_float32_losses(monkeypatch):
    """A training step lies in autocast, its backward pass too unless that is switched off: PatchNCE is a product."""
    inside, outside = tiny("cut", augment=[]), tiny("cut", augment=[])
    optimizers = inside.configure_optimizers()
    inside.optimizers = lambda: optimizers
    monkeypatch.setattr(L.LightningModule, "manual_backward", lambda self, loss: loss.backward())
    batch = batch_of("cut")
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        inside.training_step(batch, 0)
    outside.discriminator.requires_grad_(False)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = outside.generator_loss(batch["a"], batch["b"])
    loss.backward()
    for (name, one), other in zip(inside.generator.named_parameters(), outside.generator.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


@pytest.mark.parametrize("family", ["cyclegan", "cut"])
def test_a_residual_generator_starts_as_the_identity_and_can_leave_the_ends_of_the_scale(family):
    model = tiny(family, residual=True)
    images = torch.rand(2, 3, 20, 13) * 2 - 1
    torch.testing.assert_close(model.translate(images), images)
    network = model.averages()[0][1]
    white = torch.ones(1, 3, 16, 16)
    network.decoder[-1].bias.data.fill_(9.0)
    made = network(white)
    assert torch.equal(made, white)
    made.sum().backward()
    assert network.decoder[-1].bias.grad.abs().sum() > 0


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (4, (17, 23)), (3, (12, 40))])
@pytest.mark.parametrize("name", FAMILIES)
def test_trains_on_any_size_and_translates_any_other(name, channels, size):
    model = trained(tiny(name, channels, size), name, steps=2)
    for direction in model.directions:
        for other in (size, (9, 31), (3, 5), (48, 33)):
            images = torch.rand(2, channels, *other) * 2 - 1
            made = model.translate(images, direction=direction)
            assert made.shape == images.shape and made.dtype == torch.float32
            assert made.abs().max() <= 1 and made.std() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_translations_are_averaged_float32_and_independent_of_their_batch(name):
    model = tiny(name)
    images = torch.rand(5, 3, 20, 20) * 2 - 1
    for direction, (average, network) in zip(model.directions, model.averages(), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            together = model.translate(images, direction=direction)
        for k in range(5):
            torch.testing.assert_close(model.translate(images[k : k + 1], direction=direction)[0], together[k])
        torch.testing.assert_close(together, network.eval()(images))       # both start alike
        for parameter in network.parameters():
            parameter.data.mul_(2)
        assert torch.equal(model.translate(images, direction=direction), average(images))
    with pytest.raises(UserError, match="was not trained for direction=b2c"):
        model.translate(images, direction="b2c")


def test_one_way_families_refuse_the_other():
    for name in ("cut", "pix2pix"):
        with pytest.raises(UserError, match="direction=b2a"):
            tiny(name).translate(torch.zeros(1, 3, 8, 8), direction="b2a")


def test_directions_are_not_mixed_up():
    model, images = tiny("cyclegan"), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model.translate(images, direction="a2b"), model.a2b(images).detach())
    torch.testing.assert_close(model.translate(images, direction="b2a"), model.b2a(images).detach())
    scores = model.validation_step({"a": images, "b": -images}, 0)
    torch.testing.assert_close(scores["cycle_a"], F.l1_loss(model.b2a(model.a2b(images)), images).detach())
    torch.testing.assert_close(scores["identity_b"], F.l1_loss(model.a2b(-images), -images).detach())
    assert set(scores) == {"cycle_a", "cycle_b", "identity_a", "identity_b"}


def test_validation_of_the_one_way_families():
    batch = batch_of("cut")
    model = tiny("cut")
    expected = F.l1_loss(model.generator(batch["b"]), batch["b"]).detach()
    torch.testing.assert_close(model.validation_step(batch, 0), {"identity_b": expected})
    batch, model = batch_of("pix2pix"), tiny("pix2pix")
    expected = F.l1_loss(model.generator.eval()(batch["source"]), batch["target"]).detach()
    torch.testing.assert_close(model.validation_step(batch, 0), {"l1": expected})


def test_discriminators_see_earlier_translations():
    model, shown = tiny("cyclegan", pool=3, generator_rate=0.0), []
    original = model.discriminator_loss
    model.discriminator_loss = lambda a, b, fake_a, fake_b: shown.append(fake_b) or original(a, b, fake_a, fake_b)
    trained(model, "cyclegan", steps=4)
    assert model.pools["a"].held == model.pools["b"].held == 3
    current = model.a2b(batch_of("cyclegan")["a"]).detach()
    torch.testing.assert_close(shown[0], current)                       # nothing is in the pool yet


def test_pools_travel_in_the_checkpoint(tmp_path):
    model = trained(tiny("cyclegan"), "cyclegan", steps=4)
    checkpoint: dict = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    again = load_family(tmp_path / "last.ckpt")
    check_resumable(checkpoint, again, tmp_path)
    for side in "ab":
        assert again.pools[side].held == 5
        assert torch.equal(again.pools[side].state_dict()["images"], model.pools[side].state_dict()["images"])
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(again.translate(images), model.translate(images))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [("cyclegan", {"generator": "resnt"}, r"model\.generator=resnt is unknown: did you mean 'resnet'"),
     ("cyclegan", {"upsample": "resized"}, "did you mean 'resize'"),
     ("cyclegan", {"loss": "wasserstein"}, "use least_squares"),
     ("cut", {"nce_layers": [0, 99]}, r"must name layers from 0 \(the image\) to 10"),
     ("cut", {"discriminator_norm": "batch"}, "choose from instance, none, spectral"),
     ("pix2pix", {"loss": "vanilla"}, "is not an adversarial loss"),
     ("pix2pix", {"augment": ["color"]}, "did you mean 'colour'")],
)
def test_a_wrong_option_is_one_sentence(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(name, **options)


def test_rates_stay_then_fall_to_zero():
    model = tiny("cyclegan")
    model.progress.budget_images = 100
    factors = []
    for images in (0, 50, 75, 100):
        model.progress.images = images
        factors.append(model.rate_factor())
    assert factors == [1.0, 1.0, 0.5, 0.0]
