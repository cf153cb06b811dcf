"""Two sides of images for translation: unpaired (`a`, `b`) or paired (`source`, `target`), streamed by `ImageData`.

- Unpaired sides follow independent permutations and are cropped and mirrored independently; the two
  images of a pair always get the same crop and the same mirror.
- Training images are decoded at a load size and cropped at random to `crop_size`; evaluation sees whole images,
  at `size`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aigc.data.batches import AUGMENT, Endless, stream
from aigc.data.datamodule import ImageData
from aigc.data.split import Batch, Split
from aigc.noise import mix
from aigc.wording import counted

UNPAIRED, PAIRED = ("a", "b"), ("source", "target")
Size = tuple[int, int]


class Both:
    """The images of both sides, one side after the other, with `Lazy`'s interface."""

    def __init__(self, a: Split, b: Split):
        self.a, self.b = a, b
        _, channels, height, width = a.images.shape
        self.shape = (len(a) + len(b), channels, height, width)

    def take(self, index: Tensor) -> Tensor:
        """Images `index` `(k,)` as uint8 `(k, c, h, w)`."""
        n = len(self.a)
        found = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8)
        for mine, side, first in ((index < n, self.a, 0), (index >= n, self.b, n)):
            if mine.any():
                found[mine] = side.batch(index[mine] - first)["image"]
        return found


class PairSplit(Split):
    """One part of two-sided data. Row k is image k of both sides; the shorter side repeats.

    `images` are those of both sides, one side after the other.
    """

    def __init__(
        self, a: Split, b: Split, *, pairs: bool, keys: tuple[str, str] = UNPAIRED, larger: "PairSplit | None" = None
    ):
        assert a.images.shape[1:] == b.images.shape[1:], "the sides differ in shape"
        assert not pairs or len(a) == len(b), "pairs need as many images on both sides"
        super().__init__(Both(a, b))
        self.a, self.b = a, b
        self.pairs = pairs              # images k of both sides show the same thing
        self.keys = keys                # keys of the sides in a batch
        self.larger = larger            # the same images at the load size, to crop for training

    def __len__(self) -> int:
        """Rows: the images of the longer side."""
        return max(len(self.a), len(self.b))

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded and in memory."""
        return self.a.in_memory and self.b.in_memory

    def batch(self, index: Tensor) -> Batch:
        """The batch of rows `index` `(k,)` int64: both sides uint8 `(k, c, h, w)`, copies, and `index`."""
        return self.sides(index % len(self.a), index % len(self.b), index)

    def sides(self, a: Tensor, b: Tensor, index: Tensor) -> Batch:
        """Images `a` of one side and `b` of the other, each int64 `(k,)`, as a batch with this `index`."""
        first, second = self.a.batch(a)["image"], self.b.batch(b)["image"]
        return {self.keys[0]: first, self.keys[1]: second, "index": index}

    def update(self, digest: "hashlib._Hash") -> None:
        """Feeds everything that a batch of this split depends on to `digest`."""
        digest.update(repr(self.pairs).encode())
        for side in (self.a, self.b, *([self.larger] if self.larger else [])):
            side.update(digest)


class PairBatches(Dataset):
    """Batch k of rank r: the r-th of `world` equal parts of global batch k, cropped and mirrored; batches never end.

    Neither the images of a global batch nor their augmentation depend on the number of ranks or workers.
    """

    def __init__(self, split: PairSplit, *, size: Size, batch_size: int, seed: int, rank: int, world: int, flip: bool):
        self.split = split.larger or split
        self.size = size                             # (h, w) of what comes out
        self.batch_size = batch_size                 # per rank
        self.seed = seed
        self.rank = rank
        self.world = world
        self.flip = flip                             # mirror images left to right with probability 1/2

    def __getitem__(self, k: int) -> Batch:
        """This rank's part of global batch k; images uint8, `index` the rows of the first side."""
        first = (k * self.world + self.rank) * self.batch_size
        paired = self.split.keys == PAIRED
        rows = []
        for number, side in enumerate((self.split.a, self.split.b)):
            seed = self.seed if paired else mix(self.seed, number)
            rows.append(stream(seed, len(side), first, first + self.batch_size))
        batch = self.split.sides(rows[0], rows[1], rows[0])
        for number, key in enumerate(self.split.keys):
            batch[key] = self._augmented(batch[key], mix(self.seed, AUGMENT, k, 0 if paired else number))
        return batch

    def _augmented(self, images: Tensor, seed: int) -> Tensor:
        """Images of this rank at `size`, each cropped and mirrored with its own random numbers."""
        total = self.batch_size * self.world
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        draws = torch.rand(total, 3, generator=torch.Generator().manual_seed(seed))[mine]
        (height, width), (full_height, full_width) = self.size, images.shape[2:]
        top = (draws[:, 0] * (full_height - height + 1)).long().tolist()
        left = (draws[:, 1] * (full_width - width + 1)).long().tolist()
        if (height, width) != (full_height, full_width):
            images = torch.stack([image[:, y : y + height, x : x + width]
                                  for image, y, x in zip(images, top, left, strict=True)])
        if self.flip:
            mirrored = draws[:, 2] < 0.5
            images[mirrored] = images[mirrored].flip(3)
        return images


class PairData(ImageData):
    """Two-sided data: `kind` is unpaired or paired; splits are `PairSplit`s, of one `size` for evaluation.

    A subclass defines `load()` as for `ImageData`, and may give the training split a `larger` one to crop from.
    """

    kind = "unpaired"
    crop_size: Size | None = None       # (h, w) of training images; None: `size`
    side_names: tuple[str, str] = ("a", "b")   # names of the first and the second side in messages

    def facts(self) -> dict[str, Any]:
        """What a run's record says about its data, as plain values."""
        return {**super().facts(), "sides": list(self.side_names),
                "pairs": {name: self.has_pairs(name) for name in self.splits}}

    def found(self) -> list[str]:
        """One line on what each side holds and which images are pairs, and a second one if anything was left out."""
        self.setup()
        first, second = self.side_names
        if self.kind == "paired":
            roles = f"from {first} (source) to {second} (target)"
        else:
            roles = f"{first} (side a) and {second} (side b)"
        parts = [f"{roles}, {self._sizes()}, {'grey' if self.channels == 1 else 'colour'}"]
        order = [name for name in ("train", "validation", "test") if name in self.splits]
        for name in order:
            a, b = self.counts(name)
            what = f"{counted(a, 'pair')}" if self.has_pairs(name) else f"{a:,} and {b:,} images, not in pairs"
            parts.append(f"{what} {'to train on' if name == 'train' else f'for {name}'}")
        if self.kind != "paired" and self.has_pairs("train"):
            parts[1] += ", shown to the family apart"
        lines = ["data      " + "; ".join(parts + self.notes)]
        return lines + ["left out  " + "; ".join(self.left_out)] * bool(self.left_out)

    def unpair(self) -> None:
        """Turns pairs into unpaired training data `a` and `b`, in independent orders; evaluation keeps the pairs."""
        self.kind = "unpaired"
        for name in self.splits:
            split = self.pair_split(name)
            for one in (split, split.larger):
                if one is not None:
                    one.keys = UNPAIRED

    def pair_splits(
        self, splits: Mapping[str, tuple[Split, Split]], *, pairs: Mapping[str, bool],
        larger: tuple[Split, Split] | None = None,
    ) -> dict[str, Split]:
        """Splits by name, from both sides of each and whether these are pairs; `larger`: training sides to crop."""
        keys = PAIRED if self.kind == "paired" else UNPAIRED
        made: dict[str, Split] = {}
        for name, (a, b) in splits.items():
            crops = None
            if larger is not None and name == "train":
                crops = PairSplit(a=larger[0], b=larger[1], pairs=pairs[name], keys=keys)
            made[name] = PairSplit(a=a, b=b, pairs=pairs[name], keys=keys, larger=crops)
        return made

    def pair_split(self, name: str) -> PairSplit:
        """The split called `name`.

        Raises:
            UserError: there is no such split.
        """
        split = self.split(name)
        assert isinstance(split, PairSplit)
        return split

    def counts(self, split: str) -> tuple[int, int]:
        """Number of images of the first and of the second side."""
        found = self.pair_split(split)
        return len(found.a), len(found.b)

    def has_pairs(self, split: str) -> bool:
        """Whether images k of both sides show the same thing."""
        return self.pair_split(split).pairs

    def train_dataloader(self) -> DataLoader:
        """Endless batches of this rank, from number `start_batch` on."""
        rank, world = self._place
        split = self.pair_split("train")
        batches = PairBatches(split, size=self.crop_size or self.size, batch_size=self.batch_size,
                              seed=self.seed, rank=rank, world=world, flip=self.flip)
        return self._loader(batches, batches.split, sampler=Endless(self.start_batch))
