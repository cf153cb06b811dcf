"""Pictures projected into the latents of a generator steered by styles (Karras et al. 2020a, appendix D).

The latent is found by descent from the nearest of some random ones: in z, in w (a style for all layers) or in w+ (a
style for each layer). Noise on it, less and less, keeps the search from the first best place; the layers' noise maps
learn what no style explains, and a penalty on their autocorrelation keeps the picture itself out of them.
"""

from collections.abc import Callable, Sequence
from math import cos, pi
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError, choices
from aigc.noise import SeededNoise

SPACES = ("w", "z", "w+")
STARTS = 64                                                # random latents, the nearest of which a picture starts from
NOISE, NOISE_UNTIL = 0.05, 0.75                            # at the start, in deviations of w; share of the steps
RISE, FALL = 0.05, 0.25                                    # shares of the steps in which the rate rises and falls
Distance = Callable[[Tensor, Tensor], Tensor]              # images, targets (n, c, h, w) -> (n,)


class Projection(NamedTuple):
    """What a picture was projected to."""

    latents: Tensor                                        # (n, latent), (n, style) or (n, layers, style)
    noise: list[Tensor]                                    # (n, 1, h, w) of each layer


def project(
    generator: Any,
    images: Tensor,
    labels: Tensor | None,
    *,
    latent: int,                                           # length of z
    classes: int | None = None,                            # starts are of all of them where there are no labels
    space: str = "w",                                      # w, z or w+
    steps: int = 200,
    rate: float = 0.1,                                     # Adam's, of latents and noise maps
    pixels: float = 1.0,                                   # weight of the mean squared difference
    perceptual: Distance | None = None,                    # e.g. a `losses.perceptual.Perceptual`
    noise_weight: float = 1e5,                             # of the noise maps' autocorrelation
    seeds: Sequence[int] | None = None,                    # of each search; None: 0 for all
) -> Projection:
    """Latents and noise maps from which `generator` makes pictures like `images` `(n, c, h, w)` in [-1, 1].

    A picture's result does not depend on the others. `generator(w+, noise)` makes images, and it has
    `style(z, labels)`, `styles(w)` and `synthesis.noise_shapes()`: see `models.stylegan2.Generator`.

    Raises:
        UserError: the space is unknown.
    """
    if space not in SPACES:
        raise UserError(f"space={space} is unknown: {choices(space, SPACES)}")
    n, draw = len(images), SeededNoise([0] * len(images) if seeds is None else seeds, images.device)

    def styles_of(latents: Tensor) -> Tensor:
        if space == "z":
            return generator.styles(generator.style(latents, labels))
        return generator.styles(latents) if space == "w" else latents

    def unlike(made: Tensor) -> Tensor:                    # (n,)
        different = pixels * (made - images).square().mean((1, 2, 3))
        return different if perceptual is None else different + perceptual(made, images)

    with torch.no_grad():
        z = draw(STARTS, latent).transpose(0, 1)           # (starts, n, latent)
        of_start = [labels if labels is not None or not classes else labels_like(images, k % classes)
                    for k in range(STARTS)]
        w = torch.stack([generator.style(one, its) for one, its in zip(z, of_start, strict=True)])
        apart = torch.stack([unlike(generator(generator.styles(one), "const")) for one in w])
        starts = z if space == "z" else w
        found = starts[apart.argmin(0), torch.arange(n, device=images.device)]
        spread = NOISE * starts.var(0).sum(1).sqrt()       # (n,)
        if space == "w+":
            found = generator.styles(found).clone()
        spread = spread.view(n, *[1] * (found.dim() - 1))
    found.requires_grad_()
    noise = [draw(*shape).requires_grad_() for shape in generator.synthesis.noise_shapes()]
    optimizer = torch.optim.Adam([found, *noise], lr=rate, betas=(0.9, 0.999))
    for step in range(steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / steps / RISE) * _fall(done)
        strength = max(0.0, 1 - done / NOISE_UNTIL) ** 2
        tried = found + strength * spread * draw(*found.shape[1:])
        loss = unlike(generator(styles_of(tried), noise)) + noise_weight * autocorrelation(noise)
        optimizer.zero_grad()
        loss.sum().backward(inputs=[found, *noise])
        optimizer.step()
        with torch.no_grad():
            for one in noise:
                one -= one.mean((1, 2, 3), keepdim=True)
                one *= (one.square().mean((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
    return Projection(found.detach(), [one.detach() for one in noise])


def labels_like(images: Tensor, label: int) -> Tensor:
    """`label` for each of images: `(n,)`."""
    return torch.full((len(images),), label, device=images.device)


def _fall(done: float) -> float:
    return 0.5 - 0.5 * cos(pi * min(1.0, (1 - done) / FALL))


def autocorrelation(noise: Sequence[Tensor]) -> Tensor:
    """Squared correlation of each noise map `(n, 1, h, w)` with itself one pixel on, on scales down to 8: `(n,)`."""
    total = noise[0].new_zeros(len(noise[0]))
    for one in noise:
        while True:
            for dim in (2, 3):
                total = total + (one * one.roll(1, dim)).mean((1, 2, 3)).square()
            if min(one.shape[2:]) < 16:
                break
            one = F.avg_pool2d(one, 2)
    return total
