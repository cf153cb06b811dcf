"""Anything that the `datasets` library loads: a Hub name, parquet files, or an image folder with `metadata.jsonl`.

The columns of images, classes and captions are found by their types and usual names, or configured. Images are decoded
by aigc/data/decode.py, as from every other source.
"""

import logging
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.captions import METADATA, metadata_rows
from aigc.data.columns import captions, image_columns, label_columns, text_columns
from aigc.data.datamodule import ImageData
from aigc.data.decode import Wanted
from aigc.data.encoded import Part, open_parts
from aigc.data.folder import ZipFiles, cut_splits, cuts, read_file
from aigc.data.layout import shared_folders
from aigc.data.listing import look
from aigc.data.split import Split
from aigc.errors import UserError, choices
from aigc.files.names import SPLIT_NAMES, natural
from aigc.files.written import ours
from aigc.wording import counted, listed, shown, told


class RowFiles:
    """The image column of a `datasets.Dataset`: bytes in the table, or paths of files beside it."""

    def __init__(self, rows: Any, column: str, split: str):
        self.rows = rows                # datasets.Dataset; every worker reopens its memory map
        self.column = column
        self.split = split
        self.key = f"{rows._fingerprint} {column}"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def _value(self, i: int) -> Any:
        return self.rows.data.column(self.column)[i].as_py()

    def path(self, i: int) -> str | None:
        """The path of row i's file, as stored in the table."""
        value = self._value(i)
        return value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str) else None

    def name(self, i: int) -> str:
        """The file's path, or the row's number where the table has none."""
        return self.path(i) or f"{self.split}[{i}]"

    def read(self, i: int) -> bytes:
        """The encoded image of row i."""
        value = self._value(i)
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise OSError("no image in this row")
        return read_file(Path(value)) if isinstance(value, str) else value


class HuggingFace(ImageData):
    """Images, with labels and captions where the source has them, through the `datasets` library.

    The library's splits are used where they exist (train; validation, val or dev; test); a missing one is held out
    of train. A single split of another name is divided into three. The classes are those that occur in train, in
    natural order (a ClassLabel's in its own), named by their original values; held-out rows of other classes are left
    out, as are files that this program wrote.
    """

    own_files = True

    def __init__(
        self,
        *,
        path: str,                                  # Hub name, folder, or .parquet file
        batch_size: int,                            # images per batch on each device
        seed: int = 0,                              # order and augmentation of the training images
        split_seed: int = 0,                        # what is held out
        flip: bool = False,                         # mirror training images left to right, half of the time
        subset: str | None = None,                  # configuration of a Hub data set with several
        image: str = "auto",                        # column of the images
        label: str | None = "auto",                 # column of the classes; None: no labels
        text: str | None = "auto",                  # column of the captions, or "{style} emoji of {text}"; None: none
        validation: int | float = 0.1,              # number or fraction held out for a missing split; 0: none
        test: int | float = 0.1,                    # likewise
        group: str | None = None,                   # column: rows with the same value are held out together
        size: int | Sequence[int] | None = None,    # pixels or [height, width]; None: their own if equal, else 32
        channels: int | str = "auto",               # 1, 3, or auto: 1 if all images are grey
        range: Sequence[float] | None = None,       # [black, white] of 16-bit and float files; None: from the set
        fit: str = "crop",                          # other aspect ratios: crop, pad or stretch
        skip_broken: bool = False,                  # leave unreadable images out instead of stopping
        workers: int | str = "auto",                # processes that decode what does not fit in memory
        memory_gb: float = 2.0,                     # decode up to this much (2^30 bytes) once
        licence: str | None = None,                 # what its owner allows, for the record; None: as the source says
        rewording: Mapping[str, Any] | None = None, # of training captions (saying.py); None: none
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, workers=workers,
                         memory_gb=memory_gb, rewording=rewording)
        self.licence = licence
        self.path = path
        self.name = Path(path).stem
        self.subset = subset
        self.only: str | None = None                # the only split, if a held-out one: divided into three
        self.columns = {"image": image, "label": label, "text": text, "group": group}
        self.validation = validation
        self.test = test
        self.wanted = Wanted(size, channels, fit, skip_broken, range)

    def prepare_data(self) -> None:
        """Downloads, converts and checks the images on one rank; the others then read the library's cache."""
        self.setup()

    def load(self) -> dict[str, Split]:
        """Finds the columns, checks and decodes the images, and holds out the splits that the source lacks."""
        left_out: dict[str, list[str]] = {}
        found = self._load_tables()
        held = [SPLIT_NAMES.get(name.lower()) for name in found]
        self.only = held[0] if len(found) == 1 and held[0] != "train" else None
        tables = _by_split(found, self.path, left_out)
        features = tables["train"].features
        self.licence = self.licence or tables["train"].info.license or None
        image = self._find("image", features, image_columns(features))
        label = self._find("label", features, label_columns(features))
        text = self._find("text", features, text_columns(features))
        group = self._find("group", features, [])
        if image is None:
            raise UserError(f"{self.path} has no recognizable image column (it has {', '.join(features)}): "
                            "name it with data.image")
        self._not_taken(tables, image, left_out)
        tables = {split: self._without_ours(table, image, left_out) for split, table in tables.items()}
        values = None if label is None else self._values(tables, label)
        texts = None if text is None else {split: captions(table, text) for split, table in tables.items()}
        if texts is not None:
            self.kind = "captioned"
        files = {split: RowFiles(table, image, split) for split, table in tables.items()}
        parts = open_parts(files, self.wanted, name=self.path, fits=self.fits)
        numbers = values is not None and len(set(values["train"])) == len(values["train"])   # row numbers, not classes
        if numbers and self.columns["label"] == "auto" and cuts(parts, validation=self.validation, test=self.test):
            values, self.unlabelled = None, f"column '{label}' has a different value in every row"
        labels = None if values is None else self._labels(values, parts, tables["train"].features[str(label)])
        groups = None
        if group is not None:
            of_row = list(tables["train"][group])
            groups = [str(of_row[i]) for i in parts["train"].rows.tolist()]
        cut = cut_splits(parts, validation=self.validation, test=self.test, seed=self.split_seed, groups=groups,
                         labels=None if labels is None else labels["train"])
        splits = {}
        for split, (part, rows) in cut.items():
            if labels is not None:
                rows = self._trained(split, rows, labels[part][rows], left_out)
            good = parts[part].rows
            splits[split] = parts[part].split(rows, None if labels is None else labels[part],
                                              None if texts is None else [texts[part][i] for i in good.tolist()])
        self.left_out = told(left_out)
        self.look_at(parts)
        return splits

    def _names(self, table: Any, column: str) -> dict[str, list[int]]:
        """Names of the files in a local folder that a table's rows refer to, relative to it, with the rows of each."""
        local, names = Path(self.path).expanduser(), dict[str, list[int]]()
        files = RowFiles(table, column, "")
        for i in range(len(table)) if local.is_dir() else ():
            path = files.path(i)
            for root in {os.path.abspath(local), os.path.realpath(local)} if path else ():
                if path and path.startswith(root + os.sep) and os.path.isfile(path):
                    names.setdefault(path[len(root) + 1 :], []).append(i)
                    break
        return names

    def _not_taken(self, tables: Mapping[str, Any], column: str, left_out: dict[str, list[str]]) -> None:
        """Names the pictures in a local folder that the library skipped.

        Raises:
            UserError: it took only a test or validation folder, and skipped the pictures beside it.
        """
        taken = {name for table in tables.values() for name in self._names(table, column)}
        if not taken:
            return
        listing = look(Path(self.path).expanduser(), "data.path")
        missing = [name for name in listing.names if name not in taken]
        if missing and self.only is not None:
            raise UserError(f"of {self.path} the datasets library takes only the folder for {self.only}, and leaves "
                            f"out {listed(missing)}: take data=image_folder, or name the folder that you mean as "
                            "data.path")
        left_out |= {"pictures that the datasets library passes over": missing} if missing else {}

    def _without_ours(self, table: Any, column: str, left_out: dict[str, list[str]]) -> Any:
        """The rows of a local folder, except files that this program wrote."""
        names = self._names(table, column)
        own = ours(Path(self.path).expanduser(), list(names)) if names else {}
        for name, reason in own.items():
            left_out.setdefault(reason, []).append(name)
        if len(own) == len(table):
            raise UserError(f"data.path={self.path} holds only files that are left out: {'; '.join(told(left_out))}")
        gone = {i for name in own for i in names[name]}
        return table.select([i for i in range(len(table)) if i not in gone]).flatten_indices() if gone else table

    def _load_tables(self) -> Mapping[str, Any]:
        """The library's splits under its own names."""
        datasets = library()

        datasets.logging.set_verbosity_error()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hides its retries before our message
        local = Path(self.path).expanduser()
        if not local.exists() and (self.path.startswith((".", "/", "~")) or self.path.endswith(".parquet")):
            raise UserError(f"data.path={self.path} does not exist: name a folder, a .parquet file or a Hub data set")
        try:
            if local.is_file():
                return datasets.load_dataset("parquet", data_files={"train": str(local)})
            if (table := _beside_zip(local)) is not None:
                return {"train": table}
            return datasets.load_dataset(str(local) if local.exists() else self.path, self.subset)
        except UserError:
            raise
        except Exception as error:  # the library raises dozens of kinds: missing, damaged, unreachable, ambiguous
            reason = (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__
            if isinstance(error.__cause__, Exception):
                reason += f": {str(error.__cause__).splitlines()[0] if str(error.__cause__) else error.__cause__!r}"
            where = "is damaged or in a format that the datasets library does not know" if local.exists() else (
                "is not a local folder and cannot be loaded from the Hub")
            raise UserError(f"data.path={self.path} {where} ({reason[:300]}): check the path, the name and the "
                            "network") from error

    def _find(self, role: str, features: Mapping[str, Any], found: list[str]) -> str | None:
        """The column for a role: as configured, or the first of those found; a text may be a template of columns."""
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
                raise UserError(f"data.text='{wanted}' is not a valid template ({error}): write columns as "
                                f"{{name}}") from error
        for name in fields:
            if name not in features:
                raise UserError(f"{self.path} has no column '{name}' for data.{role}: {choices(name, features)}")
        return wanted

    def _values(self, tables: Mapping[str, Any], column: str) -> dict[str, list[Any]] | None:
        """The labels of all rows by split, as in the table; None where the column that was found holds none.

        Raises:
            UserError: some are missing, or are not classes.
        """
        feature = tables["train"].features[column]
        values = {split: list(table[column]) for split, table in tables.items() if column in table.features}
        everything = [value for split in values.values() for value in split]
        known = getattr(feature, "names", None)
        missing = [None, -1] if known else [None]                # the library's value for an unknown ClassLabel
        if any(value in missing for value in everything if not isinstance(value, list)) or len(values) < len(tables):
            raise UserError(f"column '{column}' of {self.path} has rows without a label: name another with "
                            "data.label, or set data.label=null")
        if all(isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())
               for value in everything):
            if known and not all(0 <= value < len(known) for value in everything):
                raise UserError(f"column '{column}' of {self.path} holds labels from {min(everything)} to "
                                f"{max(everything)}, which are not its classes 0 to {len(known) - 1}: name another "
                                "with data.label, or set data.label=null")
            return values
        if self.columns["label"] == "auto":
            self.unlabelled = f"column '{column}' holds no classes"
            return None
        raise UserError(f"column '{column}' of {self.path} holds no classes ({feature}): name another with "
                        "data.label, or set data.label=null")

    def _labels(self, values: dict[str, list[Any]], parts: Mapping[str, Part], feature: Any) -> dict[str, Tensor]:
        """Class numbers of the good images by split, -1 for classes not in train; sets `classes` and `class_names`."""
        known = getattr(feature, "names", None)
        good = {split: [values[split][i] for i in part.rows.tolist()] for split, part in parts.items()}
        words = any(isinstance(value, str) for value in good["train"])
        if known and list(known) == sorted(known):         # no meaningful order: folders, as the library sorts them
            order: Any = lambda value: natural(known[value])  # noqa: E731
        else:
            order = (lambda value: natural(value)) if words else None
        occurring = sorted(set(good["train"]), key=order)
        number = {value: k for k, value in enumerate(occurring)}
        names = [known[v] if known else str(int(v)) if isinstance(v, float) else str(v) for v in occurring]
        self.classes, self.class_names = len(names), [shown(name) for name in names]
        if known and len(known) > len(names):
            never = [name for k, name in enumerate(known) if k not in number]
            self.notes.append(f"no training image of {listed(never)}, which are therefore not classes")
        return {split: torch.tensor([number.get(v, -1) for v in rows]) for split, rows in good.items()}

    def _trained(self, split: str, rows: Tensor, labels: Tensor, left_out: dict[str, list[str]]) -> Tensor:
        """Rows whose class occurs in train.

        Raises:
            UserError: there are none.
        """
        strange = int((labels < 0).sum())
        if strange == len(rows):
            raise UserError(f"no {split} image of {self.path} has a class that occurs in train: check the labels, or "
                            "set data.label=null")
        if strange:
            left_out[f"{split} images of classes that do not occur in train"] = [f"row {i}" for i in rows[labels < 0]]
        return rows[labels >= 0]


def _by_split(tables: Mapping[str, Any], path: str, left_out: dict[str, list[str]]) -> dict[str, Any]:
    """The tables under our names of splits."""
    found: dict[str, Any] = {}
    for name, table in tables.items():
        split = "train" if len(tables) == 1 else SPLIT_NAMES.get(name.lower())
        if split is None or split in found:
            left_out.setdefault("splits with other names", []).append(name)
        else:
            found[split] = table
    if "train" not in found:
        raise UserError(f"{path} has the splits {', '.join(tables)} but none called train: name a file or folder with "
                        "one as data.path")
    empty = [name for name, table in found.items() if len(table) == 0]
    if empty:
        raise UserError(f"the split {empty[0]} of {path} has no rows: check the files")
    return found


def _beside_zip(folder: Path) -> Any:
    """The table of a folder that holds a zip of images with their metadata beside it; None for other folders.

    Raises:
        UserError: the metadata are damaged, or name a file that is not in the zip.
    """
    if not folder.is_dir():
        return None
    listing = look(folder, "data.path")
    metadata = [name for name in listing.beside if name.lower() in METADATA]
    if listing.names or len(listing.zips) != 1 or len(metadata) != 1:
        return None
    datasets = library()

    archive = folder / listing.zips[0]
    names = look(archive, "data.path").names
    files = ZipFiles(archive, names)
    top = shared_folders(names, ())
    number = {"/".join(name.split("/")[top:]): i for i, name in enumerate(names)}    # file_name may omit the
    number |= {name: i for i, name in enumerate(names)}                              # folder that holds everything
    rows = metadata_rows(metadata[0], (folder / metadata[0]).read_bytes(), str(folder))
    missing = [row["file_name"] for row in rows if row["file_name"] not in number]
    if missing:
        raise UserError(f"{metadata[0]} in {folder} names {counted(len(missing), 'file', 'that is', 'that are')} not "
                        f"in {archive.name}: {listed(missing)}")
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    columns["image"] = [{"bytes": files.read(number[str(name)]), "path": name} for name in columns.pop("file_name")]
    table = datasets.Dataset.from_dict(columns)
    return table.cast_column("image", datasets.Image())


def library() -> Any:
    """The package `datasets`, which only `data=huggingface` needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("data=huggingface needs the package 'datasets': pip install 'aigc[huggingface]'") from error
    return datasets
