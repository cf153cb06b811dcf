"""Filtered resampling by 2 (Zhang 2019; Karras et al. 2019): a small separable low-pass filter against aliases.

In plain PyTorch: on a CPU a depthwise convolution in float32, which takes a sixteenth of the time that it takes in
bf16; on a GPU the taps written out, which `torch.compile` makes one kernel of. Both are differentiable twice.
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = (1, 3, 3, 1)                                        # of StyleGAN2, in each direction; used over their sum


def resize(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images `(n, c, h, w)` at another size (height, width), antialiased bicubic; may overshoot their range."""
    return F.interpolate(images, size=tuple(size), mode="bicubic", antialias=True)


def upsample(x: Tensor, taps: Sequence[float] = TAPS) -> Tensor:
    """Twice as large, `(n, c, 2 h, 2 w)` of `(n, c, h, w)`: zeros between the pixels, then the filter, four times it.

    The number of taps is even, here and in `downsample`.
    """
    k = len(taps) // 2
    if x.is_cuda:
        return 4 * Resample.apply(x, tuple(taps)[::-1], 2, 1, (k, k - 1, k, k - 1))
    with torch.autocast(x.device.type, enabled=False):
        y = x.float()
        for kernel, (rows, columns) in _passes(tuple(taps), x.device):
            weight, stride = kernel.expand(x.shape[1], 1, -1, -1), (1 + rows, 1 + columns)
            padding = (rows * (k - 1), columns * (k - 1))
            y = F.conv_transpose2d(y, 2 ** (rows + columns) * weight, None, stride, padding, groups=x.shape[1])
        return y.to(x.dtype)


def downsample(x: Tensor, taps: Sequence[float] = TAPS) -> Tensor:
    """Half as large, `(n, c, h // 2, w // 2)`: the filter, then every second pixel."""
    return _filter(x, tuple(taps), 2, len(taps) // 2 - 1)


def blur(x: Tensor, padding: int, taps: Sequence[float] = TAPS) -> Tensor:
    """The filter over `(n, c, h, w)` with `padding` zeros around it: sides grow by 2 padding + 1 - len(taps)."""
    return _filter(x, tuple(taps), 1, padding)


def _filter(x: Tensor, taps: tuple[float, ...], down: int, padding: int) -> Tensor:
    if x.is_cuda:
        return Resample.apply(x, taps, 1, down, (padding,) * 4)
    with torch.autocast(x.device.type, enabled=False):
        y = x.float()
        for kernel, (rows, columns) in _passes(taps, x.device):
            weight, stride = kernel.expand(x.shape[1], 1, -1, -1), (down**rows, down**columns)
            y = F.conv2d(y, weight, None, stride, (rows * padding, columns * padding), groups=x.shape[1])
        return y.to(x.dtype)


@cache
def _passes(taps: tuple[float, ...], device: torch.device) -> list[tuple[Tensor, tuple[int, int]]]:
    """Kernels, each with whether (1) or not (0) it filters rows and columns: one for both, or two for many taps."""
    line = torch.tensor(taps, dtype=torch.float32, device=device) / sum(taps)
    if len(taps) <= 4:
        return [(line[:, None] * line, (1, 1))]
    return [(line[:, None], (1, 0)), (line[None], (0, 1))]


class Resample(torch.autograd.Function):
    """Zeros between the pixels, padding, filter, every so many pixels; its gradient is another of its kind.

    So the compiled kernel serves second derivatives too (R1, path lengths), which `torch.compile` alone cannot take.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, taps: tuple[float, ...], up: int, down: int, padding: tuple[int, int, int, int]
    ) -> Tensor:
        """`x` `(n, c, h, w)`; `padding` left, right, top, bottom, after the zeros were put in."""
        y = _compiled()(x, taps, up, down, padding) if x.is_cuda else shifted_sum(x, taps, up, down, padding)
        back = []
        for dim, first in ((3, padding[0]), (2, padding[2])):
            back += [len(taps) - 1 - first, x.shape[dim] * up - y.shape[dim] * down + first - up + 1]
        ctx.told = (taps[::-1], down, up, tuple(back))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The same with `up` and `down` exchanged."""
        return Resample.apply(gradients[0], *ctx.told), None, None, None, None


def shifted_sum(
    x: Tensor, taps: tuple[float, ...], up: int, down: int, padding: tuple[int, int, int, int]
) -> Tensor:
    """What `Resample` does, as a sum of shifted images in each direction, in float32."""
    y = x.float()
    if up > 1:
        n, c, h, w = y.shape
        y = F.pad(y.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, h * up, w * up)
    y = F.pad(y, padding)
    for dim in (2, 3):
        steps = (y.shape[dim] - len(taps)) // down
        shifted = (y.narrow(dim, k, steps * down + 1).unfold(dim, 1, down)[..., 0] for k in range(len(taps)))
        y = reduce(torch.add, (tap / sum(taps) * part for tap, part in zip(taps, shifted, strict=True)))
    return y.to(x.dtype)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(shifted_sum, dynamic=True)
