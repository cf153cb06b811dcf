"""Classifier and CLIP guidance against closed forms: mixtures of Gaussians, angles on the sphere, crops."""

import math

import pytest
import torch
import torch.nn.functional as F

from aigc.diffusion.classifier_guidance import ClassifierGuide
from aigc.diffusion.clip_guidance import CLIPGuide, out_of_range, saturation, spherical_distance, total_variation
from aigc.diffusion.cutouts import DRAWS, cutouts, uniform
from aigc.diffusion.denoiser import Denoiser
from aigc.diffusion.guides import GUIDES, conditioned, guided
from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.samplers import SAMPLERS
from aigc.diffusion.schedules import Cosine, Flow, Karras, path
from aigc.errors import UserError
from aigc.noise import SeededNoise
from tests.models.test_diffusion import tiny

ONCE = {"classifier_guidance": 1.0}
PROCESSES = [Cosine(), Karras(), Flow()]
MEANS, SHARES, VARIANCE = torch.tensor([-0.8, 0.2, 1.1]).double(), torch.tensor([0.5, 0.3, 0.2]).double(), 0.1


def likelihoods(x, alpha, sigma):
    """log p(y, x) `(n, 3)` of 1 x 1 images of a mixture of three Gaussians, up to a constant."""
    spread = VARIANCE * alpha**2 + sigma**2
    return SHARES.log() - (x.flatten(1) - alpha * MEANS) ** 2 / (2 * spread)


def told(x, alpha, sigma):
    """The exact classifier: log p(y | x)."""
    return likelihoods(x, alpha, sigma).log_softmax(1)


def expected(x, alpha, sigma, weights):
    """E[x_0 | x] if y has these probabilities `(n, 3)`."""
    each = MEANS + VARIANCE * alpha * (x.flatten(1) - alpha * MEANS) / (VARIANCE * alpha**2 + sigma**2)
    return (weights * each).sum(1).view_as(x)


def mixture(process):
    """The exact unconditional denoiser."""
    def predict(names, x, t):
        alpha, sigma = (one.double() for one in process.scales(t[:1]))
        return [expected(x, alpha, sigma, told(x, alpha, sigma).exp())]

    return Denoiser(process, Parametrisation("x0", 0.5), predict, lambda alpha, sigma: ["conditional"])


def at(process, level):
    return tuple(one.double() for one in process.scales(process.time(torch.tensor(level))))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("level", [0.2, 1.0, 5.0])
def test_the_exact_classifier_makes_a_mixtures_denoiser_that_of_one_class(process, level):
    alpha, sigma = at(process, level)
    x = torch.randn(9, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(9) % 3
    with torch.no_grad():
        made = guided(mixture(process), [ClassifierGuide(told, labels)], ONCE, noise=None)(x, alpha, sigma)
        twice = guided(mixture(process), [ClassifierGuide(told, labels)], {"classifier_guidance": 2.0},
                       noise=None)(x, alpha, sigma)
        plain = mixture(process)(x, alpha, sigma)
    exact = expected(x, alpha, sigma, F.one_hot(labels, 3).double())
    torch.testing.assert_close(made, exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(twice, plain + 2 * (exact - plain), atol=1e-5, rtol=1e-5)
    assert not made.requires_grad and float((plain - exact).abs().max()) > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_class_from_an_unconditional_denoiser(name):
    points, labels = path(Flow(), 60)[1:].double(), torch.arange(3).repeat(400)
    noise = SeededNoise(range(1200))

    def doubled(*shape):
        return noise(*shape).double()

    with torch.no_grad():
        denoise = guided(mixture(Flow()), [ClassifierGuide(told, labels)], ONCE, noise=doubled)
        made = SAMPLERS[name](denoise, points[0, 1] * doubled(1, 1, 1), points, noise=doubled).flatten()
    for k in range(3):
        own = made[labels == k]
        assert float(own.mean()) == pytest.approx(float(MEANS[k]), abs=0.08)
        assert float(own.std()) == pytest.approx(VARIANCE**0.5, rel=0.15)


@pytest.mark.parametrize("level", [0.3, 2.0])
def test_forms_for_the_noise_the_velocity_and_edm_agree(level):
    x0, eps = (torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(k)).double() for k in (0, 1))
    pull = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(2)).double()     # by x_0 + level eps
    made = []
    for process in PROCESSES:
        alpha, sigma = at(process, level)
        g = pull / alpha                                       # the same log p, of x in this frame
        made.append(conditioned(x0, g, alpha, sigma))
        bent = eps - sigma * g                                 # Dhariwal and Nichol 2021, algorithm 2
        torch.testing.assert_close((alpha * x0 + sigma * eps - sigma * bent) / alpha, made[-1])
        v = alpha * eps - sigma * x0
        norm = alpha**2 + sigma**2
        changed = Parametrisation("v", 0.5).x0(v - norm * sigma / alpha * g, alpha * x0 + sigma * eps, alpha, sigma)
        torch.testing.assert_close(changed, made[-1])
    torch.testing.assert_close(made[1], x0 + level**2 * pull)  # EDM: D + sigma^2 g
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made[2], made[1], atol=1e-5, rtol=1e-5)


def test_pure_noise_is_not_divided_by_and_each_image_is_clamped_alone():
    x0, one = torch.randn(3, 2, 4, 4), torch.tensor(1.0)
    assert conditioned(x0, torch.randn_like(x0), torch.tensor(0.0), one) is x0
    g = torch.stack([1e4 * torch.randn(2, 4, 4), 1e-3 * torch.randn(2, 4, 4), torch.zeros(2, 4, 4)])
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    free, held = (conditioned(x0, g, alpha, sigma, largest=largest) for largest in (None, 0.25))
    size = (held - x0).square().mean((1, 2, 3)).sqrt()
    assert float(size[0]) == pytest.approx(0.25, abs=1e-5) and 0 < float(size[1]) < 0.01 and float(size[2]) == 0
    assert torch.equal(held[1:], free[1:]) and bool(held.isfinite().all())
    torch.testing.assert_close(held[0] - x0[0], (free[0] - x0[0]) * 0.25 / (free[0] - x0[0]).square().mean().sqrt(),
                               atol=1e-5, rtol=1e-4)


def test_the_distance_on_the_sphere_is_half_the_square_of_the_angle():
    a, b = F.normalize(torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0)).double(), dim=2)
    angle = (a * b).sum(1).clamp(-1, 1).arccos()
    torch.testing.assert_close(spherical_distance(a, b), angle**2 / 2)
    assert float(spherical_distance(a, -a).max()) == pytest.approx(math.pi**2 / 2, abs=0.01)
    a.requires_grad_()
    for other in (a.detach(), -a.detach()):                    # where arcsin or the norm has no slope
        gradient, = torch.autograd.grad(spherical_distance(a, other).sum(), a)
        assert bool(gradient.isfinite().all())


def test_terms_that_keep_it_an_image_are_their_formulas():
    images = torch.tensor([[-1.0, 1.0], [2.0, -3.0]]).view(1, 1, 2, 2)
    assert float(out_of_range(images)) == pytest.approx((1 + 4) / 4)
    assert float(saturation(images)) == pytest.approx((1 + 2) / 4)
    assert float(total_variation(images)) == pytest.approx((4 + 25) / 2 + (9 + 16) / 2)


# ---- cutouts ----


def test_cutouts_are_the_image_and_crops_within_it_each_of_its_own_draws():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = torch.stack([rows, columns]).expand(3, 2, 16, 16)
    u = torch.rand(3, 40, DRAWS, generator=torch.Generator().manual_seed(0))
    u[..., 1] = 0.5                                            # not tilted
    made = cutouts(images, u, overview=1, least=0.5)
    assert made.shape == (40, 3, 2, 16, 16)
    torch.testing.assert_close(made[0], images, atol=1e-4, rtol=0)
    spans = made[1:, :, 0, -1, 0] - made[1:, :, 0, 0, 0]       # 15 / 16 of the side, where no border is read
    sides = (0.5 + 0.5 * u[:, 1:, 0].T) * 15
    torch.testing.assert_close(spans, sides, atol=0.3, rtol=0)
    assert float(spans.min()) < 8.5 and float(spans.max()) > 14
    assert float(made.min()) >= 0 and float(made.max()) <= 15
    alone = cutouts(images[1:2], u[1:2], overview=1, least=0.5)
    torch.testing.assert_close(alone[:, 0], made[:, 1])


def test_overviews_show_all_of_a_wide_image_and_grey_crops_have_no_colour():
    images = torch.rand(2, 3, 8, 16).requires_grad_()
    u = torch.rand(2, 12, DRAWS, generator=torch.Generator().manual_seed(1))
    made = cutouts(images, u, overview=4, grey=1.0)
    assert made.shape == (12, 2, 3, 16, 16)
    torch.testing.assert_close(made[0][:, :, 4:12], images.detach(), atol=1e-4, rtol=0)     # padded to a square
    spread = made.detach().var(2).mean((1, 2, 3))
    assert float(spread[4:].max()) < 1e-9 and float(spread[:4].min()) > 0.01
    gradient, = torch.autograd.grad(made[0].sum(), images)
    assert bool((gradient > 0.4).all())
    draws = uniform(torch.randn(20_000, generator=torch.Generator().manual_seed(2)))
    assert (float(draws.mean()), float(draws.std())) == pytest.approx((0.5, 12**-0.5), abs=0.01)


# ---- a judge that sees brightness alone ----


def brightness(images):
    """Unit vectors of the mean brightness: an angle between -90 and 90 degrees."""
    angle = torch.pi / 2 * images.mean((1, 2, 3)).clamp(-1, 1)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def towards(levels, **more):
    """A guide of each image to a brightness."""
    angle = torch.pi / 2 * torch.tensor(levels)
    targets = torch.stack([angle.cos(), angle.sin()], dim=1)[:, None]
    return CLIPGuide(brightness, targets, torch.ones(len(levels), 1), **more)


GIVEN = {"seeds": [3, 4, 5], "steps": 8, "clip_overview": (2, 1), "clip_inner": (0, 1)}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["diffusion", "ddpm", "edm"])
def test_each_image_is_pulled_to_its_own_target_by_every_sampler_and_process(name, sampler):
    model = tiny(name, condition="none")
    plain = model.sample(3, seeds=[3, 4, 5], steps=8, sampler=sampler).mean((1, 2, 3))
    made = model.sample(3, guide=[towards([0.9, -0.9, 0.9])], sampler=sampler, **GIVEN).mean((1, 2, 3))
    assert bool(((made - plain) * torch.tensor([1, -1, 1]) > 0.15).all()), (plain, made)


def test_scale_0_is_no_guide_to_the_last_bit_and_an_image_does_not_depend_on_its_batch():
    model = tiny(condition="none")
    labels = torch.tensor([0, 1, 2])

    def classify(x, alpha, sigma):
        return torch.cat([x.mean((1, 2, 3))[:, None], -x.mean((1, 2, 3))[:, None], 0 * x.mean((1, 2, 3))[:, None]],
                         dim=1).log_softmax(1)

    for sampler in ("ancestral", "heun"):
        plain = model.sample(3, sampler=sampler, seeds=[3, 4, 5], steps=8)
        off = model.sample(3, guide=[towards([1.0, 1.0, 1.0])], clip_guidance=0, sampler=sampler, **GIVEN)
        told = model.sample(3, guide=[ClassifierGuide(classify, labels)], classifier_guidance=0, sampler=sampler,
                            seeds=[3, 4, 5], steps=8)
        assert torch.equal(plain, off) and torch.equal(plain, told)
        whole = model.sample(3, guide=[towards([0.5, -0.5, 0.9])], sampler=sampler, **GIVEN)
        alone = model.sample(1, guide=[towards([-0.5])], sampler=sampler, **{**GIVEN, "seeds": [4]})
        torch.testing.assert_close(whole[1:2], alone, atol=1e-4, rtol=1e-4)
        assert float((whole - plain).abs().max()) > 0.1


def test_a_secondary_denoiser_is_differentiated_in_place_of_the_large_one():
    model, smaller = tiny(condition="none"), tiny(condition="none", early=0.0, autoguidance=1.0)
    recorded = []
    model.ema.network.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    made = model.sample(3, guide=[towards([0.9, 0.9, -0.9], secondary=smaller.denoise)], **GIVEN)
    assert recorded and not any(recorded)
    own = model.sample(3, guide=[towards([0.9, 0.9, -0.9])], **GIVEN)
    assert any(recorded)
    torch.testing.assert_close(made, own, atol=1e-4, rtol=1e-4)            # it has the same weights here


def test_weights_and_schedules_say_what_counts():
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    alpha = sigma = torch.tensor(0.5**0.5)
    seen = []

    def embed(images):
        seen.append(len(images))
        return brightness(images)

    noise = SeededNoise([0])
    how = {"noise": noise, "clip_overview": (1, 3), "clip_inner": (0, 2), "clip_clamp": None, "clip_range": 0.0}
    for weights, sign in (([0.0, 1.0], 1), ([0.0, -1.0], -1), ([1.0, 0.0], 0)):
        guide = CLIPGuide(embed, targets, torch.tensor([weights]))
        made = guide(x, 0.0 + x, alpha, sigma, clip_turn=0.6, **how)       # done: a half
        assert float(made.mean().detach()) * sign >= 0 and bool(made.any()) == bool(sign)
    CLIPGuide(embed, targets, torch.tensor([[1.0, 0.0]]))(x, 0.0 + x, alpha, sigma, clip_turn=0.4, **how)
    assert seen == [1, 1, 1, 5]


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"clip_overview": (0, 0), "clip_inner": (0, 2)}, r"clip_overview=\[0, 0\] and clip_inner=\[0, 2\] leave no"),
    ({"clip_overview": 4}, "'4' is no pair of what counts before and after clip_turn"),
    ({"clip_clamp": 0}, "may change an image by 0 changes nothing: give a number above 0"),
])
def test_options_that_leave_nothing_to_see_or_to_do_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(condition="none").sample(3, guide=[towards([0.5, 0.5, 0.5])], **{**GIVEN, **changes})


# ---- an image to start from, symmetry ----


def test_sampling_starts_from_an_image_with_the_noise_of_the_step():
    model = tiny("ddpm", condition="none")
    image = torch.rand(1, 8, 8) * 2 - 1
    near = model.sample(2, seeds=[1, 2], steps=40, skip=39, init=image, sampler="ddim")
    far = model.sample(2, seeds=[1, 2], steps=40, skip=2, init=image, sampler="ddim")
    assert float((near - image).abs().mean()) < float((far - image).abs().mean())
    points = path(model.process, 40)[20:]
    noise = SeededNoise([1, 2])(1, 8, 8)
    start, rest = model.started(noise, path(model.process, 40), {"init": image})
    assert torch.equal(rest, points)
    torch.testing.assert_close(start, points[0, 0] * image + points[0, 1] * noise)
    for given, sentence in (({"skip": 3}, "there already: give init="), ({"init": image, "skip": 40}, "at most 39"),
                            ({"init": image, "skip": 0}, "give at least 1"),
                            ({"init": torch.zeros(1, 4, 4)}, r"init is an image of shape \(1, 4, 4\)")):
        with pytest.raises(UserError, match=sentence):
            model.sample(2, seeds=[1, 2], steps=40, **given)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_symmetric_images_are_their_own_mirror_images(size):
    model = tiny("ddpm", condition="none", size=size)
    for way, axes in (("horizontal", [3]), ("vertical", [2]), ("both", [2, 3])):
        made = model.sample(1, seeds=[1], steps=4, guide="symmetry", symmetry=way)
        for axis in (2, 3):
            assert torch.allclose(made, made.flip(axis), atol=1e-5) == (axis in axes)
    with pytest.raises(UserError, match="There is no symmetry 'horizontl': did you mean 'horizontal'"):
        model.sample(1, seeds=[1], steps=4, guide="symmetry", symmetry="horizontl")
    off = GUIDES["symmetry"](made, made, torch.tensor(1.0), torch.tensor(1.0))
    assert off is made
