"""scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, grey: part of that package, nothing to download."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aigc.data.datamodule import ImageData
from aigc.data.decode import fit_images, parse_channels, parse_size
from aigc.data.split import Split, cut


class Digits(ImageData):
    """The test set of the "Optical Recognition of Handwritten Digits" collection (Alpaydin and Kaynak, UCI, 1998)."""

    licence = "CC BY 4.0"                    # according to the collection's page at UCI

    def __init__(
        self,
        *,
        batch_size: int,                     # images per batch on each device
        seed: int = 0,                       # order and augmentation of the training images
        split_seed: int = 0,                 # what is held out
        flip: bool = False,                  # mirror training images left to right, half of the time
        validation: int | float = 0.1,       # number or fraction of all images; 0: none
        test: int | float = 0.1,             # likewise
        size: int | Sequence[int] | None = None,  # pixels or [height, width]; None: 8
        channels: int | str = "auto",        # 1, 3, or auto: 1
        caption: str | None = None,          # captions made of class names, "a {label}"; None: none
        names: Sequence[str] | None = None,  # of the classes in these captions; None: their own
        rewording: Mapping[str, Any] | None = None,  # of training captions (saying.py); None: none
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, caption=caption,
                         names=names, rewording=rewording)
        self.validation = validation
        self.test = test
        self.wanted_size = parse_size(size)
        self.wanted_channels = parse_channels(channels)
        self.classes = 10
        self.class_names = [str(d) for d in range(10)]

    def load(self) -> dict[str, Split]:
        """Train, validation and test, drawn with `split_seed`."""
        grey, digits = read_digits()
        pixels = np.rint(grey * (255 / 16)).astype(np.uint8)
        images = fit_images(torch.from_numpy(pixels)[:, None], size=self.wanted_size, channels=self.wanted_channels)
        labels = torch.from_numpy(digits)
        rest, held = cut(len(images), {"test": self.test, "validation": self.validation}, self.split_seed)
        rows = {"train": rest, **dict(reversed(held.items()))}
        return {name: Split(images[index], labels[index]) for name, index in rows.items()}


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `(1797, 8, 8)` in 0..16 and digits `(1797,)` int64, as `sklearn.datasets.load_digits` gives them.

    Read from that package's file, because importing the package takes a second.
    """
    spec = find_spec("sklearn")
    assert spec is not None and spec.origin is not None, "scikit-learn is a dependency of this package"
    rows = np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
