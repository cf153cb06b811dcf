"""Rendered shapes in two drawing styles: translation without a download, and true pairs to test against.

`data=shapes_unpaired` goes from painted shapes on paper to neon tubes at night: the training images of both sides show
different scenes, those for validation and test the same. `data=shapes_paired` goes from a drawing in coloured
pencil to the painting of the same scene.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch

from aigc.data.decode import parse_size
from aigc.data.pairs import PairData
from aigc.data.scenes import OBJECTS, VERSION, Scenes
from aigc.data.shapes import Renders, Shapes
from aigc.data.split import Split
from aigc.errors import UserError, choices


class ShapesUnpaired(PairData):
    """Painted shapes (`a`) and neon shapes (`b`); the two sides show different training scenes."""

    licence = Shapes.licence
    styles: ClassVar[tuple[str, str]] = ("flat", "neon")
    streams: ClassVar[tuple[str, str]] = ("train", "other")   # the training scenes of both sides
    side_names = ("painted", "neon")

    def __init__(
        self,
        *,
        batch_size: int,                     # images of each side per batch on each device
        seed: int = 0,                       # order and augmentation of the training images
        split_seed: int = 0,                 # the seed of rendering
        train: int = 4000,                   # number of images on each side of each split
        validation: int = 500,
        test: int = 500,
        objects: int | str = "mixed",        # 1, 2 or mixed
        size: int | Sequence[int] = 64,      # pixels or [height, width]
        flip: bool = False,                  # mirror training images left to right, half of the time
        workers: int | str = "auto",         # processes that render what does not fit in memory
        memory_gb: float = 2.0,              # render up to this much (2^30 bytes) once
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, workers=workers,
                         memory_gb=memory_gb)
        self.name = "shapes_unpaired" if self.kind == "unpaired" else "shapes_paired"
        if str(objects) not in OBJECTS:
            raise UserError(f"unknown data.objects '{objects}': {choices(objects, OBJECTS)}")
        self.numbers = {"train": train, "validation": validation, "test": test}
        for name, n in self.numbers.items():
            if n < 1:
                raise UserError(f"data.{name} must be a number of images above 0, not {n}")
        self.objects = str(objects)
        self.wanted_size = parse_size(size) or (64, 64)
        if min(self.wanted_size) < 16:
            raise UserError(f"data.size={size} is too small to tell shapes apart: take at least 16")

    def load(self) -> dict[str, Split]:
        """Renders every split, or leaves that to the workers if it does not fit in memory."""
        fits = self.fits(2 * sum(self.numbers.values()), 3, self.wanted_size)
        splits = {}
        for name, n in self.numbers.items():
            streams = self.streams if name == "train" else (name, name)
            first, second = (self._side(stream, style, n, fits)
                             for stream, style in zip(streams, self.styles, strict=True))
            splits[name] = (first, second)
        aligned = self.streams[0] == self.streams[1]
        return self.pair_splits(splits, pairs={name: aligned or name != "train" for name in splits})

    def _side(self, stream: str, style: str, n: int, fits: bool) -> Split:
        scenes = Scenes(self.split_seed, stream, objects=self.objects, size=self.wanted_size, style=style)
        digest = f"shapes {VERSION} {self.split_seed} {stream} {n} {self.objects} {self.wanted_size} {style}"
        return Split(scenes.images(torch.arange(n)) if fits else Renders(scenes, n), digest=digest)


class ShapesPaired(ShapesUnpaired):
    """Drawings in coloured pencil (`source`) and paintings of the same scenes (`target`)."""

    kind = "paired"
    styles = ("outline", "flat")
    streams = ("train", "train")
    side_names = ("drawn in colour pencil", "painted")
