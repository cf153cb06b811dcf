"""The convolutional encoder and decoder of families that turn images into a grid of latents, and back.

Notable:
- The layout of VQGAN and latent diffusion (Esser et al. 2021, Rombach et al. 2022): residual blocks at every level, a
  strided convolution between two levels, and a middle of two blocks with optional attention in between.
- `blocks` counts per level: at full size even a block of 32 maps costs as much as all blocks below it, so recipes for
  a CPU have none there.
- Doublings are nearest neighbours and a 3x3 convolution in one kernel (networks/resnet.py).
- Any height and width: images are padded at the bottom and the right by repeating their edge, and cropped back.

Shape suffixes: N batch, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.resnet import ResizeConvolution
from aigc.networks.unet import Attention, groups_for, silence


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), starting as the identity where the width stays."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups_for(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups_for(outputs), outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        silence(self.conv2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H, W)`."""
        hidden = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x_NCHW))))))
        return self.skip(x_NCHW) + hidden


def middle(width: int, heads: int) -> list[nn.Module]:
    """Two blocks at the coarsest level, with attention of `heads` heads in between unless that is 0."""
    return [Block(width, width), *([Attention(width, heads=heads)] if heads else []), Block(width, width)]


class Encoder(nn.Module):
    """Images to a grid of `outputs` values, `2^(levels - 1)` times smaller."""

    def __init__(
        self,
        channels: int,                                     # of images
        outputs: int,                                      # channels of the grid
        *,
        widths: Sequence[int],                             # feature maps of each level, the first at full size
        blocks: Sequence[int],                             # residual blocks of each level
        heads: int = 0,                                    # of attention at the coarsest level, 0: none
    ):
        super().__init__()
        assert len(widths) == len(blocks), f"widths {list(widths)}, blocks {list(blocks)}"
        self.multiple = 2 ** (len(widths) - 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers += [nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1)] if level else []
            layers += [Block(width, width) for _ in range(count)]
        layers += middle(widths[-1], heads)
        layers += [nn.GroupNorm(groups_for(widths[-1]), widths[-1]), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], outputs, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`(N, channels, H, W)` of any size to `(N, outputs, ceil(H / f), ceil(W / f))`, float32."""
        below, right = (-side % self.multiple for side in x_NCHW.shape[2:])
        if below or right:
            x_NCHW = F.pad(x_NCHW, (0, right, 0, below), mode="replicate")
        return self.layers(x_NCHW).float()


class Decoder(nn.Module):
    """The encoder's mirror image: a grid of `inputs` values to images."""

    def __init__(
        self,
        channels: int,                                     # of images
        inputs: int,                                       # channels of the grid
        *,
        widths: Sequence[int],                             # as of the encoder: the first at full size
        blocks: Sequence[int],                             # residual blocks of each level
        heads: int = 0,                                    # of attention at the coarsest level, 0: none
    ):
        super().__init__()
        assert len(widths) == len(blocks), f"widths {list(widths)}, blocks {list(blocks)}"
        layers: list[nn.Module] = [nn.Conv2d(inputs, widths[-1], 3, padding=1), *middle(widths[-1], heads)]
        for level in reversed(range(len(widths))):
            layers += [Block(widths[level], widths[level]) for _ in range(blocks[level])]
            layers += [ResizeConvolution(widths[level], widths[level - 1])] if level else []
        layers += [nn.GroupNorm(groups_for(widths[0]), widths[0]), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z_NCHW: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`(N, inputs, h, w)` to images `(N, channels, f h, f w)`, float32, about in [-1, 1]; cropped to `size`."""
        images = self.last(self.layers(z_NCHW)).float()
        return images if size is None else images[:, :, : size[0], : size[1]]
