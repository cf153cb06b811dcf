"""What is known of a Gaussian image, against the closed form: the posterior of one pixel given its neighbour."""

import functools

import pytest
import torch

from aigc.diffusion.denoiser import Denoiser
from aigc.diffusion.guides import guided
from aigc.diffusion.known import known_pixels, measured
from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.resampling import noised, resampled
from aigc.diffusion.samplers import SAMPLERS
from aigc.diffusion.schedules import Cosine, Flow, Karras, path
from aigc.errors import UserError

CORRELATION, KNOWN = 0.8, 1.2                              # of two pixels of variance 1; the first pixel
PROCESSES = [Cosine(), Karras(), Flow()]
COVARIANCE = torch.tensor([[1, CORRELATION], [CORRELATION, 1]], dtype=torch.float64)
N = 6000


def gaussian(process):
    """The exact denoiser of two pixels."""
    def predict(names, x, t):
        alpha, sigma = process.scales(t[:1].double())
        gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(2).double())
        return [(x.flatten(1).double() @ gain.T).view_as(x).to(x.dtype) for _ in names]

    return Denoiser(process, Parametrisation("x0", 0.5), predict, lambda alpha, sigma: ["conditional"])


def drawn(process, name, guide, *, steps, **settings):
    """Mean and variance of the second pixel, mean of the first."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(N, *shape, generator=generator)

    points = path(process, steps)
    with torch.no_grad():
        denoise = guided(gaussian(process), [guide], {}, noise=noise)
        made = resampled(SAMPLERS[name], settings)(denoise, points[0, 1] * noise(1, 1, 2), points, noise=noise)
    return float(made[..., 1].mean()), float(made[..., 1].var()), float(made[..., 0].mean())


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_known_pixels_stay_and_going_back_and_forth_brings_the_rest_to_their_posterior(process, name):
    guide = functools.partial(known_pixels, image=torch.full((1, 1, 2), KNOWN), mask=torch.tensor([False, True]))
    once, _, known = drawn(process, name, guide, steps=12)
    often, variance, again = drawn(process, name, guide, steps=12, resample=12)
    assert known == pytest.approx(KNOWN, abs=1e-4) and again == pytest.approx(KNOWN, abs=1e-4)
    assert once < 0.7, "without it the rest hardly sees what is known"
    assert often == pytest.approx(CORRELATION * KNOWN, abs=0.13) and 0.12 < variance < 0.6


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@pytest.mark.parametrize("name", ["ancestral", "heun"])
def test_what_is_measured_bends_the_rest_by_its_gradient(process, name):
    first = torch.tensor([1.0, 0.0])
    guide = functools.partial(measured, measure=lambda x: first * x, y=first * KNOWN, spread=1.0)
    mean, variance, known = drawn(process, name, guide, steps=40)
    assert known == pytest.approx(KNOWN, abs=0.03)
    assert mean == pytest.approx(CORRELATION * KNOWN, abs=0.1)
    assert variance == pytest.approx(1 - CORRELATION**2, abs=0.08)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_noise_is_added_again_as_the_process_adds_it(process):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(20_000, *shape, generator=generator)

    there, here = path(process, 10)[3], path(process, 10)[6]
    x = here[0] * 2.0 + here[1] * noise(1)
    x = noised(x, here, there, noise)
    assert float(x.mean()) == pytest.approx(2 * float(there[0]), abs=0.03 * max(1, float(there[1])))
    assert float(x.std()) == pytest.approx(float(there[1]), rel=0.03)


def test_once_is_the_sampler_itself_and_odd_numbers_are_refused():
    assert resampled(SAMPLERS["heun"], {}) is SAMPLERS["heun"]
    for options in ({"resample": 0}, {"resample": 2.5}, {"jump": True}, {"jump": "all"}):
        with pytest.raises(UserError, match="is no number of"):
            resampled(SAMPLERS["heun"], options)
