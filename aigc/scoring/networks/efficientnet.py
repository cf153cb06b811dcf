"""Scores over EfficientNet-Lite0 (networks/efficientnet.py): a small foreign network, whose weights come in a package.

- Images become 224 x 224 whole, by the bicubic resizing of its training. ImageNet's tests cut off the border, scores
  must not.
- It looks in float32, so that the same images have the same features on every processor, to rounding.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError
from aigc.networks.efficientnet import DEVIATION, FEATURES, INSTALL, MEAN, load, packaged
from aigc.scoring.networks.features import FeatureNetwork, exact

__all__ = ["INSTALL", "EfficientNetLite0", "packaged", "prepared"]

SIDE = 224
AT_ONCE = 32                                # images: more take memory and no less time


class EfficientNetLite0(FeatureNetwork):
    """1280 features, averaged over all positions, and 1000 logits.

    Args:
        weights: a local file with the package's names, or None: the package's own.

    Raises:
        UserError: the package is not installed, there is no such file, or it holds no EfficientNet-Lite0.
    """

    name = "efficientnet"
    num_features = FEATURES
    task = "ImageNet classes"
    resizer = f"{SIDE} x {SIDE}, bicubic, antialiased"

    def __init__(self, weights: str | os.PathLike | None = None):
        super().__init__()
        self.network, self.sha256 = load(weights, option="metrics")
        self.origin = "packaged" if weights is None else "given"
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 1280)` and logits `(n, 1000)` of uint8 images; grey ones are shown as RGB."""
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"EfficientNet-Lite0 sees grey or RGB images, not {images.shape[1]} channels: use metrics=classifier"
            )
        with exact(images.device):
            features = torch.cat([self.network(prepared(part).flip(2, 3)) for part in images.split(AT_ONCE)])
            return features, self.network.classifier(features)


def prepared(images: Tensor) -> Tensor:
    """uint8 images as the network saw those of its training: float32 `(n, 3, 224, 224)`, about -1..1."""
    x = images.float()
    if tuple(x.shape[2:]) != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
    return ((x - MEAN) / DEVIATION).expand(-1, 3, -1, -1)
