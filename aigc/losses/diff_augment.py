"""Differentiable augmentation for discriminators (DiffAugment, Zhao et al. 2020).

Real and generated images go through the same kinds of random transforms in both steps, so the generator need not
imitate augmentation and the discriminator sees more than the data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError, choices

POLICIES = ("colour", "translation", "cutout")
_TRANSLATION = 0.125                                       # largest shift as a share of the side (Zhao et al.'s code)
_CUTOUT = 0.5                                              # side of the hole as a share of the image's


@dataclass
class Transform:
    """One random transform per image; the same object transforms real and generated images."""

    policies: tuple[str, ...]
    draws: dict[str, Tensor]                               # uniform numbers in [0, 1), `(n, numbers)` per policy

    def __call__(self, images: Tensor) -> Tensor:
        """Transformed images `(n, c, h, w)`, differentiable; values may leave [-1, 1]."""
        for policy in self.policies:
            images = _APPLY[policy](images, self.draws[policy])
        return images


class DiffAugment:
    """Draws a transform per image for the chosen policies (`colour`, `translation`, `cutout`; none: the identity).

    Raises:
        UserError: a policy is unknown.
    """

    def __init__(self, policies: Sequence[str]):
        for policy in policies:
            if policy not in POLICIES:
                raise UserError(f"model.augment has no policy '{policy}': {choices(policy, POLICIES)}")
        self.policies = tuple(policies)

    def draw(self, n: int, device: torch.device | str) -> Transform:
        """A transform for n images, from torch's global generator."""
        return Transform(self.policies, {policy: torch.rand(n, 3, device=device) for policy in self.policies})


def _colour(images: Tensor, u: Tensor) -> Tensor:
    """Brightness +-0.5, saturation x 0..2 (colour images only), contrast x 0.5..1.5, in this order."""
    brightness, saturation, contrast = (column.view(-1, 1, 1, 1) for column in u.unbind(1))
    images = images + (brightness - 0.5)
    if images.shape[1] > 1:
        images = torch.lerp(images.mean(1, keepdim=True), images, (2 * saturation).to(images.dtype))
    centre = images.mean((1, 2, 3), keepdim=True)
    return centre + (images - centre) * (contrast + 0.5)


def _translation(images: Tensor, u: Tensor) -> Tensor:
    """Shift by whole pixels, up to an eighth of each side, filled with zeros."""
    n, _, h, w = images.shape

    def sources(uniform: Tensor, side: int) -> Tensor:     # (n, side): row to read for each row, 0 the border
        reach = int(side * _TRANSLATION + 0.5)
        shift = (uniform * (2 * reach + 1)).floor().long() - reach
        return (torch.arange(side, device=u.device) + shift[:, None] + 1).clamp(0, side + 1)

    rows, columns = sources(u[:, 0], h), sources(u[:, 1], w)
    image = torch.arange(n, device=u.device)[:, None, None]
    padded = F.pad(images, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    return padded[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _cutout(images: Tensor, u: Tensor) -> Tensor:
    """A hole of half the side at a random place, filled with zeros."""

    def outside(uniform: Tensor, side: int) -> Tensor:     # (n, side) bool
        hole = max(1, int(side * _CUTOUT + 0.5))
        start = (uniform * (side + 1 - hole % 2)).floor() - hole // 2
        position = torch.arange(side, device=u.device) - start[:, None]
        return (position < 0) | (position >= hole)

    h, w = images.shape[2:]
    keep = outside(u[:, 0], h)[:, None, :, None] | outside(u[:, 1], w)[:, None, None, :]
    return images * keep.to(images.dtype)


_APPLY = {"colour": _colour, "translation": _translation, "cutout": _cutout}
