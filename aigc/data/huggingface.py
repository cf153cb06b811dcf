"""Whatever the `datasets` library can load: a Hub name, parquet files, or an image folder with `metadata.jsonl`.

The columns that hold the images, the classes and the captions are found by their types and usual names, or named.
Images are decoded by our own decoder, like every other source's.
"""

import logging
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.data.decode import Wanted
from aigc.data.encoded import open_parts
from aigc.data.folder import SPLIT_NAMES, cut_splits
from aigc.data.split import Split
from aigc.errors import UserError, choices

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values", "jpg", "png", "webp")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "category", "target", "cls")
TEXT_NAMES = ("text", "caption", "captions", "prompt", "sentence", "sentences", "description", "title", "txt")


class RowFiles:
    """The image column of a `datasets.Dataset`: bytes in the table, or paths of files beside it."""

    def __init__(self, rows: Any, column: str, split: str):
        self.rows = rows                # datasets.Dataset; its memory map is opened again in every worker
        self.column = column
        self.split = split
        self.key = f"{rows._fingerprint} {column}"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def _value(self, i: int) -> Any:
        return self.rows.data.column(self.column)[i].as_py()

    def name(self, i: int) -> str:
        """The file's path, or the row's number where the table has none."""
        value = self._value(i)
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None
        return path or f"{self.split}[{i}]"

    def read(self, i: int) -> bytes:
        """The encoded image of row i."""
        value = self._value(i)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise OSError("no image in this row")
        return Path(value).read_bytes() if isinstance(value, str) else value


class HuggingFace(ImageData):
    """Images, with labels and captions where there are any, through the `datasets` library.

    The library's splits are used where they exist (train, validation or val or dev, test); a missing one is held out
    of train. A set with one split of another name is cut into three.
    """

    def __init__(
        self,
        *,
        path: str,                                  # Hub name, folder, or .parquet file
        batch_size: int,                            # images a batch on every device
        seed: int = 0,                              # order and augmentation of the training images
        split_seed: int = 0,                        # what is held out
        flip: bool = False,                         # mirror training images left to right, half of the time
        subset: str | None = None,                  # configuration of a Hub data set that has several
        image: str = "auto",                        # column of the images
        label: str | None = "auto",                 # column of the classes; None: no labels
        text: str | None = "auto",                  # column of the captions, or "{style} emoji of {text}"; None: none
        validation: int | float = 0.1,              # number or fraction held out where there is no such split
        test: int | float = 0.1,                    # likewise
        group: str | None = None,                   # column: rows with the same value are held out together
        size: int | Sequence[int] | None = None,    # pixels or [height, width]; None: their own if equal, else 32
        channels: int | str = "auto",               # 1, 3, or auto: 1 if all images are grey
        fit: str = "crop",                          # other aspect ratios: crop, pad or stretch
        skip_broken: bool = False,                  # leave unreadable images out instead of stopping
        workers: int | str = "auto",                # processes that decode what does not fit in memory
        memory_gb: float = 2.0,                     # decode up to this much (2^30 bytes) once
        licence: str | None = None,                 # what its owner allows, for the record; None: as the source says
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, workers=workers,
                         memory_gb=memory_gb)
        self.licence = licence
        self.path = path
        self.name = Path(path).stem
        self.subset = subset
        self.columns = {"image": image, "label": label, "text": text, "group": group}
        self.validation = validation
        self.test = test
        self.wanted = Wanted(size, channels, fit, skip_broken)

    def prepare_data(self) -> None:
        """Downloads and converts on one rank, and checks the images; the others then read the library's cache."""
        self.setup()

    def load(self) -> dict[str, Split]:
        """Finds the columns, checks and decodes the images, and cuts the splits that the source lacks."""
        tables = _by_split(self._load_tables(), self.path)
        features = tables["train"].features
        self.licence = self.licence or tables["train"].info.license or None
        image = self._find("image", features, _image_columns(features))
        label = self._find("label", features, _label_columns(features))
        text = self._find("text", features, _text_columns(features))
        group = self._find("group", features, [])
        if image is None:
            raise UserError(f"{self.path} has no column of images that could be found (it has {', '.join(features)}): "
                            "name it with data.image")
        labels = None if label is None else self._labels(tables, label)
        texts = None if text is None else {split: _captions(table, text) for split, table in tables.items()}
        if texts is not None:
            self.kind = "captioned"
        parts = open_parts({split: RowFiles(table, image, split) for split, table in tables.items()}, self.wanted,
                           name=self.path, fits=self.fits)
        groups = None
        if group is not None:
            values = list(tables["train"][group])
            groups = [str(values[i]) for i in parts["train"].rows.tolist()]
        cut = cut_splits(parts, validation=self.validation, test=self.test, seed=self.split_seed, groups=groups)
        splits = {}
        for split, (part, rows) in cut.items():
            good = parts[part].rows
            splits[split] = parts[part].split(rows, None if labels is None else labels[part][good],
                                              None if texts is None else [texts[part][i] for i in good.tolist()])
        return splits

    def _load_tables(self) -> Mapping[str, Any]:
        """The library's splits by its own names."""
        import datasets

        datasets.logging.set_verbosity_error()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries, before our sentence
        local = Path(self.path).expanduser()
        if not local.exists() and (self.path.startswith((".", "/", "~")) or self.path.endswith(".parquet")):
            raise UserError(f"data.path={self.path} does not exist: name a folder, a .parquet file or a Hub data set")
        try:
            if local.is_file():
                return datasets.load_dataset("parquet", data_files={"train": str(local)})
            return datasets.load_dataset(str(local) if local.exists() else self.path, self.subset)
        except Exception as error:  # the library raises dozens of kinds: missing, torn, unreachable, ambiguous
            reason = (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__
            if isinstance(error.__cause__, Exception):
                reason += f": {str(error.__cause__).splitlines()[0] if str(error.__cause__) else error.__cause__!r}"
            where = "is damaged or of no kind that the datasets library knows" if local.exists() else (
                "is no folder here and cannot be loaded from the Hub")
            raise UserError(f"data.path={self.path} {where} ({reason[:300]}): check the path, the name and the "
                            "network") from error

    def _find(self, role: str, features: Mapping[str, Any], found: list[str]) -> str | None:
        """The column for a role: as named, or the first of those found; a text may be a template of columns."""
        wanted = self.columns[role]
        if wanted is None:
            return None
        if wanted == "auto":
            return found[0] if found else None
        fields = [wanted]
        if role == "text" and "{" in wanted:
            try:
                fields = [name for _, name, _, _ in string.Formatter().parse(wanted) if name is not None]
            except ValueError as error:
                raise UserError(f"data.text='{wanted}' is no template ({error}): write columns as {{name}}") from error
        for name in fields:
            if name not in features:
                raise UserError(f"{self.path} has no column '{name}' for data.{role}: {choices(name, features)}")
        return wanted

    def _labels(self, tables: Mapping[str, Any], column: str) -> dict[str, Tensor]:
        """Class numbers by split; sets `classes` and `class_names`."""
        feature = tables["train"].features[column]
        values = {split: list(table[column]) for split, table in tables.items() if column in table.features}
        known = getattr(feature, "names", None)
        if any(value is None for split in values.values() for value in split) or len(values) < len(tables):
            raise UserError(f"column '{column}' of {self.path} has rows without a label: name another with "
                            "data.label, or set data.label=null")
        if known is None and any(isinstance(value, str) for value in values["train"]):
            known = sorted(set().union(*values.values()))
            number = {value: k for k, value in enumerate(known)}
            values = {split: [number[value] for value in rows] for split, rows in values.items()}
        try:
            labels = {split: torch.tensor([int(value) for value in rows]) for split, rows in values.items()}
        except (TypeError, ValueError) as error:
            raise UserError(f"column '{column}' of {self.path} holds no classes ({feature}): name another with "
                            "data.label, or set data.label=null") from error
        low, high = (int(f(torch.cat(list(labels.values())))) for f in (torch.min, torch.max))
        known = known or [str(k) for k in range(high + 1)]
        if low < 0 or high >= len(known):
            raise UserError(f"column '{column}' of {self.path} holds labels from {low} to {high}, which are not "
                            f"classes 0 to {len(known) - 1}: name another with data.label, or set data.label=null")
        self.classes, self.class_names = len(known), list(known)
        return labels


def _by_split(tables: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Tables under our split names."""
    found = {SPLIT_NAMES[name.lower()]: table for name, table in tables.items() if name.lower() in SPLIT_NAMES}
    if len(tables) == 1:
        found = {"train": next(iter(tables.values()))}
    if "train" not in found:
        raise UserError(f"{path} has the splits {', '.join(tables)} but none called train: name a file or folder with "
                        "one as data.path")
    empty = [name for name, table in found.items() if len(table) == 0]
    if empty:
        raise UserError(f"the split {empty[0]} of {path} has no rows: check the files")
    return found


def _usual(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Those with a usual name first, in the order of the usual names."""
    rank = {name: k for k, name in enumerate(usual)}
    return sorted(names, key=lambda name: rank.get(name.lower(), len(usual)))


def _image_columns(features: Mapping[str, Any]) -> list[str]:
    typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    raw = [name for name, feature in features.items() if name.lower() in IMAGE_NAMES and (
        (isinstance(feature, Mapping) and {"bytes", "path"} & set(feature))
        or getattr(feature, "dtype", None) in ("binary", "large_binary"))]
    return _usual(typed, IMAGE_NAMES) + _usual(raw, IMAGE_NAMES)


def _label_columns(features: Mapping[str, Any]) -> list[str]:
    typed = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    plain = [name for name, feature in features.items() if name.lower() in LABEL_NAMES and name not in typed
             and str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string", "bool"))]
    return _usual(typed, LABEL_NAMES) + _usual(plain, LABEL_NAMES)


def _text_columns(features: Mapping[str, Any]) -> list[str]:
    def is_text(feature: Any) -> bool:
        inner = getattr(feature, "feature", feature)
        return getattr(inner, "dtype", None) in ("string", "large_string")

    return _usual([name for name, f in features.items() if name.lower() in TEXT_NAMES and is_text(f)], TEXT_NAMES)


def _captions(table: Any, text: str) -> list[str]:
    """Captions of all rows: a column's (the first where a row has several), or a template filled with columns."""
    if "{" not in text:
        return [_one(value) for value in table[text]]
    names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    columns = {name: list(table[name]) for name in names}
    return [text.format(**{name: _one(values[i]) for name, values in columns.items()}) for i in range(len(table))]


def _one(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = value[0] if value else ""
    return "" if value is None else str(value)
