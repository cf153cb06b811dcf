"""How unlike images look to a network trained on ImageNet: distances between its normalized maps at several depths.

The unlearned form of LPIPS (Zhang et al. 2018, eq. 1 with w = 1, their "net" without "-lin"): maps of each depth are
normalized to unit length over channels, squared differences are summed over channels, averaged over positions, and
added up over depths. In their table 5 it agrees with people nearly as well as the learned form, and far better than
pixels do.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.networks.pretrained import Pretrained

DEPTHS = {"efficientnet": 3, "squeezenet": 4}    # of the maps that are compared: strides 4 to 16, and 2 to 16


class Perceptual(Pretrained):
    """`perceptual(images, targets)` are distances `(n,)`, 0 for equal images, differentiable in both."""

    def __init__(self, network: str, *, option: str = "model.perceptual", **more: Any):
        super().__init__(network, option=option, **more)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances `(n,)` of images `(n, 1 or 3, h, w)` in [-1, 1], float32."""
        maps = self.maps(torch.cat([images, targets]), DEPTHS.get(self.network))
        return torch.stack([_apart(*m.float().chunk(2)) for m in maps]).sum(0)


def _apart(maps: Tensor, others: Tensor) -> Tensor:
    """Mean squared distance `(n,)` of maps `(n, c, h, w)`, each position normalized to length 1 over channels."""
    return (F.normalize(maps, dim=1, eps=1e-10) - F.normalize(others, dim=1, eps=1e-10)).square().sum(1).mean((1, 2))
