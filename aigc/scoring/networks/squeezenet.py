"""SqueezeNet 1.0 (Iandola et al. 2016) trained on ImageNet, from a local file: a small network for natural images.

Features are the 512 maps after the last Fire module (torchvision's `features`), averaged over all positions; logits
are the 1000 of its classifier. A file has torchvision's `squeezenet1_0` names, as .safetensors or .pth. It does not
say which preprocessing its weights were trained with, so an option does:

- caffe: RGB in 0..255 minus (123, 117, 104), not scaled, 227 x 227
- torchvision: RGB in 0..1 minus its mean over its deviation, 224 x 224
"""

import os
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError, choices
from aigc.networks.fingerprint import state_sha256
from aigc.scoring.networks.features import FeatureNetwork

SCALES = {  # side, mean and deviation of RGB in 0..255
    "caffe": (227, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)),
    "torchvision": (224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


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
        from torchvision.models import squeezenet1_0

        super().__init__()
        if preprocessing not in SCALES:
            raise UserError(f"metrics.preprocessing '{preprocessing}' is unknown: {choices(preprocessing, SCALES)}")
        self.side, mean, deviation = SCALES[preprocessing]
        self.resizer = f"{self.side} x {self.side}, bilinear, antialiased; {preprocessing} preprocessing"
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        state = read_weights(Path(weights).expanduser(), "SqueezeNet 1.0")
        self.network = squeezenet1_0(weights=None)
        try:
            self.network.load_state_dict(state)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise UserError(
                f"metrics.weights={weights} does not hold SqueezeNet 1.0's weights: give a file with torchvision's "
                "squeezenet1_0 names"
            ) from error
        self.sha256 = state_sha256(self.network.state_dict())
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """The state dict of a .safetensors or PyTorch file, on the CPU; no code in it is run.

    Raises:
        UserError: there is no such file, or it is neither; `what` names the network that it should hold.
    """
    if not path.is_file():
        raise UserError(f"metrics: {path} is not a file: give {what}'s weights, as .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
                                  pickle.UnpicklingError)) and type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"metrics: {path} cannot be read ({type(error).__name__}): give {what}'s weights, as "
                        ".safetensors or .pth") from error
