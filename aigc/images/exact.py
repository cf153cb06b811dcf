"""Pictures with every value as it is in the file: its mode and depth, so that what is not changed stays bit-equal.

Grey and colour of 8 or 16 bits, with alpha or without, black and white, and single channels of 32 bits or floats keep
their kind. What a file says otherwise (palettes, CMYK, a colour that counts as transparent) becomes the grey or colour
that it shows, at 8 bits. Pictures are turned upright.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from aigc.data.decode import ORIENTATION
from aigc.data.values import BYTES, Range, Ranges, deep_values, extremes_of, range_of
from aigc.files.written import KEY
from aigc.images.pictures import WRITTEN

KEPT = ("L", "LA", "RGB", "RGBA")                          # modes of 8 bits that files have, too
TURNED = {                                                 # EXIF orientation: what turns such a picture upright
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1], 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class Exact:
    """A picture's values `(h, w, c)`, upright; `limits` are black and white; `bilevel`: only these two are."""

    values: np.ndarray
    limits: Range
    bilevel: bool = False

    @property
    def alpha(self) -> np.ndarray | None:
        """The last channel, `(h, w)`, where it is how opaque pixels are."""
        return self.values[..., -1] if self.values.shape[2] in (2, 4) else None

    @property
    def colours(self) -> int:
        """Channels without alpha: 1 or 3."""
        return self.values.shape[2] - (self.alpha is not None)

    @property
    def opaque(self) -> float:
        """The greatest alpha."""
        return float(np.iinfo(self.values.dtype).max)

    def changed(self, made: np.ndarray, weight: np.ndarray, place: tuple[int, int]) -> "Exact":
        """The picture with a part replaced.

        Args:
            made: what is there instead, `(h', w', 1 or 3)` in [-1, 1].
            weight: how much of it, `(h', w')` in [0, 1]; where it is 0, the picture's values stay as they are.
            place: its row and column.
        """
        (top, left), (h, w) = place, weight.shape
        if made.shape[2] != self.colours:
            grey = made @ np.array([0.299, 0.587, 0.114]) if made.shape[2] == 3 else made[..., 0]
            made = np.repeat(grey[..., None], self.colours, axis=2)
        values = self.values.copy()
        part = values[top : top + h, left : left + w]
        black, white = self.limits
        new = black + (np.clip(made.astype(np.float64), -1, 1) + 1) / 2 * (white - black)
        if self.bilevel:
            new, weight = np.where(2 * new >= black + white, white, black), (weight >= 0.5).astype(np.float64)
        if self.alpha is not None:
            new = np.concatenate([new, np.full_like(new[..., :1], self.opaque)], axis=2)
        mixed = part + weight[..., None] * (new - part)
        if values.dtype.kind in "iu":
            bounds = np.iinfo(values.dtype)
            mixed = np.clip(np.rint(mixed), bounds.min, bounds.max)
        part[weight > 0] = mixed.astype(values.dtype)[weight > 0]
        return replace(self, values=values)

    def enlarged(self, top: int, bottom: int, left: int, right: int) -> "Exact":
        """With further rows and columns around it, whose values are 0."""
        return replace(self, values=np.pad(self.values, ((top, bottom), (left, right), (0, 0))))


def read_exact(data: bytes, ranges: Ranges) -> Exact:
    """The picture in a file's content; `ranges` are black and white by the kind of numbers.

    Raises:
        OSError: it is broken, or its values cannot be kept (Pillow's decoders also raise other exceptions).
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        deep, limits, bilevel = deep_values(image, data), ranges.get(BYTES, (0.0, 255.0)), image.mode == "1"
        if deep is not None:
            values, kind = deep
            if values.dtype == np.int8:
                raise OSError("8 bits with a sign, which cannot be written back: save it as PNG")
            if image.format != "TIFF" and values.dtype == np.int32 and values.min() >= 0 and values.max() < 2**16:
                values = values.astype(np.uint16)          # as which Pillow reads 16-bit PGMs
            limits = ranges.get(kind) or range_of(extremes_of(values, kind))[0]
        else:
            transparent = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
            grey = image.mode in ("1", "L", "La")
            plain = image if image.mode in KEPT and not transparent else image.convert(
                ("LA" if image.mode in ("L", "La") else "RGBA") if transparent else "L" if grey else "RGB")
            values = np.asarray(plain)
        values = values[..., None] if values.ndim == 2 else values
        if values.dtype.byteorder == ">":
            values = values.astype(values.dtype.newbyteorder("="))
        turned = TURNED.get(orientation, lambda a: a)(values)
        return Exact(np.ascontiguousarray(turned), limits, bilevel)


def encode(values: np.ndarray, name: str, recipe: Mapping[str, Any], *, bilevel: bool = False) -> bytes:
    """A picture `(h, w, c)` as a file of this name; a PNG contains its recipe.

    Raises:
        ValueError: such a file cannot hold such values.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    ending, file = PurePosixPath(name).suffix.lower(), io.BytesIO()
    if ending == ".png" and values.dtype == np.uint16 and values.shape[2] > 1:
        return deep_png(values, recipe)
    if ending == ".png" and values.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"values of {values.dtype} cannot be written as PNG: save it as TIFF")
    image = Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
    options = dict(WRITTEN[ending])
    if ending == ".png":
        told = PngInfo()
        told.add_text(KEY, json.dumps(recipe))
        options["pnginfo"] = told
    (image.convert("1", dither=Image.Dither.NONE) if bilevel else image).save(
        file, format=Image.registered_extensions()[ending], **options)
    return file.getvalue()


def deep_png(values: np.ndarray, recipe: Mapping[str, Any]) -> bytes:
    """A PNG of 16 bits per channel, which Pillow writes for grey alone; `values` `(h, w, 2 to 4)` uint16."""
    h, w, c = values.shape
    kind = {2: 4, 3: 2, 4: 6}[c]                           # grey with alpha, colour, colour with alpha
    rows = np.ascontiguousarray(values.astype(">u2")).reshape(h, -1).view(np.uint8)
    lines = np.concatenate([np.zeros((h, 1), np.uint8), rows], axis=1).tobytes()   # each line unfiltered

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    text = f"{KEY}\0{json.dumps(recipe)}".encode("latin-1")
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 16, kind, 0, 0, 0)),
                     chunk(b"tEXt", text), chunk(b"IDAT", zlib.compress(lines, 6)), chunk(b"IEND", b"")])
