"""Which images form batch k: a pure function of (seed, k), so any run resumes at any batch, with any workers."""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from aigc.conditions.rewording import Rewording
from aigc.data.saying import reworded
from aigc.data.split import Batch, Split
from aigc.noise import mix

ORDER, AUGMENT, EVALUATE, REWORD = 1, 2, 3, 4  # the purpose of a seed: keeps the random streams apart


@lru_cache(maxsize=4)  # two sides, each across the end of an epoch
def _epoch(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, ORDER, epoch)))


def stream(seed: int, n: int, start: int, stop: int) -> Tensor:
    """Positions `[start, stop)` of the endless stream over n images: one permutation after another; int64."""
    parts = []
    while start < stop:
        epoch, offset = divmod(start, n)
        part = _epoch(seed, epoch, n)[offset : offset + stop - start]
        parts.append(part)
        start += len(part)
    return torch.cat(parts)


class TrainBatches(Dataset):
    """Batch k of rank r: the r-th of `world` equal parts of global batch k, augmented; batches never end.

    Neither the images of a global batch nor their augmentation depend on the number of ranks or workers.
    """

    def __init__(
        self, split: Split, *, batch_size: int, seed: int, rank: int, world: int, flip: bool,
        rewording: Rewording | None = None,
    ):
        self.split = split
        self.batch_size = batch_size                 # per rank
        self.seed = seed
        self.rank = rank
        self.world = world
        self.flip = flip                             # mirror every image left to right with probability 1/2
        self.rewording = rewording                   # of captions, each time an image comes

    def __getitem__(self, k: int) -> Batch:
        """This rank's part of global batch k; images uint8."""
        total = self.batch_size * self.world
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        first = k * total + mine.start
        batch = self.split.batch(stream(self.seed, len(self.split), first, first + self.batch_size))
        if self.flip:
            generator = torch.Generator().manual_seed(mix(self.seed, AUGMENT, k))
            mirrored = (torch.rand(total, generator=generator) < 0.5)[mine].numpy()
            pixels = batch["image"].numpy()                # this batch's own copy: written in place
            pixels[mirrored] = pixels[mirrored][..., ::-1]  # three times as fast as torch.flip and torch.where
        if self.rewording is not None and "text" in batch:
            places = range(first, first + self.batch_size)
            batch["text"] = reworded(self.rewording, batch["text"], mix(self.seed, REWORD), places)
        return batch


class EvalBatches(Dataset):
    """A fixed, finite list of batches for evaluation: every `world`-th of a seeded permutation cut to `limit`."""

    def __init__(self, split: Split, *, batch_size: int, seed: int, limit: int | None, rank: int, world: int):
        generator = torch.Generator().manual_seed(mix(seed, EVALUATE))
        self.split = split
        self.batch_size = batch_size
        self.order = torch.randperm(len(split), generator=generator)[:limit][rank::world].contiguous()

    def __len__(self) -> int:
        """Number of batches; the last may be smaller."""
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, k: int) -> Batch:
        """Batch k; images uint8."""
        if not 0 <= k < len(self):
            raise IndexError(k)
        return self.split.batch(self.order[k * self.batch_size : (k + 1) * self.batch_size])


class Endless(Sampler):
    """Batch numbers start, start + 1, ... without end (and so without a length)."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        """Counts up forever."""
        return itertools.count(self.start)
