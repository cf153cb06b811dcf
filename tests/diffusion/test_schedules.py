"""Processes: conversions round trip, and weights in x_0 space are those of the papers."""

import math

import pytest
import torch

from aigc.diffusion.parametrisations import PARAMETRISATIONS, Parametrisation, loss_factor
from aigc.diffusion.schedules import Cosine, Flow, Karras, build_process, karras_noises, normal_quantile, path
from aigc.errors import UserError

PROCESSES = [Cosine(), Cosine(terminal_alpha=0.01), Karras(), Flow()]
INSIDE = {Cosine: (0.05, 0.95), Karras: (0.05, 20.0), Flow: (0.05, 0.95)}


def interior_times(process, n=9):
    low, high = INSIDE[type(process)]
    return torch.linspace(low, high, n)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_prediction_and_image_round_trip(process, name):
    generator = torch.Generator().manual_seed(0)
    t = interior_times(process)
    alpha, sigma = (c[:, None] for c in process.scales(t))
    x0, eps = torch.randn(9, 7, generator=generator), torch.randn(9, 7, generator=generator)
    parametrisation = Parametrisation(name, 0.5)
    x_t = alpha * x0 + sigma * eps
    target = parametrisation.target(x0, eps, alpha, sigma)
    torch.testing.assert_close(parametrisation.x0(target, x_t, alpha, sigma), x0, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_weight_is_the_ratio_of_squared_errors(process, name):
    t = interior_times(process)
    alpha, sigma = process.scales(t)
    parametrisation = Parametrisation(name, 0.5)
    x_t, prediction = torch.tensor(0.3), torch.tensor(-0.2)
    moved = [parametrisation.x0(prediction + by, x_t, alpha, sigma) for by in (0.0, 0.1)]
    ratio = 0.1**2 / (moved[1] - moved[0]) ** 2
    torch.testing.assert_close(ratio, parametrisation.weight(alpha, sigma), rtol=2e-3, atol=1e-5)


def test_weights_are_those_of_the_papers():
    t = torch.linspace(0.1, 0.9, 5)
    alpha, sigma = Cosine().scales(t)
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(Parametrisation("eps", 0.5).weight(alpha, sigma), snr)
    torch.testing.assert_close(Parametrisation("v", 0.5).weight(alpha, sigma), snr + 1)
    torch.testing.assert_close(Parametrisation("x0", 0.5).weight(alpha, sigma), torch.ones(5))
    s = torch.tensor([0.01, 0.5, 3.0, 50.0])
    torch.testing.assert_close(
        Parametrisation("edm", 0.6).weight(*Karras().scales(s)), (s**2 + 0.6**2) / (s * 0.6) ** 2
    )
    torch.testing.assert_close(Parametrisation("flow", 0.5).weight(*Flow().scales(t)), 1 / (1 - t) ** 2)


def test_any_loss_can_be_weighted_as_any_other():
    alpha, sigma = Cosine().scales(torch.linspace(0.1, 0.9, 5))
    snr = (alpha / sigma) ** 2
    v, x0 = Parametrisation("v", 0.5), Parametrisation("x0", 0.5)
    torch.testing.assert_close(loss_factor("own", v, alpha, sigma), torch.ones(5))
    torch.testing.assert_close(loss_factor("eps", v, alpha, sigma) * (snr + 1), snr)
    torch.testing.assert_close(loss_factor("min_snr", v, alpha, sigma) * (snr + 1), snr.clamp(max=5))
    torch.testing.assert_close(loss_factor("min_snr", x0, alpha, sigma, min_snr=2.0), snr.clamp(max=2))
    torch.testing.assert_close(loss_factor("v", x0, alpha, sigma), snr + 1)


def test_edm_preconditioning_is_the_papers_and_its_target_has_unit_variance():
    sd = 0.6
    s = torch.tensor([0.002, 0.1, 0.6, 5.0, 80.0], dtype=torch.float64)
    alpha = torch.ones_like(s)
    edm = Parametrisation("edm", sd)
    p, q = edm.coefficients(alpha, s)
    torch.testing.assert_close((p * sd) ** 2 + q**2, torch.ones_like(s))
    prediction, x = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    skip, out = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt()
    torch.testing.assert_close(edm.x0(prediction, x, alpha, s), skip * x + out * prediction)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_time_inverts_the_noise_level(process):
    t = interior_times(process)
    alpha, sigma = process.scales(t)
    torch.testing.assert_close(process.time(sigma / alpha), t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("process", "first"), [(Cosine(), (0.0, 1.0)), (Karras(), (1.0, 80.0)), (Flow(), (0.0, 1.0))], ids=repr
)
@pytest.mark.parametrize("spacing", ["own", "karras", "logsnr"])
def test_paths_fall_from_noise_to_the_image(process, first, spacing):
    points = path(process, 8, spacing=spacing)
    assert points.shape == (9, 2)
    assert points[-1].tolist() == [1.0, 0.0]
    level = points[:, 1] / points[:, 0]
    assert (level.diff() < 0).all()
    if spacing == "own":
        assert tuple(points[0].tolist()) == pytest.approx(first)
    else:
        assert float(level[0]) == pytest.approx(80, rel=1e-3)
    if spacing == "logsnr":
        steps = level[:-1].log().diff()
        assert (steps / steps[0] - 1).abs().max() < 2e-3


def test_infinite_noise_is_the_first_time_trained():
    infinite = torch.tensor(float("inf"))
    assert float(Cosine().time(infinite)) == 1
    assert float(Karras().time(infinite)) == 80
    assert float(Flow().time(infinite)) == 0


def test_karras_noises_are_equation_5():
    low, high, steps, rho = 0.002, 80.0, 5, 7
    expected = [
        (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(steps)
    ]
    assert karras_noises(steps, low, high).tolist() == pytest.approx(expected, rel=1e-6)


def test_training_times_have_the_distributions_of_the_papers():
    u = (torch.arange(100_000) + 0.5) / 100_000
    log_sigma = Karras(mean=-1.2, std=1.2).quantile(u).log()
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=2e-3)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=5e-3)
    logit = torch.logit(Flow(mean=0.3, std=0.8).quantile(u).double())
    assert float(logit.mean()) == pytest.approx(0.3, abs=2e-3)
    assert float(logit.std()) == pytest.approx(0.8, abs=5e-3)
    assert float(Cosine().quantile(u).mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(normal_quantile(torch.tensor([0.975]))) == pytest.approx(1.959964, abs=1e-4)


def test_clocks_stay_near_the_unit_range():
    for process in PROCESSES:
        clock = process.clock(process.quantile(torch.linspace(0, 1, 101)))
        assert clock.isfinite().all()
        assert clock.abs().max() < 2


@pytest.mark.parametrize("name", ["ddpm", "flow"])
def test_eps_from_pure_noise_is_refused(name):
    with pytest.raises(UserError, match="zero terminal SNR"):
        build_process(name, "eps", {})


def test_eps_is_welcome_where_noise_keeps_a_trace_of_the_image():
    process = build_process("ddpm", "eps", {"terminal_alpha": 0.01})
    alpha, sigma = process.scales(torch.tensor([1.0]))
    assert float(alpha) == pytest.approx(0.01)
    assert float(alpha**2 + sigma**2) == pytest.approx(1.0)
    assert isinstance(build_process("edm", "eps", {"sigma_max": 50.0}), Karras)
    assert math.isclose(float(Cosine().scales(torch.tensor([1.0]))[0]), 0.0)


@pytest.mark.parametrize(
    ("name", "prediction", "options", "sentence"),
    [
        ("flwo", "v", {}, "did you mean 'flow'"),
        ("flow", "eps2", {}, "did you mean 'eps'"),
        ("edm", "edm", {"sigma_maks": 3.0}, "did you mean 'sigma_max'"),
    ],
)
def test_unknown_names_get_a_sentence(name, prediction, options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_process(name, prediction, options)


def test_bad_paths_get_a_sentence():
    with pytest.raises(UserError, match="at least 1"):
        path(Flow(), 0)
    with pytest.raises(UserError, match="did you mean 'karras'"):
        path(Flow(), 4, spacing="karas")
