"""Equalized learning rates (Karras et al. 2018, section 4.1): weights N(0, 1), scaled when they are used.

Adam changes every weight by about its rate, whatever its size; so all of these learn equally fast.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2                                                # of the leaky ReLU
GAIN = sqrt(2)                                             # after it, keeps the variance


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU, in place; for an `x` that was made `GAIN` times as large, which is the same as the gain after it."""
    return F.leaky_relu_(x, SLOPE)


class EqualizedLinear(nn.Module):
    """Linear layer; weights N(0, 1 / rate), used times rate / sqrt(inputs), so that `rate` multiplies the rate."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rate: float = 1.0,                                 # multiplier of the learning rate
        bias: float = 0.0,                                 # at the start
        active: bool = False,                              # leaky ReLU and its gain follow
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate, self.gain, self.active = rate, rate / sqrt(inputs), active

    def forward(self, x: Tensor) -> Tensor:
        """`(..., outputs)` of `(..., inputs)`."""
        gain = GAIN if self.active else 1.0
        y = F.linear(x, self.weight * (self.gain * gain), self.bias * (self.rate * gain))
        return activate(y) if self.active else y


class EqualizedConv(nn.Module):
    """Convolution of stride 1 or 2; weights N(0, 1), used times `scale` / sqrt(inputs * kernel^2)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,                        # None: keeps the size, at stride 1
        active: bool = False,                              # leaky ReLU and its gain follow
        bias: bool = True,
        scale: float = 1.0,                                # of what it gives
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.active, self.stride = scale * (GAIN if active else 1.0), active, stride
        self.gain = self.scale / sqrt(inputs * kernel**2)
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        """`(n, outputs, h, w)` of `(n, inputs, h, w)`, at stride 1."""
        bias = None if self.bias is None else self.bias * self.scale
        y = F.conv2d(x, self.weight * self.gain, bias, self.stride, self.padding)
        return activate(y) if self.active else y


def normalize(x: Tensor) -> Tensor:
    """Vectors `(n, d)` of mean square 1, float32."""
    x = x.float()
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
