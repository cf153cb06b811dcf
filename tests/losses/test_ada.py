"""Adaptive augmentation: transforms checked by hand, twice differentiable, and p that follows the signs."""

import math

import pytest
import torch

from aigc.losses import ada
from aigc.losses.ada import AdaptiveAugment, colour_matrices, coloured, geometric_matrices, warped


def smooth(n=2, channels=3, size=(24, 24)):
    small = torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(-1, 1)


def augment(p=0.0, **changes):
    made = AdaptiveAugment(**{"target": 0.6, "images": 1000, "limit": 0.8, **changes})
    made.p.fill_(p)
    return made


def test_without_probability_images_are_what_they_were():
    images = smooth()
    assert augment(0.0)(images) is images
    torch.manual_seed(0)
    assert torch.equal(geometric_matrices(5, (8, 8), torch.tensor(0.0)), torch.eye(3).repeat(5, 1, 1))
    assert torch.allclose(colour_matrices(5, torch.tensor(0.0)), torch.eye(4).repeat(5, 1, 1), atol=1e-6)


@pytest.mark.parametrize("size", [(24, 24), (24, 17)])
def test_geometry_by_hand(size):
    images = smooth(size=size)
    n = len(images)
    ones = torch.ones(n)
    same = warped(images, torch.eye(3).repeat(n, 1, 1))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)          # the wavelet's filter reconstructs
    mirrored = warped(images, ada.scaling(-ones, ones))
    assert (mirrored - images.flip(3)).abs().mean() < 0.02
    shifted = warped(images, ada.translation(torch.tensor([[-2.0, 3.0]]).repeat(n, 1)))
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(shifted[inside], images.roll((-3, 2), (2, 3))[inside], atol=1e-5, rtol=0)
    beyond = warped(images, ada.translation(torch.tensor([[-3.0, 0.0]]).repeat(n, 1)))
    torch.testing.assert_close(beyond[..., :3], images[..., 1:4].flip(3), atol=1e-4, rtol=0)    # mirrored border
    if size[0] == size[1]:
        turned = warped(images, ada.rotation(torch.full((n,), math.pi / 2)))
        assert (turned - images.rot90(1, (2, 3))).abs().mean() < 0.02


def test_each_transform_is_taken_with_probability_p():
    torch.manual_seed(0)
    n, p = 40000, 0.3
    matrices = geometric_matrices(n, (32, 32), torch.tensor(p))
    untouched = (matrices - torch.eye(3)).abs().amax((1, 2)) == 0
    # mirror half, quarter turns three quarters of those taken, whole shifts nearly all, both rotations together p
    expected = (1 - p / 2) * (1 - 3 * p / 4) * (1 - p * (1 - 1 / 81)) * (1 - p) ** 4
    assert untouched.double().mean().item() == pytest.approx(expected, abs=0.006)
    colours = colour_matrices(n, torch.tensor(p))
    untouched = (colours - torch.eye(4)).abs().amax((1, 2)) < 1e-5
    assert untouched.double().mean().item() == pytest.approx((1 - p) ** 4 * (1 - p / 2), abs=0.006)


def test_colours_by_hand():
    images = smooth()
    matrices = torch.eye(4).repeat(2, 1, 1)
    matrices[:, :3, 3] = 0.25
    torch.testing.assert_close(coloured(images, matrices), images + 0.25)
    torch.manual_seed(0)
    matrices = colour_matrices(2, torch.tensor(1.0))
    grey = images[:, :1]
    alone = coloured(grey, matrices)
    assert alone.shape == grey.shape                       # a change of hue and of saturation leaves grey grey
    torch.testing.assert_close(alone, coloured(grey.expand(-1, 3, -1, -1), matrices).mean(1, keepdim=True))
    four = torch.cat([images, grey], 1)
    assert torch.equal(coloured(four, matrices)[:, 3:], grey)              # transparency stays
    about = ada._about(torch.ones(3) / math.sqrt(3), torch.full((1,), 2 * math.pi / 3))[0, :3, :3]
    torch.testing.assert_close(about @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_it_is_linear_in_the_image_and_differentiable_twice(channels):
    images, change = smooth(2, channels, (9, 8)), smooth(2, channels, (9, 8)).flip(2)

    def seen(x):
        torch.manual_seed(3)
        return augment(0.8)(x)

    affine = seen(images + change) - seen(images) - (seen(change) - seen(torch.zeros_like(change)))
    assert affine.abs().max() < 1e-4
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(seen(x).square().sum(), x, create_graph=True)
    numeric = (seen(images + 1e-2 * change).square().sum() - seen(images - 1e-2 * change).square().sum()) / 2e-2
    assert (gradient * change).sum().item() == pytest.approx(numeric.item(), rel=1e-2)
    (second,) = torch.autograd.grad((gradient * change).sum(), x)
    of = 2 * (seen(change) - seen(torch.zeros_like(change))).square().sum()  # quadratic: its Hessian in this direction
    assert (second * change).sum().item() == pytest.approx(of.item(), rel=1e-3)


def test_p_rises_above_the_target_falls_below_it_and_keeps_its_bounds():
    made = augment(images=100, limit=0.5)
    for _ in range(4):                                     # four steps of 5 images
        made.observe(torch.tensor([1.0, 2, 3, 4, 5]))      # mean sign 1
    made.adjust()
    assert made.p.item() == pytest.approx(20 / 100) and made.signs.tolist() == [0, 0]
    for _ in range(4):
        made.observe(torch.tensor([1.0, 2, 3, -4, -5]))    # 0.2
    made.adjust()
    assert made.p.item() == pytest.approx(0)
    for _ in range(9):
        made.observe(torch.ones(20))
        made.adjust()
    assert made.p.item() == 0.5
    made.observe(-torch.ones(20))
    again = augment(images=100, limit=0.5)
    assert again(smooth()) is not None                     # has looked at its p = 0
    again.load_state_dict(made.state_dict())
    assert (again.p.item(), again.signs.tolist()) == (0.5, [-20, 20])
    images = smooth()
    assert not torch.equal(again(images), images)
    again.adjust()
    assert again.p.item() == pytest.approx(0.3)
