"""Every adversarial loss against its closed form; penalties against analytic gradients."""

import math

import pytest
import torch

from aigc.errors import UserError
from aigc.losses.adversarial import LOSSES, adaptive_weight, adversarial_loss, gradient_penalty, squared_gradient

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


CLOSED = {
    "nonsaturating": (
        (softplus(-2) + softplus(1)) / 2 + (softplus(0.5) + softplus(-3)) / 2,
        (softplus(-0.5) + softplus(3)) / 2,
    ),
    "least_squares": (0.5 * (1 + 4) / 2 + 0.5 * (0.25 + 9) / 2, 0.5 * (0.25 + 16) / 2),
    "wasserstein": (-1.25 - 0.5, 1.25),
    "hinge": ((0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
    "relativistic": ((softplus(-1.5) + softplus(-2)) / 2, (softplus(1.5) + softplus(2)) / 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_its_closed_form(name):
    loss = adversarial_loss(name)
    discriminator, generator = CLOSED[name]
    assert loss.discriminator(REAL, FAKE).item() == pytest.approx(discriminator, abs=1e-6)
    assert loss.generator(REAL, FAKE).item() == pytest.approx(generator, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_each_side_pulls_the_logits_its_way(name):
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    loss = adversarial_loss(name)
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all() or (name == "least_squares" and (fake.grad == 0).all())
    fake.grad = None
    loss.generator(real, fake).backward()
    assert (fake.grad < 0).all()


def test_losses_stay_finite_at_large_logits():
    large = torch.tensor([1e4, -1e4])
    for loss in LOSSES.values():
        assert torch.isfinite(loss.discriminator(large, -large))
        assert torch.isfinite(loss.generator(large, -large))


def test_unknown_loss_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'hinge'"):
        adversarial_loss("hing")


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.randn(3, 4, 5)
    images = torch.randn(6, 3, 4, 5, requires_grad=True)
    squared = squared_gradient((images * weight).sum((1, 2, 3)), images)
    torch.testing.assert_close(squared, weight.square().sum().expand(6))


def test_r1_of_a_quadratic_discriminator_and_its_own_gradient():
    scale = torch.tensor(0.7, requires_grad=True)
    images = torch.randn(4, 1, 3, 3, requires_grad=True)
    squared = squared_gradient(scale * images.square().sum((1, 2, 3)) / 2, images)
    norms = images.detach().square().sum((1, 2, 3))
    torch.testing.assert_close(squared, 0.7**2 * norms)
    squared.mean().backward()
    assert scale.grad.item() == pytest.approx(2 * 0.7 * norms.mean().item(), rel=1e-5)


def test_gradient_penalty_of_a_linear_discriminator():
    weight = torch.randn(1, 4, 4)
    real, fake = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4)
    penalty = gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), real, fake)
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2, rel=1e-4)


def test_gradient_penalty_is_taken_between_real_and_fake():
    seen = []

    def discriminator(images):
        seen.append(images.detach())
        return images.square().sum((1, 2, 3)) / 2          # its gradient is the image itself

    real, fake = torch.full((64, 1, 2, 2), 1.0), torch.full((64, 1, 2, 2), 3.0)
    penalty = gradient_penalty(discriminator, real, fake)
    point = seen[0][:, 0, 0, 0]
    assert 1 <= point.min() < 1.5
    assert 2.5 < point.max() <= 3
    torch.testing.assert_close(penalty, (2 * point - 1).square().mean())


def test_gradient_penalty_has_a_gradient_where_the_discriminator_is_flat():
    weight = torch.zeros(1, requires_grad=True)
    images = torch.randn(2, 1, 2, 2)
    gradient_penalty(lambda x: (x * weight).sum((1, 2, 3)), images, images).backward()
    assert torch.isfinite(weight.grad).all()


def test_gradient_penalty_is_float32_under_autocast():
    net = torch.nn.Conv2d(1, 1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        kinds = []
        gradient_penalty(lambda x: kinds.append(net(x).dtype) or net(x).flatten(), *torch.randn(2, 3, 1, 4, 4))
    assert kinds == [torch.float32]


def test_r1_is_float32_under_autocast_on_the_way_back_too():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    images = torch.randn(3, 1, 4, 4, requires_grad=True)
    logits = net(images)
    with torch.autocast("cpu", torch.bfloat16):
        lowered = squared_gradient(logits, images)
    assert torch.equal(lowered, squared_gradient(logits, images))


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    torch.manual_seed(0)
    last = torch.nn.Conv2d(2, 1, 1, bias=False)
    images = last(torch.randn(4, 2, 3, 3))
    reconstruction, adversarial = images.square().mean(), -images.mean()
    pulls = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm()
             for loss in (reconstruction, adversarial)]
    weight = adaptive_weight(reconstruction, adversarial, last.weight)
    assert float(weight) == pytest.approx(float(pulls[0] / (pulls[1] + 1e-4)), rel=1e-6)
    assert not weight.requires_grad and last.weight.grad is None
    thrice = adaptive_weight(3 * reconstruction, adversarial, last.weight)
    assert float(thrice) == pytest.approx(3 * float(weight), rel=1e-5)
    nothing = adaptive_weight(reconstruction, 0 * adversarial, last.weight)
    assert float(nothing) == pytest.approx(float(pulls[0]) / 1e-4, rel=1e-4)
    assert float(adaptive_weight(1e9 * reconstruction, 0 * adversarial, last.weight)) == 1e4


def _weigh(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    kept = torch.load(f"{folder}/kept.pt", weights_only=True)
    images = kept["x"].chunk(2)[rank] @ (last := kept["last"].requires_grad_())
    torch.save(adaptive_weight(images.square().mean(), -images.mean(), last), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_adaptive_weight_of_two_ranks_is_that_of_their_whole_batch(tmp_path):
    torch.manual_seed(0)
    x, last = torch.randn(8, 3), torch.randn(3, 2)
    torch.save({"x": x, "last": last}, tmp_path / "kept.pt")
    torch.multiprocessing.start_processes(_weigh, (str(tmp_path),), nprocs=2, start_method="fork")
    images = x @ last.requires_grad_()
    whole = float(adaptive_weight(images.square().mean(), -images.mean(), last))
    for rank in range(2):
        assert float(torch.load(tmp_path / f"{rank}.pt", weights_only=True)) == pytest.approx(whole, rel=1e-5)
