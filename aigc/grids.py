"""Pictures of many images: rows and columns of a tensor as one PNG."""

import math
import os
from pathlib import Path

import numpy as np
from torch import Tensor

from aigc.metrics.features import to_uint8

GAP, TONE = 2, 96        # pixels between images, and their grey
CELL = 56                # smaller images are enlarged by a whole number to about this height


def grid(images: Tensor, *, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Images side by side, row by row: uint8 `(H, W)` for grey ones, else `(H, W, 3)`.

    Args:
        images: `(n, c, h, w)` in [-1, 1], or uint8; of two or more than three channels the first ones are shown.
        columns: images in a row; None: about as many as rows.
        scale: enlargement, pixels repeated; None: small images reach about `CELL` pixels.
    """
    pixels = to_uint8(images).cpu().numpy()
    n, c, h, w = pixels.shape
    assert n > 0, "a grid of no images"
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or max(1, round(CELL / h))
    pixels = pixels[:, :3] if c >= 3 else pixels[:, :1]
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    step_y, step_x = h * scale + GAP, w * scale + GAP
    canvas = np.full((pixels.shape[1], math.ceil(n / columns) * step_y - GAP, columns * step_x - GAP), TONE, np.uint8)
    for k, image in enumerate(pixels):
        top, left = k // columns * step_y, k % columns * step_x
        canvas[:, top : top + h * scale, left : left + w * scale] = image
    return canvas[0] if len(canvas) == 1 else canvas.transpose(1, 2, 0)


def save_grid(images: Tensor, path: str | Path, *, columns: int | None = None, scale: int | None = None) -> Path:
    """Writes `grid(images)` as a PNG, to a temporary name first; makes the folder. Returns the path."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        Image.fromarray(grid(images, columns=columns, scale=scale)).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
