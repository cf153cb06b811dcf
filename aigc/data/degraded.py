"""Pairs made of any images: degraded (`source`) and as they are (`target`), for restorers and every family of pairs.

- Held-out images are degraded once, each by its own fixed seed: every run is scored on the same ones.
- Training images are degraded anew each time they are seen, on the device, from a seed of (seed, batch, place): the
  same for any number of devices and workers, and in a resumed run.
- A degraded image is what a file holds: within black and white, in 8 bits, and of its own size again where it was made
  smaller (by bicubic interpolation).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aigc.data.batches import Endless, TrainBatches, stream
from aigc.data.datamodule import ImageData
from aigc.data.degradation import Degradations, degradations_named
from aigc.data.pairs import PAIRED, UNPAIRED, PairData, PairSplit
from aigc.data.split import Batch, Split
from aigc.errors import UserError, check_count
from aigc.networks.resample import resize
from aigc.noise import mix
from aigc.wording import listed

DEGRADE, HELD, CROP, OTHER = 11, 12, 13, 14                # purposes of seeds
AT_ONCE = 256                                              # images degraded together on the CPU
VERSION = 1                                                # of the pixels; raised when an operator changes


def seeds_at(places: Sequence[int], *numbers: int) -> Tensor:
    """A seed for each place, int64 `(n,)`."""
    return torch.tensor([mix(*numbers, int(place)) for place in places], dtype=torch.int64)


def degrade(images: Tensor, degradations: Degradations, seeds: Tensor) -> dict[str, Tensor]:
    """What became of uint8 images `(n, c, h, w)`, each by its own seed, on their device.

    Returns:
        `image`, uint8 of the same shape; `level`, the standard deviation of its noise in units of [0, 1], `(n,)`; with
        masks `mask` `(n, 1, h, w)`, 1 where the image is lost.
    """
    seeds, (c, *size) = seeds.to(images.device), images.shape[1:]
    operator = degradations.draw(seeds, (c, size[0], size[1]))
    made = operator(images.float() / 255).clamp(0, 1)
    if made.shape != images.shape:
        made = resize(made, size).clamp(0, 1)
    found = {"image": (made * 255).round().to(torch.uint8), "level": operator.level(len(seeds)).to(images.device)}
    if (kept := operator.kept()) is not None:
        found["mask"] = F.interpolate(1 - kept, size=tuple(size), mode="nearest")
    return found


class Held:
    """A split's images, each degraded by its own fixed seed; `Lazy`'s interface."""

    def __init__(self, clean: Split, degradations: Degradations, seed: int):
        self.clean, self.degradations, self.seed = clean, degradations, seed
        n, c, h, w = clean.images.shape
        self.shape = (n, c, h, w)

    def degraded(self, index: Tensor) -> dict[str, Tensor]:
        """As `degrade`, of images `index` `(k,)`."""
        parts = [degrade(self.clean.batch(part)["image"], self.degradations, seeds_at(part.tolist(), self.seed))
                 for part in index.split(AT_ONCE)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def take(self, index: Tensor) -> Tensor:
        """Degraded images `index` `(k,)` as uint8 `(k, c, h, w)`."""
        return self.degraded(index)["image"] if len(index) else torch.empty(0, *self.shape[1:], dtype=torch.uint8)


class DegradedSplit(PairSplit):
    """Degraded images and the same as they are; batches also have `level` and, with masks, `mask`."""

    def __init__(self, clean: Split, held: Held, *, digest: str, in_memory: bool, keys: tuple[str, str]):
        self.known: dict[str, Tensor] = {}
        images: Any = held
        if in_memory:
            self.known = held.degraded(torch.arange(len(clean)))
            images = self.known.pop("image")
        super().__init__(Split(images, digest=digest), clean, pairs=True, keys=keys)
        self.held = held

    def sides(self, a: Tensor, b: Tensor, index: Tensor) -> Batch:
        """As of `PairSplit`, with what is known of how `a` were degraded."""
        if self.known:
            more = {key: value.index_select(0, a) for key, value in self.known.items()}
            return {**super().sides(a, b, index), **more}
        made = self.held.degraded(a)
        return {self.keys[0]: made.pop("image"), self.keys[1]: self.b.batch(b)["image"], "index": index, **made}


class CleanBatches(Dataset):
    """Batch k of rank r as of `TrainBatches`, cropped, with the seeds by which its device degrades it."""

    def __init__(self, batches: TrainBatches, *, crop: int | None, keys: tuple[str, str]):
        self.batches, self.crop, self.keys = batches, crop, keys

    def __getitem__(self, k: int) -> Batch:
        """Clean images uint8 by the key of the second side; unpaired ones also, other ones, by that of the first."""
        n, first = self.batches.batch_size, self.batches.rank * self.batches.batch_size
        places, seed = range(first, first + n), self.batches.seed
        batch = self.batches[k]
        made = {self.keys[1]: self._cropped(batch["image"], k, places), "index": batch["index"],
                "seeds": seeds_at(places, seed, DEGRADE, k)}
        if self.keys == UNPAIRED:
            start = k * n * self.batches.world + first
            rows = stream(mix(seed, OTHER), len(self.batches.split), start, start + n)
            made[self.keys[0]] = self._cropped(self.batches.split.batch(rows)["image"], k, places)
            made["index"] = rows
        return made

    def _cropped(self, images: Tensor, k: int, places: Sequence[int]) -> Tensor:
        height, width = images.shape[2:]
        if self.crop is None or self.crop >= max(height, width):
            return images
        side, kept = (min(self.crop, height), min(self.crop, width)), []
        for image, place in zip(images, places, strict=True):
            corner = mix(self.batches.seed, CROP, k, place)
            top, left = corner % (height - side[0] + 1), (corner >> 20) % (width - side[1] + 1)
            kept.append(image[:, top : top + side[0], left : left + side[1]])
        return torch.stack(kept)


class Degraded(PairData):
    """Images of another data set and what degradations make of them.

    Raises:
        UserError: the source gives pairs itself, or a degradation or one of its options is unknown or out of range.
    """

    kind = "paired"

    def __init__(
        self,
        *,
        source: ImageData,                      # any data of images: data@data.source=<data set>
        degradations: list[str],                # names, in their order
        options: dict[str, dict[str, Any]],     # of each degradation, by its name
        batch_size: int,                        # pairs per batch on each device
        seed: int = 0,                          # order and degradations of the training images
        split_seed: int = 0,                    # degradations of the held-out images
        crop: int | None = None,                # side of the crops for training, in pixels; None: whole images
        workers: int | str = "auto",            # processes that prepare what does not fit in memory
        memory_gb: float = 2.0,                 # keep held-out images in memory up to this much (2^30 bytes)
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=source.flip, workers=workers,
                         memory_gb=memory_gb)
        if isinstance(source, PairData):
            raise UserError(f"data.source={source.name} gives {source.kind} images, and data=degraded makes its own "
                            "pairs: choose data of single images, such as data@data.source=shapes")
        check_count("data.crop", crop, least=8, optional=True)
        self.degradations = degradations_named(degradations, options)
        self.source, self.crop = source, crop
        self.own_files, self.licence = source.own_files, source.licence
        self.name = f"degraded_{source.name}"
        self.side_names = (f"degraded by {listed(self.degradations.names)}", "the images themselves")

    def prepare_data(self) -> None:
        """The source's."""
        self.source.progress = self.progress
        self.source.prepare_data()

    def load(self) -> dict[str, Split]:
        """Degrades the held-out images, or leaves that to the workers if they do not fit in memory."""
        self.source.setup()
        self.licence, self.seen, self.left_out = self.source.licence, self.source.seen, self.source.left_out
        keys, made = PAIRED if self.kind == "paired" else UNPAIRED, dict[str, Split]()
        for number, (name, clean) in enumerate(sorted(self.source.splits.items())):
            n, channels, *size = clean.images.shape
            digest = f"degraded {VERSION} {self.split_seed} {number} {self.degradations.described()}"
            fits = name != "train" and clean.in_memory and self.fits(2 * n, channels, (size[0], size[1]))
            held = Held(clean, self.degradations, mix(self.split_seed, HELD, number))
            made[name] = DegradedSplit(clean, held, digest=digest, in_memory=fits, keys=keys)
        return {name: made[name] for name in self.source.splits}

    def facts(self) -> dict[str, Any]:
        """What a run's record says about its data: also what its images were degraded by."""
        return {**super().facts(), "degradations": self.degradations.described()}

    def train_dataloader(self) -> DataLoader:
        """Endless batches of this rank, from number `start_batch` on, which `on_after_batch_transfer` degrades."""
        rank, world = self._place
        split = self.pair_split("train")
        batches = TrainBatches(split.b, batch_size=self.batch_size, seed=self.seed, rank=rank, world=world,
                               flip=self.flip)
        return self._loader(CleanBatches(batches, crop=self.crop, keys=split.keys), split.b,
                            sampler=Endless(self.start_batch))

    @staticmethod
    def _with(batch: Mapping[str, Any], degradations: Degradations) -> Batch:
        """A batch, degraded where it comes with seeds for that; images are uint8."""
        batch = dict(batch)
        if (seeds := batch.pop("seeds", None)) is None:
            return batch
        keys = PAIRED if PAIRED[1] in batch else UNPAIRED
        made = degrade(batch.get(keys[0], batch[keys[1]]), degradations, seeds)
        return {**batch, keys[0]: made.pop("image"), **made}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Degrades training images, and converts, on the device."""
        return super().on_after_batch_transfer(self._with(batch, self.degradations), dataloader_idx)

    def prepare(self, batch: Batch, device: torch.device | str) -> Batch:
        """Moves a loader's batch to `device`, degrades training images, and converts."""
        moved = {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                 for key, value in batch.items()}
        return super().prepare(self._with(moved, self.degradations), device)
