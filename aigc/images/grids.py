"""Grids of images: a tensor as one PNG of rows and columns, with words above them."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc.files import atomic
from aigc.files.written import DRAWN, KEY

GAP, TONE = 2, 96        # pixels between images, and their grey level
CELL = 56                # smaller images are enlarged by an integer factor to about this height
LETTER, LINE = 11, 14    # height of letters and of a line, in pixels
INK = 255                # grey level of words


def grid(
    images: Tensor, *, columns: int | None = None, scale: int | None = None, captions: Sequence[str] | None = None,
    titles: Sequence[str] | None = None, words: Sequence[str] | None = None,
) -> np.ndarray:
    """Images in rows and columns: uint8 `(H, W)` for grey ones, else `(H, W, 3)`.

    Args:
        images: `(n, c, h, w)` in [-1, 1], or uint8; channels beyond 1 or 3 are not shown.
        columns: images per row; None: about as many as rows.
        scale: enlargement by repeated pixels; None: small images reach about `CELL` pixels.
        captions: words above each row, wrapped to the grid's width; a row without words takes no space for them.
        titles: a word or two above each column.
        words: a word or two above each image, cut off at its width.
    """
    pixels = to_uint8(images).cpu().numpy()
    n, c, h, w = pixels.shape
    assert n > 0, "a grid of no images"
    columns = columns or math.ceil(math.sqrt(n))
    scale = scale or max(1, round(CELL / h))
    pixels = pixels[:, :3] if c >= 3 else pixels[:, :1]
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    step_x, rows = w * scale + GAP, math.ceil(n / columns)
    width = columns * step_x - GAP
    said = [_lines(caption, width) for caption in captions or [""] * rows]
    assert len(said) == rows, f"{len(said)} captions for {rows} rows"
    assert not words or len(words) == n, f"{len(words)} words for {n} images"
    above = [LINE * (len(lines) + bool(words)) for lines in said]
    tops = [LINE * bool(titles) + row * (h * scale + GAP) + sum(above[: row + 1]) for row in range(rows)]
    canvas = np.full((pixels.shape[1], tops[-1] + h * scale, width), TONE, np.uint8)
    for k, image in enumerate(pixels):
        top, left = tops[k // columns], k % columns * step_x
        canvas[:, top : top + h * scale, left : left + w * scale] = image
    for k, title in enumerate(titles or []):
        _write(canvas, title, 0, k * step_x, (k + 1) * step_x - GAP)
    for k, word in enumerate(words or []):
        left = k % columns * step_x
        _write(canvas, word, tops[k // columns] - LINE, left, left + w * scale)
    for top, lines in zip(tops, said, strict=True):
        for k, line in enumerate(lines):
            _write(canvas, line, top - LINE * (len(lines) + bool(words) - k), 0, width)
    return canvas[0] if len(canvas) == 1 else canvas.transpose(1, 2, 0)


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(LETTER)      # built into Pillow: needs no font file


def _lines(text: str, width: int) -> list[str]:
    """Text wrapped into lines of at most `width` pixels, none if it is empty; a longer word gets its own line."""
    if not text.strip():
        return []
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _write(canvas: np.ndarray, text: str, top: int, left: int, right: int) -> None:
    """Writes a line into `(c, h, w)`, cut off at `right`."""
    from PIL import Image, ImageDraw

    strip = Image.new("L", (right - left, LINE), TONE)
    ImageDraw.Draw(strip).text((1, 0), text, fill=INK, font=_font())
    canvas[:, top : top + LINE, left:right] = np.asarray(strip)


def grid_png(images: Tensor, **options: Any) -> bytes:
    """`grid(images, **options)` as a PNG that is marked, so that it is never taken for data."""
    from PIL import Image, PngImagePlugin

    said, file = PngImagePlugin.PngInfo(), io.BytesIO()
    said.add_text(KEY, f'{DRAWN}"grid"}}')
    Image.fromarray(grid(images, **options)).save(file, format="PNG", pnginfo=said)
    return file.getvalue()


def save_grid(images: Tensor, path: str | Path, **options: Any) -> Path:
    """Writes `grid_png(images, **options)`, under a temporary name first; creates the folder. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic.write(path, grid_png(images, **options))


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, clamped and rounded as in a PNG; uint8 passes through."""
    if images.dtype == torch.uint8:
        return images
    return images.detach().float().add(1).mul_(127.5).clamp_(0, 255).round_().to(torch.uint8)
