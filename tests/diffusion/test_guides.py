"""Guides against closed forms: a measured Gaussian's posterior, guidance's own formula, pixels that are known.

For x_0 ~ N(mu, c) and y = x_0 + r n, everything is Gaussian: the denoiser, its gradient and the posterior are exact.
"""

import functools

import numpy as np
import pytest
import torch

from aigc.diffusion.denoiser import Denoiser
from aigc.diffusion.guides import GUIDES, gradients, guided, guides_named
from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.samplers import SAMPLERS
from aigc.diffusion.schedules import Cosine, Flow, Karras, path
from aigc.errors import UserError
from tests.models.test_diffusion import tiny

MEAN, VARIANCE = 0.3, 0.5
Y, R2 = 1.1, 0.2                     # the measurement and the variance of its noise
PROCESSES = [Cosine(), Karras(), Flow()]


def gaussian(process, calls=None):
    """The exact denoiser of N(MEAN, VARIANCE), as a network that predicts x_0."""
    def predict(names, x, t):
        if calls is not None:
            calls.append(list(names))
        alpha, sigma = process.scales(t[:1])
        x0 = MEAN + VARIANCE * alpha * (x - alpha * MEAN) / (VARIANCE * alpha**2 + sigma**2)
        return [x0 + 0.1 * k for k, _ in enumerate(names)]

    return Denoiser(process, Parametrisation("x0", 0.5), predict, lambda alpha, sigma: ["conditional"])


@gradients
def measured(x, x0, alpha, sigma, *, y, r2):
    """log p(y | x) = log N(y; x0, r2 + Var(x_0 | x)), differentiated by x through the network."""
    spread = VARIANCE * sigma**2 / (VARIANCE * alpha**2 + sigma**2) + r2
    gradient = torch.autograd.grad((-((y - x0) ** 2) / (2 * spread)).sum(), x)[0]
    return x0 + sigma**2 / alpha * gradient


def posterior(y=Y, r2=R2):
    variance = 1 / (1 / VARIANCE + 1 / r2)
    return variance * (MEAN / VARIANCE + y / r2), variance


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("level", [0.1, 1.0, 7.0])
def test_a_likelihoods_gradient_gives_the_posteriors_denoiser(process, level):
    alpha, sigma = (one.double() for one in process.scales(process.time(torch.tensor(level))))
    x = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        bent = guided(gaussian(process), [measured], {"y": Y, "r2": R2}, noise=None)(x, alpha, sigma)
    mean, variance = posterior()
    exact = mean + variance * alpha * (x - alpha * mean) / (variance * alpha**2 + sigma**2)
    torch.testing.assert_close(bent, exact, atol=1e-5, rtol=1e-5)
    assert not bent.requires_grad


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_and_process_draws_from_the_posterior(process, name):
    points = path(process, 300)
    if float(points[0, 0]) == 0:     # sigma^2 / alpha: a guide by Tweedie's formula begins where there is some image
        points = points[1:]
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(20_000, *shape, generator=generator)

    with torch.no_grad():
        denoise = guided(gaussian(process), [measured], {"y": Y, "r2": R2}, noise=noise)
        made = SAMPLERS[name](denoise, points[0, 1] * noise(1, 1, 1), points, noise=noise)
    mean, variance = posterior()
    assert float(made.mean()) == pytest.approx(mean, abs=0.02)
    assert float(made.var()) == pytest.approx(variance, rel=0.08)


def test_without_a_mark_nothing_is_recorded_and_guides_act_in_their_order():
    seen = []

    def double(x, x0, alpha, sigma):
        seen.append((x.requires_grad, torch.is_grad_enabled()))
        return 2 * x0

    def add(x, x0, alpha, sigma, *, much=1.0):
        return x0 + much

    x, alpha, sigma = torch.zeros(2, 1, 1, 1), torch.tensor(0.6), torch.tensor(0.8)
    with torch.no_grad():
        plain = gaussian(Cosine())(x, alpha, sigma)
        bent = guided(gaussian(Cosine()), [double, add], {"much": 3.0, "other": 1}, noise=None)(x, alpha, sigma)
    assert torch.equal(bent, 2 * plain + 3)
    assert seen == [(False, False)]


def test_guidance_mixes_two_answers_by_its_formula_and_asks_for_each_once():
    calls = []
    denoiser, x = gaussian(Flow(), calls), torch.randn(2, 1, 2, 2)
    alpha, sigma = torch.tensor(0.4), torch.tensor(0.6)
    guide = GUIDES["classifier_free"]
    conditional = denoiser(x, alpha, sigma)
    assert denoiser(x, alpha, sigma) is conditional
    unconditional = denoiser.ask("unconditional", x, alpha, sigma)
    for w in (0.0, 0.5, 1.0, 2.5):
        made = guide(x, conditional, alpha, sigma, denoiser=denoiser, guidance=w)
        torch.testing.assert_close(made, unconditional + w * (conditional - unconditional), atol=1e-5, rtol=1e-5)
    bent = conditional + 1           # an answer that another guide has changed counts as it is
    made = guide(x, bent, alpha, sigma, denoiser=denoiser, guidance=2.0)
    torch.testing.assert_close(made, 2 * bent - unconditional)
    assert calls == [["conditional"], ["unconditional"]]
    off = guide(x, conditional, alpha, sigma, denoiser=denoiser, guidance=3.0, guidance_interval=(2, 9))
    assert off is conditional


def known_pixels(x, x0, alpha, sigma, *, image, mask):
    return torch.where(mask, image, x0)


@pytest.mark.parametrize("name", ["diffusion", "ddpm", "edm"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_pixels_are_kept(name, sampler):
    model = tiny(name)
    image, mask = torch.rand(1, 8, 8) * 2 - 1, torch.arange(8).expand(1, 8, 8) < 4
    given = {"condition": [0, 1, 2], "seeds": [1, 2, 3], "sampler": sampler, "steps": 6}
    made = model.sample(3, guide=functools.partial(known_pixels, image=image, mask=mask), **given)
    torch.testing.assert_close(made[:, mask], image[mask].expand(3, -1), atol=2e-3, rtol=0)
    free = model.sample(3, **given)
    assert float((made - free)[:, ~mask].abs().max()) > 1e-4, "the rest goes along"
    assert float((free[:, mask] - image[mask]).abs().max()) > 0.1


def test_dynamic_thresholding_is_its_formula_for_each_image_alone():
    x0 = torch.stack([torch.linspace(-3, 1, 1000), torch.linspace(-0.9, 0.9, 1000)]).view(2, 1, 10, 100)
    bent = GUIDES["dynamic_threshold"](x0, x0, torch.tensor(1.0), torch.tensor(1.0))
    s = float(np.quantile(x0[0].abs().numpy(), 0.995))
    assert s == pytest.approx(2.98, abs=0.005)
    torch.testing.assert_close(bent[0], x0[0].clamp(-s, s) / s)
    assert torch.equal(bent[1], x0[1]), "within [-1, 1] nothing is done, whatever its neighbours are"
    half = GUIDES["dynamic_threshold"](x0, x0, torch.tensor(1.0), torch.tensor(1.0), percentile=0.5)
    assert float(half[0].min()) == -1 and float((half[0] == -1).float().mean()) == pytest.approx(0.5, abs=0.01)
    static = GUIDES["static_threshold"](x0, x0, torch.tensor(1.0), torch.tensor(1.0))
    assert torch.equal(static, x0.clamp(-1, 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_thresholds_act_after_guidance_with_every_sampler(sampler):
    model, seen = tiny(), []

    def look(x, x0, alpha, sigma):
        seen.append(float(x0.abs().max()))
        return x0

    given = {"condition": [0, 1], "seeds": [1, 2], "sampler": sampler, "steps": 4, "guidance": 8.0,
             "guidance_interval": None}
    model.sample(2, guide=[look], **given)
    assert max(seen) > 1.5, "guidance leaves the range of images"
    for name in ("dynamic_threshold", "static_threshold"):
        seen.clear()
        model.sample(2, guide=[name, look], **given)
        assert max(seen) <= 1


def test_thresholds_have_no_place_in_latents():
    assert guides_named("dynamic_threshold", latent=False) == [GUIDES["dynamic_threshold"]]
    with pytest.raises(UserError, match=r"guide=static_threshold keeps pixels in .* samples latents"):
        guides_named(["static_threshold"], latent=True)


@gradients
def brighter(x, x0, alpha, sigma, *, by):
    return x0 + by * torch.autograd.grad(x0.sum(), x)[0].sign()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_guide_gets_gradients_through_the_trained_network_wherever_sampling_is_called(mode):
    model = tiny()
    with mode():
        labels = torch.tensor([0, 1])
        given = {"condition": labels, "seeds": [1, 2], "steps": 3}
        made = model.sample(2, guide=[brighter], by=0.05, **given)
        plain = model.sample(2, **given)
    assert not made.requires_grad
    assert float((made - plain).abs().max()) > 0.01
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- a user's own, by dotted name ----

OWN = '''
import torch

def dimmer(x, x0, alpha, sigma, *, factor=0.5):
    return factor * x0

def needy(x, x0, alpha, sigma, *, strength):
    return x0

def _hidden(x, x0, alpha, sigma):
    return x0

def midpoint(denoise, x, path, *, noise, share=0.5):
    for a, b in zip(path[:-1], path[1:]):
        x0 = denoise(x, a[0], a[1])
        x = b[0] * x0 + b[1] * (x - a[0] * x0) / a[1] * (0.5 + share)
    return x

from torch.nn.functional import relu
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_bending.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "own_bending")


def test_ones_own_guide_and_sampler_are_named_by_their_place(own):
    model = tiny()
    given = {"condition": [0, 1], "seeds": [1, 2], "steps": 3}
    plain = model.sample(2, sampler="euler", **given)
    assert torch.equal(model.sample(2, sampler="own_bending.midpoint", **given), model.sample(
        2, sampler="own_bending.midpoint", share=0.5, **given))
    made = model.sample(2, sampler="own_bending.midpoint", **given)
    torch.testing.assert_close(made, plain, atol=1e-5, rtol=1e-5)
    zero = model.sample(2, sampler="euler", guide="own_bending.dimmer", factor=0.0, **given)
    torch.testing.assert_close(zero, torch.zeros_like(zero))
    kept = tiny(sampler={"name": "own_bending.midpoint", "steps": 3, "guide": "own_bending.dimmer", "factor": 0.0})
    assert float(kept.sample(2, seeds=[1, 2]).abs().max()) < 1e-6, "from a recipe"
    assert float(kept.sample(2, seeds=[1, 2], sampler="heun").abs().max()) < 1e-6, "a guide goes with any sampler"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guide": "own_bending.dimmer", "facto": 1}, "no option 'facto': did you mean 'factor'"),
        ({"guide": "own_bending.needy"}, "The guide 'needy' needs the option 'strength'"),
        ({"guide": "own_bending._hidden"}, "is private"),
        ({"guide": "own_bending.relu"}, "not a function of that package"),
        ({"guide": "own_bending.dimer"}, "does not exist"),
        ({"guide": "os.system"}, "in no package that you trust.*AIGC_ALLOW_TARGETS"),
        ({"sampler": "os.path.join"}, "The sampler 'os.path.join' is in no package that you trust"),
        ({"guide": "classifier_fre"}, "no guide 'classifier_fre': did you mean 'classifier_free'"),
        ({"guide": 3}, "There is no guide '3'"),
        ({"sampler": "own_bending.midpoint", "eta": 1}, "The sampler 'own_bending.midpoint' has no option 'eta'"),
    ],
)
def test_what_is_no_guide_or_not_allowed_is_refused(own, options, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny().sample(1, condition=[0], seeds=[1], **options)


def test_no_guide_is_none():
    assert guides_named(None) == []
    assert [one.__name__ for one in guides_named(["autoguidance", known_pixels])] == ["autoguidance", "known_pixels"]
