"""Sources of images to score: a part of a data set, a side of pairs, or a folder; uint8, in batches."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from aigc.data.batches import EvalBatches
from aigc.data.datamodule import ImageData
from aigc.data.decode import VERSION, decode, extremes, header
from aigc.data.folder import image_files
from aigc.data.listing import list_images
from aigc.data.pairs import PairData
from aigc.data.values import BYTES, Extremes, Ranges, common, ranges_for
from aigc.errors import UserError
from aigc.images.grids import to_uint8
from aigc.images.pictures import ahead, without_drawings
from aigc.images.streams import items
from aigc.models.family import Family
from aigc.scoring.devices import Devices

Batch = dict[str, Any]
TOGETHER = 1000             # pictures of a folder sorted by size at a time, so that batches hold one size
GREY_APART = 8              # grey levels by which a grey picture's channels may differ: JPEG rounding


class Source(Protocol):
    """Images in a fixed order."""

    name: str               # of the data set or folder
    split: str              # the part of it
    fingerprint: str        # changes whenever an image does
    sequence: str           # changes whenever an image or the order does
    count: int              # of images
    failures: dict[str, str]    # why images could not be read, by name

    def batches(self, n: int, batch_size: int) -> Iterator[Batch]:
        """The first n images: dicts of `image` uint8 `(m, c, h, w)` and, where known, `label` int64 `(m,)`."""

    def pictures(self, rows: Tensor) -> list[Tensor]:
        """The images at these positions in the order, uint8 `(c, h, w)` each."""


class DataSource:
    """A split, in the order of evaluation."""

    def __init__(self, data: ImageData, split: str):
        self.data, self.split = data, split
        self.failures: dict[str, str] = {}
        self.name, self.fingerprint, self.count = str(data.name), data.fingerprint, data.count(split)
        self.sequence = data.sequence

    def batches(self, n: int, batch_size: int) -> Iterator[Batch]:
        """The first n items of the split."""
        return (batch for _, batch in items(self.data, self.split, n, batch_size=batch_size))

    def pictures(self, rows: Tensor) -> list[Tensor]:
        """Images of these items."""
        batches = self.data.eval_dataloader(self.split).dataset
        assert isinstance(batches, EvalBatches)
        return list(batches.split.batch(batches.order[rows])["image"])


class FamilySource(DataSource):
    """A split as a family's `reals`: what its samples should look like. Several devices see a share each."""

    def __init__(self, data: ImageData, split: str, family: Family, devices: Devices):
        super().__init__(data, split)
        self.family, self.devices = family, devices

    def batches(self, n: int, batch_size: int) -> Iterator[Batch]:
        """This device's share of the first n items, with their `numbers`."""
        for numbers, batch in items(self.data, self.split, n, batch_size=batch_size, **self.devices.share):
            real = self.family.reals(self.data.prepare(batch, self.family.device))
            yield {"numbers": numbers, "image": to_uint8(real)}


class SideSource:
    """The images that a direction's translations should look like: in stored order or shuffled."""

    def __init__(self, data: PairData, split: str, direction: str, *, mixed: bool = False):
        self.failures: dict[str, str] = {}
        self.split = f"{split}, {direction[-1]}" + ", mixed" * mixed
        pair = data.pair_split(split)
        self.side = pair.b if direction == "a2b" else pair.a
        self.name, self.fingerprint, self.count = str(data.name), data.fingerprint, len(self.side)
        self.sequence = self.fingerprint
        mixing = torch.Generator().manual_seed(0)
        self.order = torch.randperm(self.count, generator=mixing) if mixed else torch.arange(self.count)

    def batches(self, n: int, batch_size: int) -> Iterator[Batch]:
        """The first n images of the side."""
        return (self.side.batch(rows) for rows in self.order[:n].split(batch_size))

    def pictures(self, rows: Tensor) -> list[Tensor]:
        """The images at these positions in the order."""
        return list(self.side.batch(self.order[rows])["image"])


class FolderSource:
    """All pictures of a folder or zip with its subfolders, at their own sizes, in a fixed random order.

    Grids that this program drew do not count.

    Attributes:
        left_out: names of grids and the like, by reason.
        extremes: of the values of files with more than 8 bits, by the kind of numbers.
        ranges: black and white by the kind of numbers; of the folder's own files until `share_ranges`.
        failures: why a picture could not be read, by name; the others are not affected.
    """

    split = "all"

    def __init__(self, path: Path, option: str, *, channels: int | None = None):
        self.left_out: dict[str, list[str]] = {}
        names = without_drawings(path, list_images(path, option, follow_links=True), self.left_out)
        if not names:
            raise UserError(f"{option}={path} holds only images that are left out ({', '.join(self.left_out)}): give "
                            "another folder")
        self.path, self.option = path, option
        self.name = path.name
        self.files = image_files(path, names)
        self.failures: dict[str, str] = {}
        deep: list[Extremes] = []
        digest, sizes, grey = hashlib.sha256(f"decode {VERSION}".encode()), {}, True
        for k in range(len(names)):
            try:
                data = self.files.read(k)
                size, plain = header(data)
                deep += [found] if (found := extremes(data)) else []
                sizes[k] = size
            except Exception as error:                     # Pillow's decoders raise any exception
                self._failed(k, error)
                continue
            grey = grey and plain
            digest.update(hashlib.sha256(data).digest())
        if not sizes:
            raise UserError(f"{option}={path} holds no picture that can be read: give another folder")
        good = torch.tensor(list(sizes))                   # unreadable files must not change the others' order
        mixed = good[torch.randperm(len(good), generator=torch.Generator().manual_seed(0))]
        self.rows = [k for part in mixed.split(TOGETHER) for k in sorted(part.tolist(), key=lambda k: sizes[k])]
        self.sizes = sizes
        self.extremes = common(deep)                       # of the files with more than 8 bits
        self.ranges: Ranges = ranges_for(deep, None, {})[0]
        self.channels = channels or (1 if grey else 3)
        self.fingerprint = self.sequence = digest.hexdigest()[:16]
        self.count = len(self.rows)

    def _failed(self, k: int, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        self.failures[self.files.name(k)] = reason.split(" <")[0]

    def _read(self, k: int) -> Tensor:
        """Picture k, uint8 `(channels, h, w)`.

        Raises:
            UserError: it is in colour where grey ones are expected.
        """
        image = decode(self.files.read(k), size=self.sizes[k], channels=3, limits=self.ranges)
        if self.channels == 3:
            return image
        if int((image.amax(0).int() - image.amin(0).int()).max()) > GREY_APART:
            raise UserError(f"{self.option}={self.path}: '{self.files.name(k)}' is in colour, but the images it is "
                            "compared with are grey: compare with colour images, or convert them to grey first")
        return image[:1]

    def batches(self, n: int, batch_size: int) -> Iterator[Batch]:
        """The first n pictures, grouped by size and read ahead; unreadable ones are left out."""
        waiting: list[Tensor] = []
        chosen = self.rows[:n]
        for k, future in zip(chosen, ahead(self._read, chosen, 2 * batch_size), strict=True):
            try:
                image = future.result()
            except UserError:
                raise
            except Exception as error:
                self._failed(k, error)
                continue
            if waiting and (len(waiting) == batch_size or waiting[0].shape != image.shape):
                yield {"image": torch.stack(waiting)}
                waiting = []
            waiting.append(image)
        if waiting:
            yield {"image": torch.stack(waiting)}

    def pictures(self, rows: Tensor) -> list[Tensor]:
        """The pictures at these positions."""
        good = [k for k in self.rows if self.files.name(k) not in self.failures]
        return [self._read(good[row]) for row in rows.tolist()]


def share_ranges(sources: Iterable[FolderSource], known: Ranges) -> list[str]:
    """Gives folders that are compared one range of values: that of the data (`known`), or of all of them together.

    Returns:
        where it comes from, for people.
    """
    sources = list(sources)
    deeper = {kind: pair for kind, pair in known.items() if kind != BYTES}     # 8 bits may be what a model made
    ranges, said = ranges_for([one for source in sources for one in source.extremes], None, deeper)
    for source in sources if ranges else ():
        source.ranges = ranges
        seen = hashlib.sha256(f"{source.fingerprint} {ranges}".encode())
        source.fingerprint = source.sequence = seen.hexdigest()[:16]
    return said
