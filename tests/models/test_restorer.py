"""Restorers: DnCNN as published, what they learn, what they are told, and any size of picture."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.config.targets import instantiate
from aigc.errors import UserError
from aigc.models.palette import Palette
from aigc.models.restorer import Restorer
from aigc.networks.dncnn import DnCNN
from tests.conftest import compose_train
from tests.families import words

FACTS: dict[str, Any] = {"channels": 3, "size": (16, 16), "classes": None, "condition": "none"}


def built(name: str, *more: str) -> Any:
    torch.manual_seed(0)
    return instantiate(compose_train(*words(name), *more, common=False).model, "model", **FACTS)


def pairs(n: int = 8, *, masks: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = F.interpolate(torch.rand(n, 3, 4, 4, generator=generator) * 2 - 1, (16, 16), mode="bilinear")
    noisy = (clean + 0.4 * torch.randn(clean.shape, generator=generator)).clamp(-1, 1)
    more = {"mask": (torch.rand(n, 1, 16, 16, generator=generator) < 0.3).float()} if masks else {}
    return {"source": noisy, "target": clean, "index": torch.arange(n), **more}


def test_dncnn_is_the_published_network() -> None:
    network = DnCNN(1, 1, depth=17, width=64)              # Zhang et al. 2017: 17 layers, 64 feature maps of 3 x 3
    assert sum(p.numel() for p in network.parameters()) == 64 * 10 + 15 * (64 * 64 * 9 + 128) + 577
    assert [type(m).__name__ for m in network.norms] == ["BatchNorm2d"] * 15
    x = torch.zeros(1, 1, 50, 50)
    x[0, 0, 25, 25] = 1
    seen = (network.eval()(x) - network(torch.zeros_like(x))).abs()[0, 0] > 0
    assert seen.sum() <= 35**2 and seen[25 - 17 : 25 + 18, 25 - 17 : 25 + 18].sum() == seen.sum()    # 35 x 35
    assert network(torch.rand(2, 1, 7, 11)).shape == (2, 1, 7, 11)


def step(model: Any, batch: dict[str, Tensor], rates: tuple[float, ...]) -> dict[str, Tensor]:
    """A training step without Lightning's trainer: its optimizers, each for its player."""
    optimizers = model.configure_optimizers()
    model.optimizers = lambda: optimizers
    model.manual_backward = lambda loss: loss.backward()
    for optimizer, rate in zip(optimizers, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
    return model.training_step(batch, 0)


@pytest.mark.parametrize("network", ["dncnn", "unet"])
def test_the_network_tells_what_is_wrong_and_learns_to(network: str) -> None:
    model, batch = built("restorer", f"model.network={network}", "model.lambda_adversarial=0"), pairs(16)
    made = model.generator(batch["source"])
    torch.testing.assert_close(made, batch["source"] - model.generator.network(
        batch["source"], *([torch.zeros(16)] if network == "unet" else [])))
    (optimizer,) = model.configure_optimizers()
    losses = []
    for _ in range(60):
        loss = F.mse_loss(model.generator(batch["source"]), batch["target"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0] and model.discriminator is None
    assert list(model.players()) == ["generator"]


def test_l1_and_the_adversarial_loss_are_added_as_weighed() -> None:
    model, batch = built("restorer", "model.loss=l1", "model.lambda_adversarial=0.5"), pairs(4)
    model.eval()                                           # no batch statistics: the same output twice
    made = model.generator(batch["source"])
    logits = model.discriminator(torch.cat([batch["source"], made], dim=1))
    expected = {"loss/l1": F.l1_loss(made, batch["target"]), "loss/generator": F.softplus(-logits).mean()}
    logs = step(model, batch, (0.0, 0.0))
    for name, value in expected.items():
        torch.testing.assert_close(logs[name], value.detach())
    before = [p.detach().clone() for p in model.generator.parameters()]
    step(model, batch, (0.0, 0.1))
    assert any((p != q).any() for p, q in zip(before, model.generator.parameters(), strict=True))


@pytest.mark.parametrize("name", ["restorer", "palette"])
def test_masks_are_told_and_asked_for(name: str) -> None:
    model, batch = built(name, "model.masks=true"), pairs(4, masks=True)
    for average, network in model.averages():
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        average.network.load_state_dict(network.state_dict())
    model.eval()
    made = model.fakes(batch, seeds=range(4))
    assert made.shape == (4, 3, 16, 16) and made.abs().max() <= 1
    other = model.restore(batch["source"], masks=1 - batch["mask"], seeds=range(4))
    assert not torch.equal(made, other)
    assert torch.equal(made, model.translate(batch["source"], masks=batch["mask"], seeds=range(4)))
    with pytest.raises(UserError, match=r"learned with masks \(model.masks=true\) and needs them"):
        model.restore(batch["source"])
    with pytest.raises(UserError, match="choose data=degraded with boxes or strokes"):
        model.training_step(pairs(4), 0)
    with pytest.raises(UserError, match="was not trained for direction=b2a"):
        model.translate(batch["source"], direction="b2a", masks=batch["mask"])
    with pytest.raises(UserError, match=r"learned without masks \(model.masks=false\)"):
        built(name).restore(batch["source"], masks=batch["mask"])


def test_palette_draws_by_each_pictures_own_seed_at_any_size_and_learns_from_the_degraded_one() -> None:
    model, batch = built("palette"), pairs(8)
    assert isinstance(model, Palette) and not model.can("sample") and model.can("restore") and not model.can("denoise")
    for parameter in model.ema.network.parameters():
        nn.init.normal_(parameter, std=0.05)
    pictures = torch.rand(3, 3, 13, 22) * 2 - 1
    whole = model.restore(pictures, seeds=[5, 6, 7])
    assert whole.shape == pictures.shape
    torch.testing.assert_close(model.restore(pictures[1:2], seeds=[6]), whole[1:2], rtol=0, atol=1e-5)
    assert (whole - model.restore(pictures, seeds=[8, 9, 10])).abs().max() > 1e-3
    model.network.load_state_dict(model.ema.network.state_dict())
    torch.manual_seed(0)
    one = model.training_step(batch, 0)["loss"]
    torch.manual_seed(0)
    two = model.training_step({**batch, "source": batch["target"]}, 0)["loss"]
    assert one.isfinite() and one != two


@pytest.mark.parametrize(("more", "message"), [
    ("model.network=dncn", "model.network=dncn is unknown: did you mean 'dncnn'"),
    ("model.loss=l3", "model.loss=l3 is unknown: choose from l1, l2"),
    ("model.adversarial=wasserstein", "needs a penalty that a restorer does not have"),
])
def test_a_mistake_is_one_sentence(more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built("restorer", more)


def test_a_restored_picture_depends_on_no_other() -> None:
    model = built("restorer")
    assert isinstance(model, Restorer) and Restorer.does() == "restores degraded images"
    pictures = torch.rand(3, 3, 17, 31) * 2 - 1
    whole = model.eval().restore(pictures)
    torch.testing.assert_close(model.restore(pictures[2:]), whole[2:])
    assert whole.shape == pictures.shape
