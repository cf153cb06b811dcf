"""Rendered shapes as a data set: `scenes` of one or two objects, or with `language=rich` of three and more to say.

Train, validation and test show seen combinations of size, colour and shape; `heldout` those that training never shows,
and with `language=rich`, `templates` has captions in sentences that training never uses.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.data.decode import parse_size
from aigc.data.scenes import COLOURS, OBJECTS, SHAPES, VERSION, Scenes, caption, label, named
from aigc.data.shape_language import HELD_SENTENCES, RichScenes
from aigc.data.split import Split
from aigc.errors import UserError, choices

LANGUAGES = {"plain": OBJECTS, "rich": ("1", "2", "3", "mixed")}   # and the numbers of objects of each


class Renders:
    """Images of a split rendered on demand, with `Lazy`'s interface."""

    def __init__(self, scenes: Scenes, n: int):
        self.scenes = scenes
        self.shape = (n, 3, *scenes.size)

    def take(self, index: Tensor) -> Tensor:
        """Images `index` `(k,)` as uint8 `(k, 3, h, w)`."""
        return self.scenes.images(index)


class Shapes(ImageData):
    """Rendered shapes with labels and captions; splits train, validation, test, heldout and, if rich, templates."""

    kind = "captioned"
    licence = "rendered by this program: no rights of others"

    def __init__(
        self,
        *,
        batch_size: int,                     # images per batch on each device
        seed: int = 0,                       # order and augmentation of the training images
        split_seed: int = 0,                 # renders by this seed
        train: int = 20000,                  # number of images in each split
        validation: int = 2000,
        test: int = 5000,
        heldout: int = 2000,                 # images of combinations that training never shows; and of templates
        objects: int | str = 1,              # 1, 2 or mixed; rich: also 3
        language: str = "plain",             # rich: counts, three objects, negation, synonyms (shape_language.py)
        caption_background: bool = False,    # "... on stripes"
        size: int | Sequence[int] = 32,      # pixels or [height, width]
        workers: int | str = "auto",         # processes that render what does not fit in memory
        memory_gb: float = 2.0,              # render up to this much (2^30 bytes) once
        rewording: Mapping[str, Any] | None = None,   # of training captions (saying.py); None: none
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, workers=workers,
                         memory_gb=memory_gb, rewording=rewording)
        if language not in LANGUAGES:
            raise UserError(f"unknown data.language '{language}': {choices(language, LANGUAGES)}")
        if str(objects) not in LANGUAGES[language]:
            more = " with data.language=rich" if str(objects) in LANGUAGES["rich"] else ""
            raise UserError(f"unknown data.objects '{objects}': {choices(objects, LANGUAGES[language])}"
                            f"{more and f', or {objects}{more}'}")
        if language == "rich" and caption_background:
            raise UserError("data.caption_background=true goes with data.language=plain: leave one of them out")
        self.language = language
        self.counts = {"train": train, "validation": validation, "test": test, "heldout": heldout}
        if language == "rich":
            self.counts[HELD_SENTENCES] = heldout
        for name, n in self.counts.items():
            if n < 1:
                raise UserError(f"data.{name} must be a number of images above 0, not {n}")
        self.objects = str(objects)
        self.caption_background = caption_background
        self.wanted_size = parse_size(size) or (32, 32)
        if min(self.wanted_size) < 16:
            raise UserError(f"data.size={size} is too small to tell shapes apart: take at least 16")
        self.class_names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
        self.classes = len(self.class_names)

    def scenes(self, split: str) -> Scenes:
        """The endless sequence of images that a split starts."""
        made = RichScenes if self.language == "rich" else Scenes
        return made(self.split_seed, split, objects=self.objects, size=self.wanted_size)

    def attributes(self, split: str) -> Tensor:
        """Attributes of all images of a split, int64 `(n, 9)`, columns as in COLUMNS; rich: `(n, 12)`, COLUMNS3."""
        return self.scenes(split).attributes(torch.arange(self.counts[split]))

    def asked(self, split: str) -> Tensor:
        """What all captions of a split ask for, int64: attributes `(n, 9)`, -1 where one names none; rich: CLAIMS."""
        scenes = self.scenes(split)
        if isinstance(scenes, RichScenes):
            return scenes.claims(torch.arange(self.counts[split]))
        return named(self.attributes(split), background=self.caption_background)

    def load(self) -> dict[str, Split]:
        """Renders every split, or leaves it to the workers where that would not fit in memory."""
        fits = self.fits(sum(self.counts.values()), 3, self.wanted_size)
        return {name: self._split(name, n, fits) for name, n in self.counts.items()}

    def _split(self, name: str, n: int, fits: bool) -> Split:
        scenes, attributes = self.scenes(name), self.attributes(name)
        digest = f"shapes {VERSION} {self.split_seed} {name} {n} {self.objects} {self.wanted_size}"
        if isinstance(scenes, RichScenes):
            texts, digest = scenes.captions(torch.arange(n)), f"{digest} rich"
        else:
            texts = [caption(row, background=self.caption_background) for row in attributes]
        images = scenes.images(torch.arange(n)) if fits else Renders(scenes, n)
        return Split(images, label(attributes), texts, digest)
