"""Samplers: free functions from noise to images, each usable with any trained process.

All follow a `path`, `(steps + 1, 2)` pairs (alpha, sigma) from noise to the image (1, 0), and use the network only
through `denoise(x, alpha, sigma)`: the expected image x_0 for x = alpha x_0 + sigma eps. `euler` and `ddim` also say
where their step ends, `to=(alpha, sigma)`, to a `denoise` that takes it: a few-step model answers with the image for
which exactly this step is right (diffusion/flow_maps.py). Steps use the finite changes of alpha and sigma themselves,
so the same line is EDM's step where alpha = 1, flow matching's where alpha + sigma = 1, and DDIM's on the circle.
`noise(c, h, w)` gives fresh N(0, 1) noise `(n, c, h, w)`, drawn per image.

The keyword parameters of a sampler besides `noise` are its options. Samplers record gradients if their caller does.
"""

import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor

from aigc.config.functions import function_named

Denoise = Callable[..., Tensor]
Noise = Callable[..., Tensor]
Sampler = Callable[..., Tensor]
SAMPLERS: dict[str, Sampler] = {}


def sampler(function: Sampler) -> Sampler:
    """Registers a sampler under its name."""
    SAMPLERS[function.__name__] = function
    return function


def sampler_named(name: Any) -> Sampler:
    """The sampler that `name` stands for: a registered one, or a user's own by its dotted name.

    Raises:
        UserError: there is none.
    """
    return function_named(name, "sampler", SAMPLERS)


def aimed(denoise: Denoise) -> Denoise:
    """`denoise(x, alpha, sigma, to)` for any `denoise`; one that does not take `to` does without."""
    kinds = {name: parameter.kind for name, parameter in inspect.signature(denoise).parameters.items()}
    if "to" in kinds or inspect.Parameter.VAR_KEYWORD in kinds.values():
        return lambda x, alpha, sigma, to: denoise(x, alpha, sigma, to=to)
    return lambda x, alpha, sigma, to: denoise(x, alpha, sigma)


@sampler
def ddim(denoise: Denoise, x: Tensor, path: Tensor, *, noise: Noise, eta: float = 0.0) -> Tensor:
    """Song et al. 2021, eq. 12; `eta` from 0 (deterministic) to 1 (all of DDPM's noise). Order 1."""
    ask = aimed(denoise)
    for (alpha, sigma), (alpha_next, sigma_next) in pairwise(path):
        fresh = eta * ancestral_noise(alpha, sigma, alpha_next, sigma_next)
        kept = (sigma_next**2 - fresh**2).clamp(min=0).sqrt()
        x0 = ask(x, alpha, sigma, (alpha_next, kept))
        eps = (x - alpha * x0) / sigma
        x = alpha_next * x0 + kept * eps
        if fresh > 0:
            x = x + fresh * noise(*x.shape[1:])
    return x


@sampler
def ancestral(denoise: Denoise, x: Tensor, path: Tensor, *, noise: Noise) -> Tensor:
    """Ho et al. 2020, algorithm 2: every step draws from the posterior of the next image given this one and x_0."""
    return ddim(denoise, x, path, noise=noise, eta=1.0)


@sampler
def euler(denoise: Denoise, x: Tensor, path: Tensor, *, noise: Noise, churn: float = 0.0) -> Tensor:
    """Karras et al. 2022, algorithm 2 without the correction; equals `ddim` if `churn` is 0. Order 1."""
    ask = aimed(denoise)
    for (alpha, sigma), (alpha_next, sigma_next) in pairwise(path):
        x, sigma = churned(x, alpha, sigma, share=churn / (len(path) - 1), noise=noise)
        x0 = ask(x, alpha, sigma, (alpha_next, sigma_next))
        eps = (x - alpha * x0) / sigma
        x = x + (alpha_next - alpha) * x0 + (sigma_next - sigma) * eps
    return x


@sampler
def heun(denoise: Denoise, x: Tensor, path: Tensor, *, noise: Noise, churn: float = 0.0) -> Tensor:
    """Karras et al. 2022, algorithm 2; two evaluations per step, one in the last. Order 2."""
    for (alpha, sigma), (alpha_next, sigma_next) in pairwise(path):
        x, sigma = churned(x, alpha, sigma, share=churn / (len(path) - 1), noise=noise)
        x0 = denoise(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        ahead = x + (alpha_next - alpha) * x0 + (sigma_next - sigma) * eps
        if sigma_next > 0:
            x0_next = denoise(ahead, alpha_next, sigma_next)
            eps_next = (ahead - alpha_next * x0_next) / sigma_next
            x0, eps = (x0 + x0_next) / 2, (eps + eps_next) / 2
            ahead = x + (alpha_next - alpha) * x0 + (sigma_next - sigma) * eps
        x = ahead
    return x


@sampler
def dpmpp_2m(denoise: Denoise, x: Tensor, path: Tensor, *, noise: Noise) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; one evaluation per step. Order 2, first and last step order 1."""
    last: tuple[Tensor, Tensor] | None = None  # x_0 and h of the previous step
    for (alpha, sigma), (alpha_next, sigma_next) in pairwise(path):
        x0 = denoise(x, alpha, sigma)
        h = ((alpha_next * sigma) / (alpha * sigma_next)).log()  # change of log(alpha / sigma); infinite at either end
        ahead = x0
        if last is not None and h.isfinite():
            ahead = x0 + h / (2 * last[1]) * (x0 - last[0])
        x = sigma_next / sigma * x + (alpha_next - alpha * sigma_next / sigma) * ahead
        last = x0, h
    return x


def ancestral_noise(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Tensor:
    """Standard deviation of the DDPM posterior q(x_next | x, x_0); Song et al. 2021, eq. 16."""
    ratio = alpha * sigma_next / (alpha_next * sigma)  # reduction of the noise relative to the image
    return sigma_next * (1 - ratio**2).clamp(min=0).sqrt()


def churned(x: Tensor, alpha: Tensor, sigma: Tensor, *, share: float, noise: Noise) -> tuple[Tensor, Tensor]:
    """Raises the noise of x by a `share`, at most sqrt(2) - 1, before a step; Karras et al. 2022, algorithm 2."""
    if share <= 0 or alpha == 0:
        return x, sigma
    raised = sigma * (1 + min(share, 2**0.5 - 1))
    return x + (raised**2 - sigma**2).sqrt() * noise(*x.shape[1:]), raised
