"""SqueezeNet 1.0 (Iandola et al. 2016) trained on ImageNet, from a local file: a small network for natural images.

A file has torchvision's `squeezenet1_0` names, as .safetensors or .pth. It does not say which preprocessing its
weights were trained with, so an option does:

- caffe: RGB in 0..255 minus (123, 117, 104), not scaled, 227 x 227
- torchvision: RGB in 0..1 minus its mean over its deviation, 224 x 224
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.errors import UserError, choices
from aigc.networks.weights import read_weights

SCALES = {  # side, mean and deviation of RGB in 0..255
    "caffe": (227, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0)),
    "torchvision": (224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}


def build() -> Any:
    """Torchvision's network, with weights of chance."""
    from torchvision.models import squeezenet1_0

    return squeezenet1_0(weights=None)


def maps(network: Any, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """What these layers of a network's `features` say of scaled images `(n, 3, h, w)`."""
    found = []
    for k, layer in enumerate(network.features[: layers[-1] + 1]):
        x = layer(x)
        if k in layers:
            found.append(x)
    return found


def load(weights: str | os.PathLike, *, preprocessing: str, option: str) -> Any:
    """Torchvision's network with the weights of a file, frozen.

    Args:
        weights: a local file.
        preprocessing: the one that they were trained with, a name of SCALES.
        option: what asks for it, for errors, e.g. `metrics`.

    Raises:
        UserError: there is no such file, or it holds no SqueezeNet 1.0.
    """
    if preprocessing not in SCALES:
        raise UserError(f"{option}.preprocessing '{preprocessing}' is unknown: {choices(preprocessing, SCALES)}")
    state = read_weights(Path(weights).expanduser(), "SqueezeNet 1.0", option=option)
    network = build()
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{option}.weights={weights} does not hold SqueezeNet 1.0's weights: give a file with "
                        "torchvision's squeezenet1_0 names") from error
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
