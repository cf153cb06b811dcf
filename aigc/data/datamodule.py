"""What all image data share: batches that are pure functions of their number, and facts about the data.

- Batch k of training depends on (seed, k, global batch) alone: resume is exact, with any number of workers.
- Images that fit in memory are decoded once, then gathered with one `index_select` per batch; others are streamed.
- Loaders give uint8; images become float32 in [-1, 1] on the device (`to_float`).
- `split_seed` splits (and renders) the data, `seed` orders it: runs with different seeds are scored on equal images.
"""

import hashlib
import os
import signal
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from aigc.data.batches import Endless, EvalBatches, TrainBatches
from aigc.data.saying import captions_of, check_caption, rewording_of
from aigc.data.split import Batch, Split
from aigc.data.values import Ranges
from aigc.errors import UserError, choices
from aigc.wording import Report, counted, cut, listed, shown, silent

CLASSES = 40              # characters for the names of classes where a run says what it found
IMAGE_KEYS = ("image", "a", "b", "source", "target")  # keys of images in batches of any kind


class ImageData(L.LightningDataModule):
    """Images, with labels or captions where the data have them.

    A subclass defines `load()`, and `prepare_data()` if it downloads. It sets `name`, `licence`, `classes` and
    `class_names`; `channels`, `size` and `fingerprint` follow from what `load` returns.
    """

    kind: str = "images"  # captioned where batches have `text`; unpaired and paired: aigc/data/pairs.py
    own_files = False  # True: `name` is a location, not part of the data's identity
    licence: str | None = None  # what its authors allow, in a few words; None: not known

    def __init__(
        self,
        *,
        batch_size: int,                # images per batch on each device
        seed: int = 0,                  # order and augmentation of the training images
        split_seed: int = 0,            # of the held-out images (and of rendering)
        flip: bool = False,             # mirror training images left to right, half of the time
        workers: int | str = "auto",    # processes that decode what does not fit in memory; auto: a core each, up to 8
        memory_gb: float = 2.0,         # decode up to this much (2^30 bytes) once; stream what is larger
        caption: str | None = None,     # captions are this, with the class's name for {label}; None: not
        names: Sequence[str] | None = None,               # of the classes in these captions; None: their own
        rewording: Mapping[str, Any] | None = None,       # of training captions, options of `Rewording`; None: none
    ):
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size must be above 0, not {batch_size}")
        if workers != "auto" and (not isinstance(workers, int) or workers < 0):
            raise UserError(f"data.workers must be 'auto' or a number of processes, not {workers!r}")
        self.batch_size = batch_size
        self.seed = seed
        self.split_seed = split_seed
        self.flip = flip
        self.workers = workers
        self.memory_gb = memory_gb
        self.caption, self.names, self.rewording = check_caption(caption), names, rewording_of(rewording)
        self.name = type(self).__name__.lower()
        self.channels: int = 0
        self.size: tuple[int, int] = (0, 0)
        self.classes: int | None = None
        self.class_names: list[str] | None = None
        self.fingerprint: str = ""
        self.left_out: list[str] = []                            # files left out: "<reason>: <n> (<names>)"
        self.notes: list[str] = []                               # further remarks about the data, for the log
        self.unlabelled = ""                                     # why there are no classes where one might expect them
        self.seen: Any = None                                    # encoded.Seen, where the images come from files
        self.progress: Report = silent  # told of downloads
        self.start_batch = 0                                     # number of the first training batch
        self.splits: dict[str, Split] = {}

    # ---- what a subclass defines ----

    def load(self) -> dict[str, Split]:
        """The splits by name, of one image shape: train, and validation and test where images are held out for them.

        Raises:
            UserError: missing or corrupt data.
        """
        raise TypeError(f"{type(self).__name__} must define load()")

    def facts(self) -> dict[str, Any]:
        """What a run's record says about its data, as plain values."""
        self.setup()
        return {
            "name": self.name, "licence": self.licence, "kind": self.kind, "channels": self.channels,
            "size": list(self.size), "classes": self.classes, "class_names": self.class_names,
            "fingerprint": self.fingerprint,
            "images": {name: len(split) for name, split in self.splits.items()},
            **({"range": {kind: list(pair) for kind, pair in self.ranges.items()}} if self.ranges else {}),
        }

    def found(self) -> list[str]:
        """One line that describes the data, and a second one if anything was left out."""
        self.setup()
        counts = {name: len(split) for name, split in self.splits.items()}
        parts = [f"{counted(sum(counts.values()), 'image')}{self._classes()}, {self._sizes()}, "
                 f"{'grey' if self.channels == 1 else 'colour'}"]
        parts[0] += f", {self.seen.values}" if self.seen and self.seen.values else ""
        texts = self.splits["train"].texts
        if texts is not None:
            parts[0] += f', captions such as "{shorten(shown(next((text for text in texts if text), "")), 60)}"'
        order = [name for name in ("validation", "test", *counts) if name in counts and name != "train"]
        held = [f"{counts[name]:,} for {name}" for name in dict.fromkeys(order)]
        parts.append(", ".join([f"{counts['train']:,} to train on", *held]))
        lines = ["data      " + "; ".join(parts + self.notes + self._copies())]
        return lines + ["left out  " + "; ".join(self.left_out)] * bool(self.left_out)

    def _classes(self) -> str:
        if self.classes:
            return f" of {counted(self.classes, 'class')} ({cut(self.class_names or [], CLASSES)})"
        return f" without classes ({self.unlabelled})" if self.unlabelled else ""

    def _sizes(self) -> str:
        height, width = self.size
        short, long = self.seen.sides if self.seen else (min(self.size), max(self.size))
        if (short, long) == (min(self.size), max(self.size)):
            return f"{width} x {height} pixels"
        sides = f"{short:,} to {long:,}" if long > short else f"{long:,}"
        return f"{sides} pixels a side, shown at {width} x {height}"

    def _copies(self) -> list[str]:
        """Whether held-out files are equal to training files."""
        train = self.splits["train"].prints
        if train is None:
            return []
        n = {name: int(torch.isin(split.prints, train).sum()) for name, split in self.splits.items()
             if name != "train" and split.prints is not None}
        return [f"{count:,} for {name} are copies of training images" for name, count in n.items() if count]

    def look_at(self, parts: Mapping[str, Any]) -> None:
        """Keeps the findings about the files of `encoded.Part`s, for `found`."""
        self.seen = next(iter(parts.values())).seen
        if self.seen.broken:
            self.left_out.append(f"files that cannot be read: {len(self.seen.broken):,} ({listed(self.seen.broken)})")

    def fits(self, n: int, channels: int, size: tuple[int, int]) -> bool:
        """Whether n images of this shape fit in `memory_gb`."""
        return n * channels * size[0] * size[1] <= self.memory_gb * 2**30

    # ---- facts ----

    @property
    def ranges(self) -> Ranges:
        """Black and white by the kind of numbers in the files, where they are not 0 and 255."""
        return self.seen.ranges if self.seen is not None else {}

    @property
    def sequence(self) -> str:
        """Identifies the images and their order in `eval_dataloader` (`split_seed` orders given splits, too)."""
        return f"{self.fingerprint} in order {self.split_seed}"

    def setup(self, stage: str | None = None) -> None:
        """Loads all splits once; later calls do nothing."""
        if self.splits:
            return
        splits = self.load()
        if self.caption is not None:
            self.kind = "captioned"
            named = self.names if self.names is not None else self.class_names
            for split in splits.values():
                split.texts = captions_of(self.caption, split.labels, named, self.classes, data=str(self.name))
        _, self.channels, *size = splits["train"].images.shape
        self.size = (size[0], size[1])
        self.splits = splits
        self.fingerprint = self._fingerprint(None if self.own_files else self.name)

    def _fingerprint(self, called: str | None) -> str:
        """Identifies the data under the name `called`; None: by their content alone."""
        digest = hashlib.sha256(repr((called, self.classes, self.class_names)).encode())
        for name, split in sorted(self.splits.items()):
            digest.update(name.encode())
            split.update(digest)
        return digest.hexdigest()[:16]

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            UserError: there is no such split.
        """
        self.setup()
        if name not in self.splits:
            none = getattr(self, name, None) == 0
            why = f"data.{name}=0 holds none out" if none else choices(name, self.splits)
            raise UserError(f"{self.name} has no split '{name}': {why}")
        return self.splits[name]

    def count(self, split: str) -> int:
        """Number of images in a split."""
        return len(self.split(split))

    def images(self, split: str, *, limit: int | None = None) -> Tensor:
        """The first `limit` images of a split in stored order, uint8 `(n, c, h, w)`; streamed ones are decoded."""
        source = self.split(split).images
        if isinstance(source, Tensor):
            return source[:limit]
        n = min(source.shape[0], limit or source.shape[0])
        return torch.cat([source.take(part) for part in torch.arange(n).split(self.batch_size)])

    def labels(self, split: str, *, limit: int | None = None) -> Tensor | None:
        """The labels that belong to `images(split, limit=limit)`, int64 `(n,)`, or None."""
        labels = self.split(split).labels
        return None if labels is None else labels[:limit]

    def texts(self, split: str, *, limit: int | None = None) -> list[str] | None:
        """The captions that belong to `images(split, limit=limit)`, or None."""
        texts = self.split(split).texts
        return None if texts is None else list(texts[:limit])

    def texts_read(self) -> list[str]:
        """The training captions, and what rewording puts in their place: all that a vocabulary needs."""
        texts = self.texts("train") or []
        return [*texts, *(self.rewording.words() if self.rewording is not None and texts else ())]

    # ---- loaders ----

    @property
    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def global_batch(self) -> int:
        """Images per training step over all devices."""
        return self.batch_size * self._place[1]

    def train_dataloader(self) -> DataLoader:
        """Endless batches of this rank, from number `start_batch` on."""
        rank, world = self._place
        split = self.split("train")
        batches = TrainBatches(split, batch_size=self.batch_size, seed=self.seed, rank=rank, world=world,
                               flip=self.flip, rewording=self.rewording)
        return self._loader(batches, split, sampler=Endless(self.start_batch))

    def eval_dataloader(
        self, split: str, *, limit: int | None = None, batch_size: int | None = None, rank: int = 0, world: int = 1
    ) -> DataLoader:
        """Up to `limit` images of a split once, always the same in the same order; every `world`-th from `rank` on.

        Raises:
            UserError: there is no such split.
        """
        source = self.split(split)
        batches = EvalBatches(source, batch_size=batch_size or self.batch_size, seed=self.split_seed, limit=limit,
                              rank=rank, world=world)
        return self._loader(batches, source)

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the validation images."""
        rank, world = self._place
        return self.eval_dataloader("validation", rank=rank, world=world)

    def test_dataloader(self) -> DataLoader:
        """This rank's share of the test images."""
        rank, world = self._place
        return self.eval_dataloader("test", rank=rank, world=world)

    def _loader(self, batches: Dataset, split: Split, sampler: Endless | None = None) -> DataLoader:
        workers = 0 if split.in_memory else self._workers()
        extra: dict[str, Any] = {"prefetch_factor": 4, "persistent_workers": True} if workers and sampler else {}
        return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=workers,
                          pin_memory=torch.cuda.is_available(), worker_init_fn=_start_worker, **extra)

    def _workers(self) -> int:
        if isinstance(self.workers, int):
            return self.workers
        ranks = self.trainer.num_devices if self.trainer else 1
        return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4) // ranks)

    # ---- from uint8 to what a family sees ----

    @staticmethod
    def to_float(batch: Batch) -> Batch:
        """The batch with its uint8 images converted to float32 in [-1, 1]."""
        images = {key: batch[key] for key in IMAGE_KEYS if key in batch}
        for image in images.values():
            assert image.dtype == torch.uint8, f"images are {image.dtype} already"
        return {**batch, **{key: image.to(torch.float32).div_(127.5).sub_(1) for key, image in images.items()}}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Converts on the device, so that a quarter of the bytes is transferred."""
        return self.to_float(batch)

    def prepare(self, batch: Batch, device: torch.device | str) -> Batch:
        """Moves a loader's batch to `device` and converts it, as Lightning does for a training step."""
        moved = {key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                 for key, value in batch.items()}
        return self.to_float(moved)

    # ---- resume ----

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch, and what must match for the same batches to follow."""
        family: Any = self.trainer.lightning_module if self.trainer else None
        batches = family.progress.batches if family else self.start_batch
        return {"batches": batches, "global_batch": self.global_batch, "seed": self.seed,
                "images": self.count("train"), "fingerprint": self.fingerprint, "name": str(self.name)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with batch `state["batches"]`.

        Raises:
            UserError: the data, the seed or the global batch differ, so other batches would follow.
        """
        self.setup()
        now = self.state_dict()
        called = state.get("name", self.name)  # from when the folder's name counted for own files too
        if state["fingerprint"] != self.fingerprint and state["fingerprint"] == self._fingerprint(called):
            now["fingerprint"] = state["fingerprint"]
        for key, word in {"global_batch": "global batch (batch_size x devices)", "seed": "seed",
                          "images": "number of training images", "fingerprint": "data"}.items():
            if state[key] != now[key]:
                raise UserError(f"cannot resume: the checkpoint's {word} is {state[key]}, this run's is {now[key]}; "
                                "resume with the same or start a new run")
        self.start_batch = state["batches"]
        self.name, self.fingerprint = called, state["fingerprint"]


def _start_worker(_: int) -> None:
    """The trainer handles Ctrl-C and termination; a worker ends when the trainer does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
