"""Scores over SqueezeNet 1.0 (networks/squeezenet.py), from a local file: a small network for natural images.

Features are the 512 maps after the last Fire module (torchvision's `features`), averaged over all positions; logits
are the 1000 of its classifier.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError
from aigc.networks.fingerprint import state_sha256
from aigc.networks.squeezenet import SCALES, load
from aigc.scoring.networks.features import FeatureNetwork

__all__ = ["SCALES", "SqueezeNet"]


class SqueezeNet(FeatureNetwork):
    """512 features and 1000 logits.

    Args:
        weights: a local file of weights.
        preprocessing: the one that they were trained with, a name of SCALES.

    Raises:
        UserError: there is no such file, or it holds no SqueezeNet 1.0.
    """

    name = "squeezenet"
    num_features = 512
    task = "ImageNet classes"
    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: str | os.PathLike, *, preprocessing: str):
        super().__init__()
        self.network = load(weights, preprocessing=preprocessing, option="metrics")
        self.side, mean, deviation = SCALES[preprocessing]
        self.resizer = f"{self.side} x {self.side}, bilinear, antialiased; {preprocessing} preprocessing"
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        self.sha256 = state_sha256(self.network.state_dict())
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 512)` and logits `(n, 1000)` of uint8 images; grey ones are shown as RGB."""
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"SqueezeNet sees grey or RGB images, not {images.shape[1]} channels: use metrics.network=classifier"
            )
        x = images.expand(-1, 3, -1, -1).float()
        if tuple(x.shape[2:]) != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        x = ((x - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        maps = self.network.features(x)
        return maps.mean((2, 3)), self.network.classifier(maps).flatten(1)
