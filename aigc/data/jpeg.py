"""What a JPEG file keeps of an image, batched on any device: baseline JPEG without its lossless half (ITU-T T.81).

As libjpeg does it: YCbCr, chroma of half the size (4:2:0), 8 x 8 blocks, the tables of Annex K scaled by quality, and
chroma enlarged by its triangle filter. Rounded where libjpeg rounds, except inside its integer cosine transform.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (                                              # Annex K, table K.1
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (                                            # table K.2
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *(((99,) * 8,) * 4),
)
YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))    # JFIF
RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


@cache
def _cosines(device: torch.device) -> Tensor:
    """The 8-point discrete cosine transform as an orthonormal matrix."""
    k, x = torch.arange(8.0)[:, None], torch.arange(8.0)
    matrix = torch.cos((2 * x + 1) * k * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(device)


def table(base: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Quantization tables `(n, 8, 8)` at qualities 1 to 100 `(n,)`, as libjpeg scales them."""
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    steps = torch.tensor(base, dtype=torch.float32, device=quality.device)
    return ((steps * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)


def _blocks(plane: Tensor, steps: Tensor) -> Tensor:
    """A plane `(n, h, w)` in 0..255 after quantization of its 8 x 8 blocks; incomplete ones repeat the edge."""
    n, h, w = plane.shape
    padded = F.pad(plane[:, None], (0, -w % 8, 0, -h % 8), mode="replicate")[:, 0] - 128
    rows, columns = padded.shape[1] // 8, padded.shape[2] // 8
    blocks = padded.view(n, rows, 8, columns, 8).transpose(2, 3)
    cosines, steps = _cosines(plane.device), steps[:, None, None]
    kept = ((cosines @ blocks @ cosines.mT) / steps).round() * steps
    back = (cosines.mT @ kept @ cosines).transpose(2, 3).reshape(n, 8 * rows, 8 * columns)
    return (back[:, :h, :w] + 128).round().clamp(0, 255)


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """Images `(n, 1 or 3, h, w)` in [0, 1] as JPEG files of `quality` `(n,)` hold them, in [0, 1]."""
    (_, channels, h, w), levels = images.shape, (images.clamp(0, 1) * 255).round()
    luminance = table(LUMINANCE, quality)
    if channels == 1:
        return _blocks(levels[:, 0], luminance)[:, None] / 255
    y, cb, cr = (torch.einsum("ij,njhw->nihw", levels.new_tensor(YCC), levels)
                 + levels.new_tensor([0, 128, 128])[:, None, None]).round().clamp(0, 255).unbind(1)
    chrominance, planes = table(CHROMINANCE, quality), [_blocks(y, luminance)]
    for chroma in (cb, cr):
        even = F.pad(chroma[:, None], (0, w % 2, 0, h % 2), mode="replicate")
        half = _blocks(F.avg_pool2d(even, 2)[:, 0].round(), chrominance)
        large = F.interpolate(half[:, None], scale_factor=2, mode="bilinear", align_corners=False)
        planes.append(large[:, 0, :h, :w].round())
    shifted = torch.stack(planes, dim=1) - levels.new_tensor([0, 128, 128])[:, None, None]
    return torch.einsum("ij,njhw->nihw", levels.new_tensor(RGB), shifted).round().clamp(0, 255) / 255
