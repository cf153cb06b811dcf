"""Pictures at the size of a trained family, read ahead and handed on in batches."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from aigc.data.decode import decode
from aigc.data.values import Ranges
from aigc.images.pictures import READERS, Picture, ahead, reason_of


def in_batches(
    pictures: Sequence[Picture], family: Any, *, batch_size: int, ranges: Ranges, failures: dict[Path, str]
) -> Iterator[list[tuple[Picture, Tensor]]]:
    """The pictures that can be read, in order, with each its image uint8 `(c, h, w)`.

    Args:
        pictures: what to read; other shapes than the family's are cropped around their middle.
        family: whose size and channels they get.
        batch_size: pictures handed on together.
        ranges: black and white, by the kind of numbers in the files.
        failures: takes the reason for each picture that cannot be read.
    """
    read = partial(_read, size=tuple(family.hparams["size"]), channels=family.hparams["channels"], ranges=ranges)
    waiting: list[tuple[Picture, Tensor]] = []
    for picture, future in zip(pictures, ahead(read, pictures, 2 * READERS), strict=True):
        try:
            waiting.append((picture, future.result()))
        except ValueError as error:
            failures[picture.source] = str(error)
        if len(waiting) == batch_size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _read(picture: Picture, *, size: tuple[int, int], channels: int, ranges: Ranges) -> Tensor:
    """The picture at the family's size, uint8 `(c, h, w)`.

    Raises:
        ValueError: it cannot be read; says why.
    """
    try:
        return decode(picture.read(), size=size, channels=channels, limits=ranges)
    except Exception as error:                             # Pillow's decoders raise what they like
        raise ValueError(reason_of(error)) from error
