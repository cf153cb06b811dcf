"""A generator steered by styles (Karras et al. 2019, 2020a): mapping, modulated convolutions, images summed up.

Of the second version: styles scale a convolution's inputs, demodulation scales its outputs back to unit variance, and
every resolution adds its own image to that of the resolution below.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, sqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.equalized import GAIN, EqualizedLinear, activate, normalize
from aigc.networks.resample import blur, upsample

START = 8                                                  # a larger starting grid gets one more doubling

Noise = Tensor | str                                       # (n, 1, h, w), or random, const (the layer's own) or none


class Mapping(nn.Module):
    """A latent, a label's vector or both to a style: each of mean square 1, joined, then active linear layers."""

    def __init__(
        self,
        latent: int,                                       # length of z, 0: none
        vector: int,                                       # length of the label's vector, 0: none
        width: int,                                        # of the style
        *,
        layers: int,
        rate: float,                                       # multiplier of their learning rate
    ):
        super().__init__()
        inputs = [latent + vector, *[width] * (layers - 1)]
        self.layers = nn.Sequential(*(EqualizedLinear(n, width, rate=rate, active=True) for n in inputs))

    def forward(self, z: Tensor | None, vector: Tensor | None) -> Tensor:
        """Styles `(n, width)`, float32, of `z` `(n, latent)`, a label's `vector` `(n, vector)` or both."""
        parts = [normalize(part) for part in (z, vector) if part is not None]
        with torch.autocast(parts[0].device.type, enabled=False):
            return self.layers(torch.cat(parts, dim=1))


def demodulation(weight: Tensor, s: Tensor) -> Tensor:
    """What makes the norm of each output's modulated weights 1: `(n, outputs)`, of styles `s` `(n, inputs)`.

    d^2 = 1 / sum (s w)^2 over inputs and kernel (Karras et al. 2020a, equation 3), for `weight`
    `(outputs, inputs, k, k)`.
    """
    return (s.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()


def modulated_convolution(x: Tensor, weight: Tensor, s: Tensor, *, up: bool = False) -> Tensor:
    """A convolution with `weight` times s, without a weight for each image: of x * s; the caller multiplies by d.

    `(n, outputs, h, w)`, or with `up` twice as large and filtered, for `x` `(n, inputs, h, w)`, `s` `(n, inputs)`.
    """
    x = x * s.to(x.dtype)[:, :, None, None]
    if not up:
        return F.conv2d(x, weight, padding=weight.shape[2] // 2)
    return blur(F.conv_transpose2d(x, (4 * weight).transpose(0, 1), stride=2), 1)


class StyleLayer(nn.Module):
    """A modulated and demodulated 3x3 convolution, noise of learned strength, bias, leaky ReLU."""

    constant: Tensor                                       # (1, h, w) noise that stays

    def __init__(self, inputs: int, outputs: int, style: int, grid: Sequence[int], *, up: bool, rate: float = 1.0):
        super().__init__()
        self.affine = EqualizedLinear(style, inputs, rate=rate, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("constant", torch.randn(1, *grid))
        self.up = up

    def forward(self, x: Tensor, style: Tensor, noise: Noise) -> Tensor:
        """`(n, outputs, h, w)`, of `x` on the same grid, or on half of it with `up`."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight / sqrt(self.weight[0].numel())
            s = self.affine(style)
            d = demodulation(weight, s)
        y = modulated_convolution(x, weight, s, up=self.up)
        y = torch.addcmul((GAIN * self.bias).to(y.dtype)[:, None, None], y, (GAIN * d).to(y.dtype)[:, :, None, None])
        if noise == "random":
            noise = torch.randn(len(x), 1, *y.shape[2:], device=x.device)
        if not isinstance(noise, str) or noise == "const":
            y += (GAIN * self.strength * (self.constant if isinstance(noise, str) else noise)).to(y.dtype)
        return activate(y)


class ToImage(nn.Module):
    """A modulated 1x1 convolution to the channels of an image; not demodulated."""

    def __init__(self, inputs: int, channels: int, style: int, *, rate: float = 1.0):
        super().__init__()
        self.affine = EqualizedLinear(style, inputs, rate=rate, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """`(n, channels, h, w)`, float32."""
        with torch.autocast(x.device.type, enabled=False):
            s = self.affine(style) / sqrt(self.weight.shape[1])
        return modulated_convolution(x, self.weight, s).float() + self.bias[:, None, None]


class Synthesis(nn.Module):
    """A style for each layer to an image, from a learned constant through doublings; any size, cropped from the grid.

    A layer is a modulated convolution; one more style is that of the last image. An image uses the style that the
    next resolution begins with.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        style: int,
        *,
        widths: Sequence[int],                             # feature maps from the starting grid on
        convolutions: Sequence[int],                       # of each of them
        rate: float = 1.0,                                 # multiplier of the learning rate of styles' linear layers
    ):
        super().__init__()
        widths, convolutions = list(widths), list(convolutions)
        while ceil(max(size) / 2 ** (len(widths) - 1)) > START:
            widths, convolutions = [widths[0], *widths], [convolutions[0], *convolutions]
        self.size, doublings = tuple(size), len(widths) - 1
        grid = [ceil(side / 2**doublings) for side in size]
        self.start = nn.Parameter(torch.randn(widths[0], *grid))
        self.layers, self.images = nn.ModuleList(), nn.ModuleList()
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            sides = [side * 2**level for side in grid]
            self.layers.append(nn.ModuleList(
                StyleLayer(width if k else before, width, style, sides, up=level > 0 and not k, rate=rate)
                for k in range(convolutions[level])
            ))
            self.images.append(ToImage(width, channels, style, rate=rate))
        self.styles = sum(convolutions) + 1                # number of styles

    def noise_shapes(self) -> list[tuple[int, ...]]:
        """`(1, h, w)` of each layer's noise."""
        return [(1, *noise.shape[1:]) for name, noise in self.named_buffers() if name.endswith("constant")]

    def forward(self, styles: Tensor, noise: str | Sequence[Tensor] = "random") -> Tensor:
        """Images `(n, c, h, w)`, float32, about in [-1, 1], of `styles` `(n, layers, width)`.

        `noise`: random, const, none, or a tensor `(n, 1, h, w)` for each layer.
        """
        assert styles.shape[1] == self.styles, f"{styles.shape[1]} styles for {self.styles} layers"
        noises = [noise] * (self.styles - 1) if isinstance(noise, str) else noise
        count, image = 0, torch.zeros(())
        x = self.start.expand(len(styles), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        for level, (layers, to_image) in enumerate(zip(self.layers, self.images, strict=True)):
            for layer in cast(nn.ModuleList, layers):
                x, count = layer(x, styles[:, count], noises[count]), count + 1
            image = to_image(x, styles[:, count]) + (upsample(image) if level else 0)
        top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self.size, strict=True))
        return image[:, :, top : top + self.size[0], left : left + self.size[1]]
