"""Guides for what is known of an image: its pixels, or a measurement of it.

`known_pixels` is the null-space method for a mask: what is known of x0 is replaced, which is DDNM without noise (Wang
et al. 2023, equation 13) and the known region of RePaint (Lugmayr et al. 2022, equation 8): a sampler then noises the
pixels that it was given. The network is not told that they are more certain than the rest, which going back and forth
(`resampling.py`) makes up for.

`measured` is posterior sampling (DPS, Chung et al. 2023) with the variance that the expected image has for white data
of deviation `spread` (Song et al. 2023, appendix A.3), so the gradient of log N(y; A x0, s^2 + r^2) needs no step size
tuned by hand: for white Gaussian data it is exact.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from aigc.diffusion.guides import conditioned, gradients


def known_pixels(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, image: Tensor, mask: Tensor) -> Tensor:
    """`image` where `mask` is False, and x0 where it is True; both broadcast with x0 `(n, c, h, w)`."""
    return torch.where(mask, x0, image)


@gradients
def measured(
    x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, measure: Callable[[Tensor], Tensor], y: Tensor,
    spread: float = 0.5, measurement_noise: float = 0.05, strength: float = 1.0,
) -> Tensor:
    """x0 + strength sigma^2 / alpha times the gradient of log p(y | x), for y = measure(x_0) + r n.

    `measure` goes from images like x0 to what is known of them, each image alone, and is differentiable; `spread` is
    the data's standard deviation, for the variance of what the network does not know yet, `measurement_noise` r, in
    units of y, and `strength` that of the guide, 1 for the posterior.
    """
    if float(alpha) == 0:                                  # pure noise says nothing of the image
        return x0
    variance = spread**2 * sigma**2 / (spread**2 * alpha**2 + sigma**2) + measurement_noise**2
    likely = -((measure(x0) - y) ** 2).sum() / (2 * variance)
    return conditioned(x0, torch.autograd.grad(strength * likely, x)[0], alpha, sigma)
