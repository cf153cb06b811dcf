"""Degradations against closed forms: the Gaussian, adjoints, pseudo-inverses, noise, Pillow's JPEG files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from aigc.data.degradation import DEGRADATIONS, degradations_named
from aigc.data.operators import resize_matrix
from aigc.errors import UserError
from aigc.networks.resample import resize
from aigc.noise import normal, uniform

SEEDS = torch.arange(6) * 7919 + 3
SHAPE = (3, 19, 26)


def pictures(n: int = 6, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def photo(h: int, w: int) -> Tensor:
    """Something smooth with edges, in colour: what JPEG is for."""
    y, x = torch.arange(h)[:, None] / h, torch.arange(w)[None] / w
    disc = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.07).float()
    planes = [(x * 7).sin() * (y * 5).cos(), disc, (y * 9 + x).cos()]
    return (torch.stack(planes) * 0.35 + 0.5).clamp(0, 1)[None]


LINEAR = [name for name in DEGRADATIONS if name != "jpeg"]


@pytest.mark.parametrize("names", [[name] for name in LINEAR] + [["blur", "grey", "downscale", "boxes"]])
def test_the_adjoint_of_a_linear_degradation(names: list[str]) -> None:
    operator, x = degradations_named(names).draw(SEEDS, SHAPE), pictures()
    y = operator.apply(x)
    z = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((y * z).flatten(1).sum(1), (x * operator.adjoint(z)).flatten(1).sum(1), rtol=1e-4,
                               atol=1e-3)
    of_sum = operator.apply(2 * x + 1) - operator.apply(torch.ones_like(x))
    torch.testing.assert_close(of_sum, 2 * y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_the_pseudo_inverse_of_a_linear_degradation(name: str) -> None:
    """Moore and Penrose: A A+ A = A and A+ A A+ = A+, and A+ A is symmetric."""
    operator, x, other = degradations_named([name]).draw(SEEDS, SHAPE), pictures(), pictures() ** 2
    y, back = operator.apply(x), lambda x: operator.inverse(operator.apply(x))
    close = 5e-3 if name == "blur" else 1e-5               # blur: singular values below 0.001 are none
    torch.testing.assert_close(operator.apply(operator.inverse(y)), y, rtol=0, atol=close)
    torch.testing.assert_close(back(back(x)), back(x), rtol=0, atol=4 * close)
    torch.testing.assert_close((back(x) * other).flatten(1).sum(1), (x * back(other)).flatten(1).sum(1), rtol=1e-3,
                               atol=1e-2)


def test_blur_is_the_gaussian_and_its_width_is_each_images_own() -> None:
    x = pictures()
    fixed = degradations_named({"blur": {"sigma": 1.3}}).draw(SEEDS, SHAPE)
    torch.testing.assert_close(fixed(x), torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, 1.3, 1.3))), rtol=0,
                               atol=1e-6)
    many = degradations_named({"blur": {"sigma": [0.5, 2.0]}})
    whole = many.draw(SEEDS, SHAPE)(x)
    alone = torch.cat([many.draw(SEEDS[k : k + 1], SHAPE)(x[k : k + 1]) for k in range(6)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
    assert (whole - x).flatten(1).std(1).unique().numel() == 6


def test_noise_has_the_deviation_that_was_asked_for_and_its_images_own_numbers() -> None:
    x = torch.full((4, 3, 64, 64), 0.5)
    seeds = SEEDS[:4]
    operator = degradations_named({"noise": {"sigma": 25 / 255}}).draw(seeds, (3, 64, 64))
    added = (operator(x) - x).flatten(1)
    assert added.std(1).sub(25 / 255).abs().max() < 2e-3 and added.mean(1).abs().max() < 3e-3
    assert torch.corrcoef(added).fill_diagonal_(0).abs().max() < 0.03
    assert operator.level(4).tolist() == pytest.approx([25 / 255] * 4) and torch.equal(operator.apply(x), x)
    levels = degradations_named({"noise": {"sigma": [0.1, 0.2]}}).draw(torch.arange(2000), (1, 1, 1)).level(2000)
    assert levels.min() >= 0.1 and levels.max() <= 0.2 and abs(float(levels.mean()) - 0.15) < 2e-3


def test_random_numbers_are_those_of_their_distributions() -> None:
    numbers = normal(torch.arange(200), 5, 1001).flatten()
    assert numbers.shape == (200 * 1001,) and abs(numbers.mean()) < 0.01 and abs(numbers.std() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.1 and abs((numbers**3).mean()) < 0.05
    even = uniform(torch.arange(2000), 5, 100)
    assert even.min() > 0 and even.max() < 1 and abs(even.mean() - 0.5) < 2e-3 and abs(even.var() - 1 / 12) < 1e-3
    assert not torch.equal(normal(SEEDS, 5, 9), normal(SEEDS, 6, 9))


@pytest.mark.parametrize("quality", [10, 50, 75, 92])
@pytest.mark.parametrize(("h", "w"), [(64, 48), (37, 51)])
def test_jpeg_is_what_pillow_writes(quality: int, h: int, w: int) -> None:
    x = photo(h, w)
    made = degradations_named({"jpeg": {"quality": quality}}).draw(SEEDS[:1], (3, h, w))(x)
    file = io.BytesIO()
    Image.fromarray((x[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "JPEG", quality=quality)
    theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None] / 255
    between, lost = (float(-10 * (made - other).square().mean().log10()) for other in (theirs, x))
    assert between > lost + 8, f"{between:.1f} dB from Pillow's, {lost:.1f} dB from the picture"
    assert abs(lost - float(-10 * (theirs - x).square().mean().log10())) < 0.15
    grey = degradations_named({"jpeg": {"quality": quality}}).draw(SEEDS[:1], (1, h, w))(x[:, :1])
    file = io.BytesIO()
    Image.fromarray((x[0, 0] * 255).round().byte().numpy()).save(file, "JPEG", quality=quality)
    assert (grey[0, 0] * 255 - torch.from_numpy(np.array(Image.open(file)))).abs().mean() < 0.2


def test_jpeg_has_no_adjoint_and_says_so() -> None:
    chain = degradations_named(["blur", "jpeg"]).draw(SEEDS, SHAPE)
    assert not chain.linear and degradations_named(LINEAR).draw(SEEDS, SHAPE).linear
    for method in (chain.adjoint, chain.inverse):
        with pytest.raises(UserError, match="'jpeg' is not linear: it has neither an adjoint nor a pseudo-inverse"):
            method(pictures())


def test_downscaling_is_the_one_resize() -> None:
    x = pictures()
    operator = degradations_named({"downscale": {"factor": 2}}).draw(SEEDS, SHAPE)
    torch.testing.assert_close(operator(x), resize(x, (10, 13)), rtol=0, atol=1e-6)
    assert resize_matrix(19, 10).sum(1).sub(1).abs().max() < 1e-6


def test_grey_is_luma_and_masks_are_as_large_as_was_asked_for() -> None:
    x = pictures()
    luma = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(degradations_named(["grey"]).draw(SEEDS, SHAPE)(x), luma.expand_as(x))
    one = degradations_named({"boxes": {"number": 1, "share": 0.5}}).draw(torch.arange(50), (1, 40, 20))
    assert ((1 - one.kept()).mean((1, 2, 3)) - 0.25).abs().max() < 0.04
    many = degradations_named({"boxes": {"number": [0, 2], "share": 0.3}}).draw(torch.arange(300), (1, 20, 20)).kept()
    assert 60 < (many.mean((1, 2, 3)) == 1).sum() < 140   # a third has no box
    thin, thick = (1 - degradations_named({"strokes": {"number": 2, "width": width}}).draw(
        torch.arange(50), (1, 32, 32)).kept().mean() for width in (0.05, 0.2))
    assert 0.01 < thin < 0.12 and 2.5 * thin < thick < 6 * thin
    black = degradations_named(["strokes"]).draw(SEEDS, SHAPE)
    assert torch.equal(black(x) == 0, (black.kept() == 0).expand_as(x))


@pytest.mark.parametrize(("names", "message"), [
    (["nois"], "names 'nois', which is no degradation: did you mean 'noise'?"),
    (["noise", "noise"], "names 'noise' twice"),
    ([], "names no degradation: choose from blur"),
    ({"noise": {"sgma": 1}}, "The degradation 'noise' has no option 'sgma': did you mean 'sigma'"),
    ({"noise": {"sigma": -1}}, "noise.sigma=-1 does not fit: give a number, or .lowest, highest. from 0 to 10"),
    ({"noise": {"sigma": [0.2, 0.1]}}, "runs downwards"),
    ({"jpeg": {"quality": "high"}}, "jpeg.quality=high does not fit"),
    ({"downscale": {"factor": 1.5}}, "downscale.factor=1.5 does not fit: give a whole number from 2"),
])
def test_a_mistake_is_one_sentence(names: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        degradations_named(names)
