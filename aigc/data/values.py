"""Values beyond 8 bits: from 16-bit and float files to 0..255, with one range for a whole set.

A file of 16 bits per channel often uses fewer (cameras and scanners: 10 or 12), a float file 0..1, -1..1 or anything.
A single file does not show which, but the whole set does: the range follows from the set's extremes, or is configured.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aigc.errors import UserError

BITS = (1, 8, 10, 12, 14, 16)       # depths considered for unsigned whole numbers
NEARLY = 0.01                       # share by which floats may exceed a range: resampling overshoots
Range = tuple[float, float]


@dataclass(frozen=True)
class Extremes:
    """The least and the greatest value of some files, and what kind of numbers they are."""

    kind: str                       # integer or float
    low: float
    high: float


def parse_range(given: Any) -> Range | None:
    """`data.range` as (low, high), or None.

    Raises:
        UserError: it is not two numbers in increasing order.
    """
    if given is None:
        return None
    pair = [] if isinstance(given, str | int | float) else list(given)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in pair)
    if len(pair) != 2 or not numbers or not pair[0] < pair[1]:
        raise UserError(f"data.range must be two numbers, [black, white], the first below the second, not {given!r}")
    return float(pair[0]), float(pair[1])


def common(found: Iterable[Extremes]) -> list[Extremes]:
    """The extremes over all files, for each kind of numbers."""
    merged: dict[str, Extremes] = {}
    for one in found:
        so_far = merged.get(one.kind, one)
        merged[one.kind] = Extremes(one.kind, min(one.low, so_far.low), max(one.high, so_far.high))
    return [merged[kind] for kind in sorted(merged)]


def range_of(extremes: Extremes) -> tuple[Range, str]:
    """The values of black and white, and the reason in words.

    Unsigned whole numbers get the fewest bits that hold them; floats near 0..1, -1..1 or 0..255 get that range;
    anything else ranges from its least to its greatest value.
    """
    low, high = extremes.low, extremes.high
    seen = f"{low:,.6g} to {high:,.6g}"
    if extremes.kind == "integer" and low >= 0 and high < 2**16:
        bits = next(b for b in BITS if high < 2**b)
        return (0.0, 2.0**bits - 1), f"values {seen} taken as {bits} bit{'s' if bits > 1 else ''} (0 to {2**bits - 1})"
    if extremes.kind == "float":
        for black, white, least in ((0.0, 1.0, 0.0), (-1.0, 1.0, 0.0), (0.0, 255.0, 100.0)):
            slack = NEARLY * (white - black)
            if black - slack <= low and least <= high <= white + slack:
                return (black, white), f"values {seen} taken as {black:g} to {white:g}"
    return (low, high if high > low else low + 1), f"values {seen}: black to white"


def deep_values(image: Any, data: bytes) -> tuple[np.ndarray, str] | None:
    """The values `(h, w)` or `(h, w, c)` of a loaded Pillow image with more than 8 bits per channel, and their kind.

    None: it has 8 bits. Pillow reduces 16-bit colour PNGs to 8 bits; torchvision reads all 16.

    Raises:
        OSError: it contains NaN or infinity, or Pillow lost precision.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 16 and data[25] in (2, 4, 6):
        from torchvision.io import ImageReadMode, decode_png

        pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
        return pixels.permute(1, 2, 0).numpy(), "integer"
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" and not np.isfinite(values).all():
            raise OSError("it holds NaN or infinite values")
        return values, "float" if image.mode == "F" else "integer"
    coarse = image.format == "TIFF" and 16 in (getattr(image, "tag_v2", {}).get(258) or ())
    if coarse and np.asarray(image).max() < 2**6:
        raise OSError("16-bit colour in a TIFF, which would be read as 8-bit and come out black: save it as PNG")
    return None


def extremes_of(values: np.ndarray, kind: str) -> Extremes:
    """The least and the greatest value; an alpha channel does not count."""
    colour = values[..., : values.shape[2] - (values.shape[2] in (2, 4))] if values.ndim == 3 else values
    return Extremes(kind, float(colour.min()), float(colour.max()))


def eight_bits(values: np.ndarray, limits: Range) -> Any:
    """Values as an 8-bit Pillow image: the lower limit is black, the upper one white, values beyond are clipped."""
    from PIL import Image

    low, high = limits
    scaled = np.clip(np.rint((values.astype(np.float64) - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] in (2, 4):      # alpha uses all 16 bits, whatever the colours use
        scaled[..., -1] = np.rint(values[..., -1] / 257)
    return Image.fromarray(scaled if scaled.ndim == 2 else np.ascontiguousarray(scaled))
