"""Guides: what may bend a denoiser's answer, each a free function that goes with every process and every sampler.

A guide is `(x, x0, alpha, sigma) -> x0`: for x = alpha x_0 + sigma eps `(n, c, h, w)` and the image x0 that the
network expects behind it, the image that the sampler is to go on with. Its keyword parameters are its options, except
those that the program gives to a guide that asks for them:

    denoiser    the `Denoiser` that x0 is from, for guides that ask the networks again
    noise       `noise(c, h, w)`: fresh N(0, 1) noise `(n, c, h, w)`, drawn per image

With g the gradient of log p(y | x) by x, conditioning on y turns x0 into x0 + sigma^2 / alpha g: Tweedie's formula,
whatever the process. A guide that differentiates x0 by x is marked by `gradients`; then x requires gradients and x0
was computed from it. Without the mark nothing is recorded, which is faster.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc.config.functions import chosen, function_named
from aigc.diffusion.denoiser import Denoiser
from aigc.diffusion.samplers import Denoise, Noise
from aigc.errors import UserError, choices

Guide = Callable[..., Tensor]
GUIDES: dict[str, Guide] = {}
GIVEN = ("denoiser", "noise")
SYMMETRIES = ("horizontal", "vertical", "both")


def guide(function: Guide) -> Guide:
    """Registers a guide under its name."""
    GUIDES[function.__name__] = function
    return function


def gradients(function: Guide) -> Guide:
    """Marks a guide that differentiates x0 by x."""
    function.gradients = True  # type: ignore[attr-defined]
    return function


def pixels(function: Guide) -> Guide:
    """Marks a guide that reads x0 as pixels in [-1, 1]: it has no place in latents."""
    function.pixels = True  # type: ignore[attr-defined]
    return function


def listed(wanted: Any) -> list[Any]:
    """The guides that one name, or a list of them, stands for, as named; None is none."""
    return [] if wanted is None else list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def guides_named(wanted: Any, *, latent: bool = False) -> list[Guide]:
    """The guides that a name, or a list of names, stands for; None is none.

    Each is a registered one, a user's own by its dotted name, or, for callers within the program, a function itself.

    Raises:
        UserError: there is no such guide, or it is for pixels and samples are `latent`.
    """
    found = [one if callable(one) else function_named(one, "guide", GUIDES) for one in listed(wanted)]
    for one in found if latent else ():
        if getattr(one, "pixels", False):
            raise UserError(f"guide={one.__name__} keeps pixels in [-1, 1], and this model samples latents, which "
                            "have no such bounds: leave it out")
    return found


def acts(interval: Sequence[float] | None, alpha: Tensor, sigma: Tensor) -> bool:
    """Whether sigma / alpha lies in `interval` (Kynkäänniemi et al. 2024); None is everywhere."""
    return interval is None or interval[0] <= float(sigma / alpha) <= interval[1]


@guide
def classifier_free(
    x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, denoiser: Denoiser, guidance: float = 1.0,
    guidance_interval: Sequence[float] | None = None,
) -> Tensor:
    """Classifier-free guidance: u + w (c - u), c with and u without the condition; w = 1 is off, 0 unconditional.

    Ho and Salimans 2022.
    """
    if guidance == 1 or not acts(guidance_interval, alpha, sigma):
        return x0
    return denoiser.lerp(denoiser.ask("unconditional", x, alpha, sigma), x0, guidance)


@guide
def autoguidance(
    x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, denoiser: Denoiser, autoguidance: float = 1.0,
    autoguidance_interval: Sequence[float] | None = None,
) -> Tensor:
    """Autoguidance: b + w (d - b), d the averaged network and b the same early in training.

    Karras et al. 2024, equation 3.
    """
    if autoguidance == 1 or not acts(autoguidance_interval, alpha, sigma):
        return x0
    return denoiser.lerp(denoiser.ask("early", x, alpha, sigma), x0, autoguidance)


@pixels
@guide
def static_threshold(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Static thresholding: x0 is clamped to [-1, 1], where images lie. Saharia et al. 2022, section 2.3."""
    return x0.clamp(-1, 1)


@pixels
@guide
def dynamic_threshold(
    x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, percentile: float = 0.995
) -> Tensor:
    """Dynamic thresholding: in each image, s = max(1, quantile of |x0|); x0 is clamped to [-s, s] and divided by s.

    What strong guidance pushes out of range comes back in, and is not lost. Saharia et al. 2022, section 2.3.
    """
    s = torch.stack([one.quantile(percentile) for one in x0.abs().float().flatten(1)]).clamp(min=1)
    s = s[:, None, None, None].to(x0.dtype)
    return x0.clamp(-s, s) / s


@guide
def symmetry(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, symmetry: str | None = None) -> Tensor:
    """Images that are their own mirror image: the left half is mirrored to the right, or the upper one downwards.

    `symmetry`: horizontal (left and right are alike), vertical (above and below), both, or None: nothing is done.
    """
    if symmetry not in (None, *SYMMETRIES):
        raise UserError(f"There is no symmetry '{symmetry}': {choices(symmetry, SYMMETRIES)}")
    for way, axis in (("horizontal", 3), ("vertical", 2)) if symmetry else ():
        if symmetry in (way, "both"):
            half = x0.narrow(axis, 0, -(-x0.shape[axis] // 2))
            x0 = torch.cat([half, half.narrow(axis, 0, x0.shape[axis] // 2).flip(axis)], dim=axis)
    return x0


def conditioned(
    x0: Tensor, gradient: Tensor, alpha: Tensor, sigma: Tensor, *, largest: float | None = None
) -> Tensor:
    """The image expected given y too: x0 + sigma^2 / alpha g, for g the gradient of log p(y | x) by x; at alpha 0, x0.

    The same as eps - sigma g for the noise, and D + sigma^2 g of EDM. No image is changed by a root mean square above
    `largest`: a change of x0 is the same for every process, where a gradient by x is not.

    Raises:
        UserError: `largest` is not above 0.
    """
    if largest is not None and not largest > 0:
        raise UserError(f"a guide that may change an image by {largest} changes nothing: give a number above 0")
    if float(alpha) == 0:
        return x0
    change = sigma**2 / alpha * gradient
    if largest is not None:
        size = change.flatten(1).square().mean(1).sqrt()[:, None, None, None]
        change = change * (largest / size.clamp(min=largest))
    return x0 + change.to(x0.dtype)


def guided(denoiser: Denoiser, guides: Sequence[Guide], settings: Mapping[str, Any], *, noise: Noise) -> Denoise:
    """`denoiser`, its answers bent by `guides` in their order, with their options in `settings`.

    Raises:
        UserError: an option without a default has no value.
    """
    plain = [one.func if isinstance(one, functools.partial) else one for one in guides]
    recorded = any(getattr(one, "gradients", False) for one in plain)
    bound = []
    for one, function in zip(guides, plain, strict=True):
        owner = f"The guide '{function.__name__}'"
        bound.append(functools.partial(one, **chosen(one, settings, owner, denoiser=denoiser, noise=noise)))

    def answer(x: Tensor, alpha: Tensor, sigma: Tensor, to: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if not recorded:
            return bent(x, alpha, sigma, to)
        with torch.enable_grad():
            return bent(x.detach().requires_grad_(True), alpha, sigma, to).detach()

    def bent(x: Tensor, alpha: Tensor, sigma: Tensor, to: tuple[Tensor, Tensor] | None) -> Tensor:
        x0 = denoiser(x, alpha, sigma, to)
        for one in bound:
            x0 = one(x, x0, alpha, sigma)
        return x0

    return answer
