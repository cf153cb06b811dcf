"""Flow maps on Gaussian data, where they are known in closed form, and the steps of samplers that ask for them."""

import pytest
import torch

from aigc.diffusion.denoiser import Denoiser
from aigc.diffusion.flow_maps import FlowMapDenoiser, Grid, chord, step
from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.samplers import ancestral, ddim, euler
from aigc.diffusion.schedules import Cosine, Flow, Karras, path
from tests.diffusion.test_samplers import exact_denoiser, exact_flow, never

PROCESSES = [Cosine(), Karras(), Flow()]


def exact_map(x, alpha, sigma, to=None):
    """The image with which a step to `to` is right, for the data of test_samplers."""
    here = alpha, sigma
    return exact_denoiser(x, *here) if to is None else chord(x, exact_flow(x, here, to), here, to)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_chord_is_the_image_of_its_step(process):
    points = path(process, 8).double()
    x, x0 = torch.randn(2, 5, 3, 1, 1, dtype=torch.float64)
    for here, there in [(points[0], points[8]), (points[0], points[3]), (points[5], points[6])]:
        torch.testing.assert_close(chord(x, step(x, x0, here, there), here, there), x0, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_flow_map_is_exact_in_any_number_of_steps_of_euler(process, steps):
    points = Grid(process, 32).path(steps).double()
    x = points[0, 1] * torch.randn(16, 3, 1, 1, dtype=torch.float64) + points[0, 0] * exact_flow(0, (1, 1), (1, 0))
    wanted = exact_flow(x, points[0], points[-1])
    for sampler in (euler, ddim):
        torch.testing.assert_close(sampler(exact_map, x, points, noise=never), wanted, atol=1e-6, rtol=1e-6)
    far = (euler(exact_denoiser, x, points, noise=never) - wanted).abs().max()
    assert float(far) > 0.01, "without `to` the steps are only of first order"


def test_ddim_asks_for_the_point_before_noise_is_added():
    asked = []

    def denoise(x, alpha, sigma, to):
        asked.append((float(to[0]), float(to[1])))
        return torch.zeros_like(x)

    points = path(Flow(), 4)
    ancestral(denoise, torch.randn(2, 1, 1, 1), points, noise=lambda *shape: torch.zeros(2, *shape))
    assert [alpha for alpha, _ in asked] == [0.25, 0.5, 0.75, 1.0]
    ratios = [sigma / float(points[i + 1, 1]) for i, (_, sigma) in enumerate(asked[:3])]
    expected = [0.0, (0.25 * 0.5) / (0.5 * 0.75), (0.5 * 0.25) / (0.75 * 0.5)]  # of noise: Song et al. 2021, eq. 16
    assert ratios == pytest.approx(expected, abs=1e-6)


def test_samplers_take_denoisers_with_and_without_an_end():
    points, x = path(Flow(), 3), torch.randn(2, 1, 1, 1)
    made = [euler(denoise, x, points, noise=never) for denoise in (
        lambda x, alpha, sigma: 0.5 * x, lambda x, alpha, sigma, to=None: 0.5 * x, lambda x, *point, **more: 0.5 * x)]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_places_and_levels_of_a_grid(process):
    grid = Grid(process, 16)
    assert grid.levels == 4
    for k, point in enumerate(grid.points):
        assert grid.place(*point) == pytest.approx(k, abs=2e-3)
    levels = [grid.level(tuple(grid.points[0]), tuple(grid.points[k])) for k in (1, 2, 3, 4, 8, 16)]
    assert levels == [0, 1, 2, 2, 3, 4]
    assert torch.equal(grid.path(4), grid.points[::4]) and len(grid.path(16)) == 17


def test_a_denoiser_without_lengths_ignores_the_end_and_one_with_them_asks_again():
    calls = []

    def predict(names, x, t):
        calls.append(float(t[0]))
        return [torch.zeros_like(x) for _ in names]

    x, here = torch.ones(2, 1, 1, 1), torch.tensor([0.5, 0.5])
    ends = [tuple(torch.tensor([a, 1 - a])) for a in (0.7, 1.0)]
    for kind, count in ((Denoiser, 1), (FlowMapDenoiser, 3)):
        calls.clear()
        denoiser = kind(Flow(), Parametrisation("flow", 0.5), predict, lambda alpha, sigma: ["conditional"])
        alpha, sigma = here
        for end in (None, *ends, ends[1]):
            denoiser(x, alpha, sigma, end)
        assert len(calls) == count
    denoiser.ask("unconditional", x, alpha, sigma)
    assert len(calls) == 4 and denoiser.to is ends[1], "a guide asks for the same step"
