"""Masks: which pixels of a picture are to change, and the part of the picture that a model works on for it."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.config.functions import check_known
from aigc.errors import UserError
from aigc.files.names import ENDINGS
from aigc.images.exact import TURNED, Exact
from aigc.images.refining import refined

CONTEXT = 1.5                                              # height and width of the part, to those of what changes
MOST = 2**28                                               # pixels of an enlarged picture
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Masks:
    """Where masks come from, and what is done to them; True in a mask means change.

    Attributes:
        path: one mask for all pictures, or a folder of masks with the names of the pictures.
        alpha: what is transparent, at least by half, is to change.
        box: [x0, y0, x1, y1], in pixels, or as shares of width and height where all are from 0 to 1.
        invert: what is white, stays.
        refine: crf: its border is brought to the picture's own edges (refining.py); None: as it is.
        grow: pixels by which what changes grows on all sides; below 0 it shrinks.
        feather: pixels, inside of what changes, over which old becomes new.
    """

    path: str | None = None
    alpha: bool = False
    box: Sequence[float] | None = None
    invert: bool = False
    refine: str | None = None
    grow: int = 0
    feather: int = 0

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Masks":
        """The masks that `mask.<option>`s mean.

        Raises:
            UserError: there is no mask, or more than one, or an option has no such value.
        """
        check_known(node, list(cls.__dataclass_fields__), "mask")
        masks = cls(**{name: value for name, value in node.items() if value is not None})
        given = [name for name in ("path", "alpha", "box") if getattr(masks, name)]
        if len(given) != 1:
            said = f"mask.{given[0]} and mask.{given[1]} are two masks" if given else "nothing says what is to change"
            raise UserError(f"{said}: give one of mask.path=<file or folder>, mask.alpha=true and "
                            "mask.box=[x0,y0,x1,y1]")
        if masks.path is not None and not Path(masks.path).expanduser().exists():
            raise UserError(f"mask.path='{masks.path}' does not exist: give a picture, or a folder of them")
        if masks.box is not None and not _is_box(masks.box):
            raise UserError(f"mask.box={masks.box} is no box: give [x0,y0,x1,y1], x0 below x1 and y0 below y1, in "
                            "pixels or in shares from 0 to 1")
        if masks.refine not in (None, "crf"):
            raise UserError(f"mask.refine={masks.refine} is unknown: give crf, or null for the mask as it is")
        for name, least in (("grow", -4096), ("feather", 0)):
            value = getattr(masks, name)
            if type(value) is not int or not least <= value <= 4096:
                raise UserError(f"mask.{name}={value} is no number of pixels: give one from {least} to 4096")
        return masks

    def file_for(self, target: str) -> Path | None:
        """The mask's file of a picture whose result has this name; None: masks come from no files.

        Raises:
            ValueError: there is none.
        """
        if self.path is None:
            return None
        path = Path(self.path).expanduser()
        if path.is_file():
            return path
        place = path / PurePosixPath(target)
        near = place.parent.iterdir() if place.parent.is_dir() else ()
        found = sorted(file for file in near if file.stem == place.stem and file.suffix.lower() in ENDINGS)
        if len(found) != 1:
            raise ValueError(f"'{path}' holds {len(found) or 'no'} mask{'s' if found else ''} called "
                             f"{PurePosixPath(target).with_suffix('')}.*")
        return found[0]

    def mask_of(self, picture: Exact, content: bytes | None, shown: Tensor) -> Tensor:
        """What is to change, `(h, w)` bool; `content` is that of the mask's file, `shown` what the picture looks like.

        `shown` is uint8 `(c, h, w)`.

        Raises:
            ValueError: the mask does not fit the picture, or says that nothing is to change.
        """
        h, w = picture.values.shape[:2]
        if content is not None:
            mask = read_mask(content)
            if mask.shape != (h, w):
                raise ValueError(f"its mask has {mask.shape[1]} x {mask.shape[0]} pixels instead of {w} x {h}")
        elif self.alpha:
            if picture.alpha is None:
                raise ValueError("it has no alpha channel to be its mask")
            mask = picture.alpha < picture.opaque / 2
        else:
            mask = np.zeros((h, w), dtype=bool)
            x0, y0, x1, y1 = self._in_pixels(w, h)
            mask[y0:y1, x0:x1] = True
        found = torch.from_numpy(mask ^ self.invert)
        found = grown(refined(found, shown) if self.refine else found, self.grow)
        if not found.any():
            raise ValueError("its mask leaves nothing to change")
        return found

    def _in_pixels(self, width: int, height: int) -> list[int]:
        assert self.box is not None
        scale = (width, height, width, height) if all(0 <= edge <= 1 for edge in self.box) else (1, 1, 1, 1)
        return [min(max(0, round(edge * one)), end)
                for edge, one, end in zip(self.box, scale, (width, height, width, height), strict=True)]


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list | tuple) and len(box) == 4 and all(
        isinstance(edge, int | float) and not isinstance(edge, bool) and abs(edge) < 1e9 for edge in box)
    return numbers and box[0] < box[2] and box[1] < box[3]


def read_mask(content: bytes) -> np.ndarray:
    """A mask `(h, w)` bool from a picture, upright: True where it is nearer to white; what is transparent is black.

    Raises:
        OSError: it is broken (Pillow's decoders also raise other exceptions).
    """
    from PIL import Image

    from aigc.data.decode import ALPHA_MODES, ORIENTATION

    with Image.open(io.BytesIO(content)) as image:
        image.load()
        orientation = image.getexif().get(ORIENTATION, 1)
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image) > (0.5 if image.mode == "F" else 2**15)
        else:
            plain: Image.Image = image
            if image.mode in ALPHA_MODES or "transparency" in image.info:
                layer = image.convert("RGBA")
                plain = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
            values = np.asarray(plain.convert("L")) > 127
    return np.ascontiguousarray(TURNED.get(orientation, lambda a: a)(values))


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask `(h, w)` bool, grown by so many pixels on all sides; below 0 it shrinks, though not at the edge."""
    if pixels == 0:
        return mask
    sign = 1.0 if pixels > 0 else -1.0
    wide = (sign * mask.float())[None, None]
    for side in ((2 * abs(pixels) + 1, 1), (1, 2 * abs(pixels) + 1)):
        wide = F.max_pool2d(wide, side, stride=1, padding=(side[0] // 2, side[1] // 2))
    return sign * wide[0, 0] > 0.5


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """How much is new, `(h, w)` in [0, 1]: 0 outside the mask, rising to 1 over `pixels` inside it."""
    weight, inner = mask.float(), mask
    for _ in range(pixels):
        inner = grown(inner, -1)
        if not inner.any():                                # narrower than that: new in its middle all the same
            break
        weight = weight + inner.float()
    return weight / weight.max()


@dataclass(frozen=True)
class Part:
    """Where a model works: a part of a picture, which may reach beyond its edges, and the model's own size."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]                                  # (height, width) of the model


def part_around(mask: Tensor, size: tuple[int, int], side: int | None = None) -> Part:
    """The part of a picture around what changes, of the aspect of a model.

    It is `CONTEXT` times as large as what changes, at least as large as the model's images, and where the picture
    allows it, inside the picture. With `side`, at least as large as if the picture's shorter side had so many pixels.
    """
    h, w = mask.shape
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    (y0, y1), (x0, x1) = ((int(one[0]), int(one[-1]) + 1) for one in (rows, columns))
    whole = max(h / size[0], w / size[1])                  # at which the part holds the picture
    wanted = [CONTEXT * (y1 - y0) / size[0], CONTEXT * (x1 - x0) / size[1], 1.0, min(h, w) / side if side else 0.0]
    scale = max(min(max(wanted), whole), (y1 - y0) / size[0], (x1 - x0) / size[1])
    height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return Part(_start(y0, y1, height, h), _start(x0, x1, width, w), height, width, size)


def _start(low: int, high: int, length: int, end: int) -> int:
    """Where a stretch of this length around [low, high) begins: inside [0, end) where it fits, else around that."""
    if length >= end:
        return (end - length) // 2
    return min(max(0, (low + high - length) // 2), end - length)


def cut(image: Tensor, part: Part) -> Tensor:
    """A part of an image `(c, h, w)`, whose edge is repeated beyond it; of a mask, beyond which everything changes."""
    h, w = image.shape[-2:]
    top, left, bottom, right = part.top, part.left, part.top + part.height, part.left + part.width
    inner = image[..., max(0, top) : bottom, max(0, left) : right]
    around = (max(0, -left), max(0, right - w), max(0, -top), max(0, bottom - h))
    if image.dtype == torch.bool:
        return F.pad(inner, around, value=True)
    return F.pad(inner[None].float(), around, mode="replicate")[0].to(image.dtype)


@dataclass(frozen=True)
class Padding:
    """What is added on each side of a picture: whole numbers are pixels, and others below 1 are shares of it."""

    left: float = 0
    top: float = 0
    right: float = 0
    bottom: float = 0

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Padding":
        """The padding that `pad.<side>`s mean.

        Raises:
            UserError: a side's is no such number, or all are 0.
        """
        check_known(node, SIDES, "pad")
        for name, value in node.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not (0 <= value < 1 or (value >= 1 and value == int(value) and value < 2**16)):
                raise UserError(f"pad.{name}={value} is no whole number of pixels and no share below 1: give one")
        if not any(node.values()):
            raise UserError("nothing says where pictures grow: give pad.left, pad.right, pad.top or pad.bottom")
        return cls(**node)

    def pixels(self, height: int, width: int) -> dict[str, int]:
        """Pixels added on each side of a picture.

        Raises:
            ValueError: none, or far too many.
        """
        found = {name: round(value * (width if name in ("left", "right") else height)) if 0 < value < 1 else int(value)
                 for name, value in vars(self).items()}
        if not any(found.values()):
            raise ValueError("it is too small for such a share of it")
        if (height + found["top"] + found["bottom"]) * (width + found["left"] + found["right"]) > MOST:
            raise ValueError(f"it would have more than {MOST:,} pixels")
        return found
