"""Values beyond 8 bits: from 16-bit and float files to 0..255, with one range for a whole set.

A file of 16 bits per channel often uses fewer (cameras and scanners: 10 or 12), a float file 0..1, -1..1 or anything.
A single file does not show which, but the whole set does: the range follows from the set's extremes, or is configured.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aigc.errors import UserError

BITS = (1, 8, 10, 12, 14, 16)       # depths considered for unsigned whole numbers
SAMPLE_FORMAT = 339                 # number of a TIFF's tag; 2: whole numbers with a sign
NEARLY = 0.01                       # share by which floats may exceed a range: resampling overshoots
BYTES = "bytes"                     # the kind of files with 8 bits, where they are given a range as well
Range = tuple[float, float]
Ranges = Mapping[str, Range]        # by the kind of numbers: integer, float or bytes


@dataclass(frozen=True)
class Extremes:
    """The least and the greatest value of some files, and what kind of numbers they are."""

    kind: str                       # integer or float
    low: float
    high: float


def parse_range(given: Any, name: str = "data.range") -> Range | None:
    """`data.range`, or another option of this `name`, as (low, high), or None.

    Raises:
        UserError: it is not two numbers in increasing order.
    """
    if given is None:
        return None
    pair = [] if isinstance(given, str | int | float) else list(given)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in pair)
    if len(pair) != 2 or not numbers or not pair[0] < pair[1]:
        raise UserError(f"{name} must be two numbers, [black, white], the first below the second, not {given!r}")
    return float(pair[0]), float(pair[1])


def common(found: Iterable[Extremes]) -> list[Extremes]:
    """The extremes over all files, for each kind of numbers."""
    merged: dict[str, Extremes] = {}
    for one in found:
        so_far = merged.get(one.kind, one)
        merged[one.kind] = Extremes(one.kind, min(one.low, so_far.low), max(one.high, so_far.high))
    return [merged[kind] for kind in sorted(merged)]


def recorded(facts: Any) -> dict[str, Range]:
    """The ranges by the kind of numbers that the record of a run's data holds; what is odd there is none."""
    found = facts.get("range") if isinstance(facts, Mapping) else None
    ranges = {}
    for kind, pair in found.items() if isinstance(found, Mapping) else ():
        try:
            ranges[str(kind)] = parse_range(pair)
        except (UserError, TypeError):
            continue
    return {kind: pair for kind, pair in ranges.items() if pair is not None}


def ranges_for(found: Iterable[Extremes], given: Range | None, known: Ranges) -> tuple[dict[str, Range], list[str]]:
    """One range for each kind of numbers in a set of pictures, and for people where it comes from.

    Args:
        found: the extremes of its files with more than 8 bits.
        given: the range that was asked for; without deeper files, those of 8 bits have it.
        known: of the data that a model learned from: what looked so there, looks so here.
    """
    kinds = common(found)
    if given is not None:
        words = f"values from {given[0]:g} (black) to {given[1]:g} (white)"
        return dict.fromkeys([one.kind for one in kinds] or [BYTES], given), [words]
    ranges: dict[str, Range] = {BYTES: known[BYTES]} if BYTES in known else {}
    said = [f"files of 8 bits from {low:g} (black) to {high:g} (white), as in the run's data"
            for low, high in ranges.values()]
    for one in kinds:
        ranges[one.kind], words = range_of(one)
        if one.kind in known:
            low, high = ranges[one.kind] = known[one.kind]
            words = f"values {one.low:,.6g} to {one.high:,.6g} taken as {low:g} to {high:g}, as in the run's data"
            slack = NEARLY * (high - low)
            words += ", which cuts the rest" if one.low < low - slack or one.high > high + slack else ""
        said.append(words)
    return ranges, said


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

    None: it has 8 bits without a sign. Pillow reduces 16-bit colour PNGs to 8 bits; torchvision reads all 16.

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
    if image.format == "TIFF" and image.mode == "L" and 2 in image.tag_v2.get(SAMPLE_FORMAT, ()):
        return np.asarray(image).view(np.int8), "integer"       # which Pillow reads without the sign
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
