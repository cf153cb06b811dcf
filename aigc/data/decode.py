"""From any image file to uint8 `(c, h, w)` at the wanted size: every Pillow mode, orientation and shape."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from aigc.data.values import (
    BYTES,
    Extremes,
    Range,
    Ranges,
    deep_values,
    eight_bits,
    extremes_of,
    parse_range,
    range_of,
)
from aigc.errors import UserError, choices

FITS = ("crop", "pad", "stretch")
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
ORIENTED = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where PNG and JPEG keep an orientation
ORIENTATION = 0x0112  # number of the EXIF tag
VERSION = 1  # of decoding 8-bit files; part of a data set's fingerprint, as is the range of deeper ones


def parse_size(size: Any, name: str = "size") -> tuple[int, int] | None:
    """`data.<name>` as (h, w): None, one number for squares, or [h, w].

    Raises:
        UserError: it is none of these.
    """
    if size is None:
        return None
    pair = [size, size] if isinstance(size, int) else list(size) if not isinstance(size, str) else []
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in pair):
        raise UserError(f"data.{name} must be a number of pixels or [height, width], not {size!r}")
    return pair[0], pair[1]


def parse_channels(channels: Any) -> int | None:
    """`data.channels` as 1, 3, or None for `auto`.

    Raises:
        UserError: it is none of these.
    """
    if channels not in ("auto", 1, 3):
        raise UserError(f"data.channels must be auto, 1 (grey) or 3 (colour), not {channels!r}")
    return None if channels == "auto" else channels


@dataclass
class Wanted:
    """How images are to be decoded: the options that all sources of files share, checked.

    Raises:
        UserError: an option has none of the values listed.
    """

    size: Any = None                # pixels or [height, width]; (h, w) once checked
    channels: Any = "auto"          # 1, 3 or auto; None for auto once checked
    fit: str = "crop"               # other aspect ratios: crop, pad or stretch
    skip_broken: bool = False       # leave unreadable images out instead of stopping
    range: Any = None               # [black, white] of files with more than 8 bits; None: from the set's extremes

    def __post_init__(self) -> None:
        self.size = parse_size(self.size)
        self.channels = parse_channels(self.channels)
        self.range = parse_range(self.range)
        if self.fit not in FITS:
            raise UserError(f"unknown data.fit '{self.fit}': {choices(self.fit, FITS)}")


def header(data: bytes) -> tuple[tuple[int, int], bool]:
    """((height, width) as displayed, whether it is grey) of an image file, without decoding its pixels.

    Raises:
        OSError: not an image, or unreadable (Pillow's decoders also raise other exceptions).
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        looked_up = image.format != "PNG" or "exif" in image.info   # for others Pillow would decode the whole PNG
        if looked_up and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):  # EXIF orientation: a quarter turn
            width, height = height, width
        return (height, width), image.mode in GREY_MODES


def extremes(data: bytes) -> Extremes | None:
    """The least and the greatest value of an image file with more than 8 bits per channel; None: it has 8.

    Raises:
        OSError: broken, or it holds NaN (Pillow's decoders also raise other exceptions).
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if not _may_be_deep(image, data):
            return None
        image.load()
        deep = deep_values(image, data)
        return None if deep is None else extremes_of(*deep)


def decode(
    data: bytes, *, size: tuple[int, int], channels: int, fit: str = "crop", halves: bool = False, margin: float = 0.0,
    limits: Range | Ranges | None = None, stretched: bool = False,
) -> Tensor:
    """An image file as uint8 `(channels, h, w)`: turned upright, on white where transparent, at 8 bits.

    Resized with antialiasing (bicubic). Another aspect ratio is centre-cropped (`fit="crop"`), padded with white
    (`"pad"`) or stretched (`"stretch"`). `margin` is the share of each side that stays white at both ends: the image
    is fitted into what remains. With `halves`, the left and the right half are two images, one after the other:
    `(2 * channels, h, w)`. `limits` are black and white of a file with more than 8 bits, for all kinds of numbers or
    for each (None: its own extremes); with `stretched`, also of files with 8 bits.

    Raises:
        OSError: broken or truncated (Pillow's decoders also raise other exceptions).
    """
    from PIL import Image, ImageOps

    height, width = size
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = opened
        enough = (2 + 2 * halves) * max(size)
        opened.draft(None, (enough, enough))               # JPEG: decode at 1/2, 1/4, 1/8 if large enough
        opened.load()                                      # also reads PNG chunks after the pixels
        plain = limits.get(BYTES) if isinstance(limits, Mapping) else limits if stretched else None
        if _may_be_deep(opened, data) and (deep := deep_values(opened, data)) is not None:
            own = limits.get(deep[1]) if isinstance(limits, Mapping) else limits
            image, plain = eight_bits(deep[0], own or range_of(extremes_of(*deep))[0]), None
            image.getexif()[ORIENTATION] = opened.getexif().get(ORIENTATION, 1)
        if opened.format not in ("PNG", "JPEG") or ORIENTED & opened.info.keys():
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ALPHA_MODES or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        if plain is not None:
            image = image.point(np.asarray(eight_bits(np.arange(256)[None], plain))[0].tolist() * channels)
        middle = image.width // 2
        parts = [image.crop((x, 0, x + middle, image.height)) for x in (0, middle)] if halves else [image]
        inner = (max(1, width - 2 * round(margin * width)), max(1, height - 2 * round(margin * height)))
        fitted = [_centred(_fitted(part, inner, fit), (width, height)) for part in parts]
        arrays = [np.array(part).reshape(height, width, channels) for part in fitted]
    return torch.from_numpy(np.concatenate(arrays, axis=2) if halves else arrays[0]).permute(2, 0, 1)


def _may_be_deep(image: Any, data: bytes) -> bool:
    """Whether an opened file may hold more than 8 bits per channel."""
    return image.mode.startswith(("I", "F")) or image.format == "TIFF" or (image.format == "PNG" and data[24] == 16)


def _fitted(image: Any, size: tuple[int, int], fit: str) -> Any:
    """A Pillow image at `size` (width, height)."""
    from PIL import Image, ImageOps

    if image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, Image.Resampling.BICUBIC)
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    return ImageOps.pad(image, size, Image.Resampling.BICUBIC, color="white")


def _centred(image: Any, size: tuple[int, int]) -> Any:
    """A Pillow image in the middle of a white one of `size` (width, height)."""
    from PIL import Image

    if image.size == size:
        return image
    whole = Image.new(image.mode, size, "white")
    whole.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return whole


def fit_images(images: Tensor, *, size: tuple[int, int] | None, channels: int | None) -> Tensor:
    """Converts uint8 images `(n, c, h, w)` to another size (stretched, antialiased bicubic) or number of channels.

    Grey is ITU-R 601 luma, as in Pillow.
    """
    if channels == 3 and images.shape[1] == 1:
        images = images.repeat(1, 3, 1, 1)
    elif channels == 1 and images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        images = torch.cat([(part * weights).sum(1, keepdim=True).round().to(torch.uint8)
                            for part in images.split(4096)])
    if size is not None and tuple(images.shape[2:]) != size:
        images = torch.cat([
            F.interpolate(part.float(), size=size, mode="bicubic", antialias=True).round_().clamp_(0, 255).byte()
            for part in images.split(4096)
        ])
    return images.contiguous()
