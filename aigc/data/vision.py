"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision: read from `root`, or downloaded into it if allowed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.data.decode import fit_images, parse_channels, parse_size
from aigc.data.split import Split, cut
from aigc.errors import UserError, choices


class Source(NamedTuple):
    """A data set's class in torchvision, its folder under the root, and its licence."""

    attribute: str
    folder: str
    title: str
    licence: str


NONE_STATED = "none stated by its authors"
SOURCES = {
    "mnist": Source("MNIST", "MNIST/raw", "MNIST", NONE_STATED),
    "fashion_mnist": Source("FashionMNIST", "FashionMNIST/raw", "Fashion-MNIST", "MIT"),
    "cifar10": Source("CIFAR10", "cifar-10-batches-py", "CIFAR-10", NONE_STATED),
}


class Vision(ImageData):
    """One of torchvision's data sets, with its own test split; validation images are held out of its train split."""

    def __init__(
        self,
        source: str,                         # mnist, fashion_mnist or cifar10
        *,
        batch_size: int,                     # images per batch on each device
        seed: int = 0,                       # order and augmentation of the training images
        split_seed: int = 0,                 # what is held out
        flip: bool = False,                  # mirror training images left to right, half of the time
        root: str,                           # folder that holds torchvision's MNIST/, cifar-10-batches-py/
        download: bool = True,               # fetch what `root` lacks
        validation: int | float = 5000,      # number or fraction of the training images; 0: none
        size: int | Sequence[int] | None = None,  # pixels or [height, width]; None: as they are (28 or 32)
        channels: int | str = "auto",        # 1, 3, or auto: as they are
        caption: str | None = None,          # captions made of class names, "a {label}"; None: none
        names: Sequence[str] | None = None,  # of the classes in these captions; None: their own
        rewording: Mapping[str, Any] | None = None,  # of training captions (saying.py); None: none
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, caption=caption,
                         names=names, rewording=rewording)
        if source not in SOURCES:
            raise UserError(f"unknown data.source '{source}': {choices(source, SOURCES)}")
        self.name = source
        self.source = SOURCES[source]
        self.licence = self.source.licence
        self.root = Path(root).expanduser()
        self.download = download
        self.validation = validation
        self.wanted_size = parse_size(size)
        self.wanted_channels = parse_channels(channels)

    def prepare_data(self) -> None:
        """Downloads what is missing, where `download` allows it.

        Raises:
            UserError: it is missing, and the download is not allowed or fails.
        """
        if self._read(train=True, or_none=True) is not None and self._read(train=False, or_none=True) is not None:
            return
        place = f"{self.source.title} is not at {self.root / self.source.folder}"
        if not self.download:
            raise UserError(f"{place} and data.download=false: put it there, name another data.root, or allow the "
                            "download with data.download=true")
        try:
            for train in (True, False):
                self._dataset(train=train, download=True)
        except Exception as error:  # no network, a bad mirror, a full disk: torchvision raises many kinds
            reason = str(error).splitlines()[0].rstrip(":. ") if str(error) else type(error).__name__
            raise UserError(f"{place} and cannot be downloaded ({reason}): put it there, name another data.root, or "
                            "take data=digits or data=shapes, which need no download") from error

    def load(self) -> dict[str, Split]:
        """Train and validation (drawn with `split_seed`), and the official test split."""
        images, labels = self._tensors(train=True)
        rest, held = cut(len(images), {"validation": self.validation}, self.split_seed)
        splits = {name: Split(images[rows], labels[rows]) for name, rows in {"train": rest, **held}.items()}
        splits["test"] = Split(*self._tensors(train=False))
        return splits

    def _dataset(self, *, train: bool, download: bool = False) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.source.attribute)(str(self.root), train=train, download=download)

    def _read(self, *, train: bool, or_none: bool = False) -> Any:
        """Torchvision's data set; None if it is missing and `or_none`."""
        try:
            return self._dataset(train=train)
        except RuntimeError as error:
            if "not found" in str(error).lower() and or_none:
                return None
            if "not found" in str(error).lower():
                raise UserError(f"{self.source.title} is incomplete at {self.root / self.source.folder}: put it "
                                "there, name another data.root, or set data.download=true") from error
            raise self._corrupt(error) from error
        except Exception as error:  # a damaged file fails differently in each reader
            raise self._corrupt(error) from error

    def _corrupt(self, error: Exception) -> UserError:
        return UserError(f"{self.source.title} at {self.root / self.source.folder} cannot be read "
                         f"({type(error).__name__}: {error}): delete that folder and fetch it again")

    def _tensors(self, *, train: bool) -> tuple[Tensor, Tensor]:
        """Images uint8 `(n, c, h, w)` and labels int64 `(n,)`."""
        dataset = self._read(train=train)
        images = torch.as_tensor(dataset.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        self.class_names = [str(name).split(" - ")[0] for name in dataset.classes]  # "0 - zero": 0
        self.classes = len(self.class_names)
        images = fit_images(images, size=self.wanted_size, channels=self.wanted_channels)
        return images, torch.as_tensor(dataset.targets).long()
