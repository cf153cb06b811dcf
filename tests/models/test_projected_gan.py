"""Projected GAN: frozen random projections that mix channels and scales, gates, golden losses, and what is refused."""

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError
from aigc.models.checkpoints import load_family
from aigc.models.projected_gan import Discriminators, Gate, ProjectedGAN
from aigc.networks import efficientnet
from aigc.networks.spectral_norm import spectral_norms

TINY = {"latent": 8, "generator_widths": [12, 8, 8], "embedding": 4, "mixed": 4, "discriminator_widths": [4, 8]}
pytestmark = pytest.mark.skipif(efficientnet.packaged() is None, reason="needs pip install 'aigc[imagenet]'")


def tiny(size=(16, 16), channels=3, condition="label", **changes) -> ProjectedGAN:
    torch.manual_seed(0)
    options = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "model" / "projected_gan.yaml").model)
    del options["_target_"]
    return ProjectedGAN(channels, size, classes=10, condition=condition, **{**options, **TINY, **changes})


def batch_of(n=4, size=(16, 16), channels=3) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.rand(n, channels, *size, generator=generator) * 2 - 1, "label": torch.arange(n) % 10}


def trained(model: ProjectedGAN, steps: int = 1) -> ProjectedGAN:
    data = [batch_of(4, model.hparams.size, model.hparams.channels)] * steps
    L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    ).fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model


def losses_of(model: ProjectedGAN) -> list[float]:
    """The discriminators' loss and the generator's, of one step outside of a trainer."""
    model.optimizers = lambda: [torch.optim.SGD(net.parameters(), 0.0) for (net,) in model.players().values()]
    model.manual_backward = lambda loss: loss.backward()
    torch.manual_seed(2)
    logs = model.training_step(batch_of(), 0)
    return [logs[name].item() for name in ("loss/discriminator", "loss/generator")]


def test_golden_losses():
    assert losses_of(tiny()) == pytest.approx([17.1574, 5.4866], rel=1e-3)


def test_four_discriminators_at_a_loss_of_two_each_add_up_to_eight():
    model = tiny()
    for head in model.discriminator.heads:
        head.register_forward_hook(lambda module, given, logits: 0 * logits)
    assert losses_of(model) == [8.0, 0.0]


def test_mixed_maps_see_all_coarser_scales_and_no_finer_one_and_every_channel():
    projector = tiny().discriminator.projector
    sizes = [(8, 24, 16, 16), (8, 40, 8, 8), (8, 112, 4, 4), (8, 320, 2, 2)]
    own = [torch.randn(size, requires_grad=True) for size in sizes]
    projector.network.maps = lambda images: own
    mixed = projector(torch.zeros(8, 3, 16, 16))
    assert [tuple(m.shape[1:]) for m in mixed] == [(4, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    for k, m in enumerate(mixed):
        gradients = torch.autograd.grad(m.square().sum(), own, retain_graph=True, allow_unused=True)
        reached = [g is not None and bool((g.square().sum((0, 2, 3)) > 0).all()) for g in gradients]
        assert reached == [j >= k for j in range(4)]


def test_projections_are_he_initialized_frozen_and_in_the_checkpoint():
    model = tiny(mixed=64)
    projector = model.discriminator.projector
    for conv in (*projector.over_channels, *projector.over_scales):
        fan_in = conv.weight[0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    before = {key: value.clone() for key, value in projector.state_dict().items()}
    assert len(before) == 16 and not any(p.requires_grad for p in projector.parameters())
    assert {f"discriminator.projector.{key}" for key in before} <= set(model.state_dict())
    model.setup("fit")
    assert not any("network" in key for key in model.discriminator.state_dict())
    trained(model, steps=2)
    assert all(torch.equal(value, before[key]) for key, value in projector.state_dict().items())


def test_a_step_moves_generator_and_every_discriminator_and_each_turn_only_its_own():
    for still, moving in (("generator", "discriminator"), ("discriminator", "generator")):
        model = tiny(**{f"{still}_rate": 0.0})
        before = {key: value.clone() for key, value in model.named_parameters()}
        trained(model)
        moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
        assert all(key.startswith(moving) for key in moved)
        if moving == "discriminator":
            assert {key.split(".")[2] for key in moved} == {"0", "1", "2", "3"}


def test_spectral_norms_of_the_discriminators_converge_to_one():
    model = tiny().train()
    maps, labels = model.discriminator.projector(batch_of()["image"]), batch_of()["label"]
    for _ in range(100):
        model.discriminator.judge(maps, labels)
    model.eval()
    for head in model.discriminator.heads:
        found = [torch.linalg.matrix_norm((weight / 1).flatten(1), 2).item() for _, weight in spectral_norms(head)]
        weights = [m.weight for m in head.modules() if hasattr(m, "parametrizations")]
        assert len(weights) == len(found) >= 2
        for weight in weights:
            assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, rel=0.01)


def test_a_gate_multiplies_whole_channels_by_what_the_coarse_map_says():
    gate = Gate(6, 5, (4, 4))
    coarse, fine = torch.randn(2, 6, 4, 4), torch.randn(2, 5, 64, 64)
    share = gate(coarse, fine) / fine
    assert share.shape == fine.shape and (share > 0).all() and (share < 1).all()
    torch.testing.assert_close(share, share[:, :, :1, :1].expand_as(share))
    assert (gate(coarse.flip(0), fine) / fine)[0, 0, 0, 0] != share[0, 0, 0, 0]


def test_gates_reach_over_four_doublings_as_in_the_paper():
    generator = tiny((256, 256), channels=1).generator
    assert generator.grid == (4, 4) and generator.reach == 4 and len(generator.gates) == 3    # to 64, 128 and 256
    small = tiny((28, 28), channels=1).generator
    assert small.grid == (4, 4) and small.reach == 3 and len(small.gates) == 1


def test_noise_starts_without_strength_and_z_counts_by_its_direction():
    generator = tiny().generator.eval()
    z, labels = torch.randn(3, 8), torch.tensor([0, 1, 2])
    image = generator(z, labels)
    torch.testing.assert_close(image, generator(3 * z, labels))
    assert torch.equal(image, generator(z, labels))                         # fresh noise each time
    strengths = [p for name, p in generator.named_parameters() if name.endswith("strength")]
    assert len(strengths) == 2 and all(p == 0 for p in strengths)
    for strength in strengths:
        strength.data.fill_(1.0)
    assert not torch.equal(generator(z, labels), generator(z, labels))


def test_image_k_depends_on_its_own_seed_alone_noise_included():
    model = tiny()
    for name, p in model.ema.network.named_parameters():
        if name.endswith("strength"):
            p.data.fill_(1.0)
    images = model.sample(3, condition=[0, 1, 2], seeds=[5, 6, 7])
    torch.testing.assert_close(model.sample(1, condition=[2], seeds=[7])[0], images[2])
    assert not torch.allclose(model.sample(1, condition=[2], seeds=[8])[0], images[2], atol=1e-3)
    measured = [model.sample(2, condition=[0, 1], seeds=[5, 6], standing_statistics=8) for _ in range(2)]
    assert torch.equal(*measured) and not torch.allclose(measured[0], images[:2], atol=1e-3)


@pytest.mark.parametrize(("channels", "size"), [(3, (17, 23)), (1, (28, 28)), (1, (40, 6)), (3, (64, 64))])
def test_any_size(channels, size):
    model = trained(tiny(size, channels))
    images = model.sample(2, condition=[0, 1], seeds=[5, 6], standing_statistics=8)
    assert images.shape == (2, channels, *size) and images.abs().max() <= 1


def test_a_checkpoint_opens_where_the_weights_are_not(tmp_path, monkeypatch):
    model = trained(tiny())
    sha256 = model.learned_through["efficientnet"]
    path = tmp_path / "last.ckpt"
    model.trainer.save_checkpoint(path)
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)
    again = load_family(str(path))
    assert again.learned_through == {"efficientnet": sha256}
    asked = {"condition": [0, 1], "seeds": [1, 2]}
    assert torch.equal(again.sample(2, **asked), model.sample(2, **asked))
    with pytest.raises(UserError, match="EfficientNet-Lite0 needs its weights"):
        trained(tiny())


def test_through_a_network_of_timms_and_squeezenet(tmp_path):
    timm = pytest.importorskip("timm")
    from torchvision.models import squeezenet1_0

    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / "resnet10t.pth")
    torch.save(squeezenet1_0(weights=None).state_dict(), tmp_path / "squeezenet.pth")
    for given in ({"network": "timm/resnet10t", "weights": str(tmp_path / "resnet10t.pth")},
                  {"network": "squeezenet", "weights": str(tmp_path / "squeezenet.pth"), "preprocessing": "caffe"}):
        model = trained(tiny(pretrained=given))
        assert list(model.learned_through) == [given["network"]] and len(model.learned_through[given["network"]]) == 64
        images = batch_of()["image"]
        shapes = [tuple(m.shape[1:]) for m in model.discriminator.projector(images)]
        assert shapes == model.discriminator.projector.shapes


@pytest.mark.parametrize(("changes", "message"), [
    ({"pretrained": {"network": "timm/resnet10t"}}, r"model\.pretrained\.weights=<file>"),
    ({"pretrained": {"network": "timm/resnet10t", "weights": "/nowhere.pth"}}, None),
    ({"pretrained": {"network": "efficientnet", "side": 8}}, r"model\.pretrained\.side=8"),
    ({"channels": 4}, "grey or RGB images, not 4 channels"),
    ({"augment": ["color"]}, "colour"),
    ({"generator_widths": []}, "at least one number"),
])
def test_refusals(changes, message):
    if message is None:
        with pytest.raises(UserError, match=r"/nowhere\.pth is not a file"):
            tiny(**changes).setup("fit")
        return
    with pytest.raises(UserError, match=message):
        tiny(**changes)


def test_unconditional():
    model = trained(tiny(condition="none"))
    assert isinstance(model.discriminator, Discriminators) and model.discriminator.encoder is None
    assert model.sample(2, seeds=[1, 2]).shape == (2, 3, 16, 16)
