"""What a residual discriminator is made of (Karras et al. 2020a): filtered halvings, and the minibatch's deviation."""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.equalized import EqualizedConv
from aigc.networks.resample import blur, downsample


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second halves the grid; if `residual`, beside a halved 1x1: their sum over sqrt 2."""

    def __init__(self, inputs: int, outputs: int, *, residual: bool = True):
        super().__init__()
        scale = sqrt(0.5) if residual else 1.0
        self.first = EqualizedConv(inputs, inputs, 3, active=True)
        self.second = EqualizedConv(inputs, outputs, 3, stride=2, padding=0, active=True, scale=scale)
        self.skip = EqualizedConv(inputs, outputs, 1, bias=False, scale=scale) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """`(n, outputs, ceil(h / 2), ceil(w / 2))`; an odd side gets one more row of zeros."""
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        y = self.second(blur(self.first(x), 2))
        return y if self.skip is None else self.skip(downsample(x)).add_(y)


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """`x` `(n, c, h, w)` with one more channel: the deviation within groups of images that follow each other.

    Of each feature and place, then their mean (Karras et al. 2018, section 3). A group has `group` images, or as many
    below that as divide n: which images it has does not depend on how many ranks there are.
    """
    size = next(size for size in range(min(group, len(x)), 0, -1) if len(x) % size == 0)
    grouped = x.float().unflatten(0, (-1, size))
    deviation = ((grouped - grouped.mean(1, keepdim=True)).square().mean(1) + 1e-8).sqrt().mean((1, 2, 3))
    deviation = deviation.repeat_interleave(size).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, deviation.to(x.dtype)], dim=1)
