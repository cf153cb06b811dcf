"""Samplers against a Gaussian data distribution, whose exact denoiser and exact flow are known in closed form.

For x_0 ~ N(mu, diag(c)), E[x_0 | x] = mu + c alpha (x - alpha mu) / (c alpha^2 + sigma^2), and the probability flow
moves (x - alpha mu) in proportion to sqrt(c alpha^2 + sigma^2).
"""

import functools

import numpy as np
import pytest
import torch

from aigc.diffusion.samplers import SAMPLERS, ancestral, ddim, dpmpp_2m, euler, heun
from aigc.diffusion.schedules import Cosine, Flow, Karras, path
from aigc.noise import SeededNoise

MEAN = torch.tensor([0.7, -0.4, 0.1], dtype=torch.float64).view(3, 1, 1)
VARIANCE = torch.tensor([0.04, 0.5, 1.7], dtype=torch.float64).view(3, 1, 1)
PROCESSES = [Cosine(), Karras(), Flow()]
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2}


def exact_denoiser(x, alpha, sigma):
    return MEAN + VARIANCE * alpha * (x - alpha * MEAN) / (VARIANCE * alpha**2 + sigma**2)


def exact_flow(x, start, end):
    spread = [(VARIANCE * point[0] ** 2 + point[1] ** 2).sqrt() for point in (start, end)]
    return end[0] * MEAN + spread[1] / spread[0] * (x - start[0] * MEAN)


def smooth_path(process, steps):
    """A path between two finite noise levels, even in the process's own clock: orders are asymptotic statements."""
    edges = process.time(torch.tensor([10.0, 0.05], dtype=torch.float64))
    if isinstance(process, Karras):
        t = torch.linspace(*(edges ** (1 / 7)).tolist(), steps + 1, dtype=torch.float64) ** 7
    else:
        t = torch.linspace(*edges.tolist(), steps + 1, dtype=torch.float64)
    return torch.stack(process.scales(t), dim=1)


def never(*shape):
    raise AssertionError("a deterministic sampler drew noise")


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", ORDERS)
def test_converges_to_the_closed_form_at_its_order(process, name):
    steps = np.array([32, 64, 128, 256])
    errors = []
    for count in steps:
        points = smooth_path(process, int(count))
        start = points[0, 1] * SeededNoise(range(16))(3, 1, 1).double() + points[0, 0] * MEAN
        made = SAMPLERS[name](exact_denoiser, start, points, noise=never)
        errors.append(float((made - exact_flow(start, points[0], points[-1])).abs().max()))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[name], abs=0.2), f"errors {errors}"


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", ORDERS)
def test_whole_paths_give_the_data_distribution(process, name):
    points = path(process, 300).double()
    start = points[0, 1] * SeededNoise(range(64))(3, 1, 1).double()
    made = SAMPLERS[name](exact_denoiser, start, points, noise=never)
    expected = MEAN + VARIANCE.sqrt() * start / points[0, 1]
    assert float((made - expected).abs().max()) < (0.06 if ORDERS[name] == 1 else 0.03)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [(ancestral, 0.09), (functools.partial(euler, churn=40.0), 0.09), (functools.partial(heun, churn=40.0), 0.03)],
    ids=["ancestral", "euler-churn", "heun-churn"],
)
def test_stochastic_samplers_keep_mean_and_variance(process, sampler, tolerance):
    points = path(process, 400).double()
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(20_000, *shape, generator=generator, dtype=torch.float64)

    made = sampler(exact_denoiser, points[0, 1] * noise(3, 1, 1), points, noise=noise)
    # a first-order deficit at 400 steps, and the sampling error of 20,000 draws
    assert float((made.mean(0) - MEAN).abs().max()) < 0.03
    assert float((made.var(0) / VARIANCE - 1).abs().max()) < tolerance


def test_one_ancestral_step_is_the_posterior():
    alpha, sigma, alpha_next, sigma_next = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 0.8, 0.8, 0.6))
    x, x0 = torch.full((50_000, 1, 1, 1), 0.9, dtype=torch.float64), 0.5
    generator = torch.Generator().manual_seed(1)
    made = ancestral(
        lambda x, a, s: torch.full_like(x, x0), x, torch.stack([alpha, sigma, alpha_next, sigma_next]).view(2, 2),
        noise=lambda *shape: torch.randn(50_000, *shape, generator=generator, dtype=torch.float64),
    )
    step = (alpha / alpha_next) ** 2                                   # Ho et al. 2020, eq. 7: alpha_t
    variance = (1 - step) * sigma_next**2 / sigma**2
    mean = alpha_next * (1 - step) / sigma**2 * x0 + step.sqrt() * sigma_next**2 / sigma**2 * 0.9
    assert float(made.mean()) == pytest.approx(float(mean), abs=5e-3)
    assert float(made.var()) == pytest.approx(float(variance), rel=0.03)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_euler_without_churn_is_ddim(process):
    points = path(process, 10)
    start = points[0, 1] * SeededNoise([1, 2])(3, 1, 1)
    denoise = lambda x, a, s: exact_denoiser(x, a, s).float()  # noqa: E731
    torch.testing.assert_close(
        euler(denoise, start, points, noise=never), ddim(denoise, start, points, noise=never), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "calls"), [("ddim", 6), ("ancestral", 6), ("euler", 6), ("heun", 11), ("dpmpp_2m", 6)]
)
def test_evaluations_per_image(name, calls):
    counted = []

    def denoise(x, alpha, sigma):
        counted.append(float(sigma))
        return exact_denoiser(x, alpha, sigma)

    points = path(Flow(), 6)
    made = SAMPLERS[name](denoise, torch.zeros(2, 3, 1, 1), points, noise=SeededNoise([0, 1]))
    assert len(counted) == calls
    assert min(counted) > 0
    assert made.isfinite().all()


def test_dpmpp_is_nearer_than_ddim_at_equal_evaluations():
    points = path(Karras(), 20).double()
    start = points[0, 1] * SeededNoise(range(32))(3, 1, 1).double()
    truth = MEAN + VARIANCE.sqrt() * start / points[0, 1]
    far = (ddim(exact_denoiser, start, points, noise=never) - truth).abs().mean()
    near = (dpmpp_2m(exact_denoiser, start, points, noise=never) - truth).abs().mean()
    assert near < far / 3
