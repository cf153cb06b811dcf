"""Your own images: a folder or a zip, with or without class subfolders, with or without train/val/test folders."""

import hashlib
import os
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.captions import captions_beside, complete
from aigc.data.datamodule import ImageData
from aigc.data.decode import Wanted
from aigc.data.encoded import Files, Part, open_parts
from aigc.data.layout import Layout, lay_out
from aigc.data.listing import Listing, look, refuse_empty, refuse_unreadable
from aigc.data.split import Split, cut
from aigc.errors import UserError
from aigc.files.names import natural, zip_name
from aigc.files.written import ours
from aigc.wording import counted, listed, shown, told


class FolderFiles:
    """Image files under a folder."""

    def __init__(self, root: Path, names: list[str]):
        self.root = root
        self.names = names              # relative, with forward slashes
        facts = [(name, *self._facts(name)) for name in names]
        self.key = hashlib.sha256(repr((str(root.resolve()), facts)).encode()).hexdigest()

    def _facts(self, name: str) -> tuple[int, ...]:
        try:
            found = os.stat(self.root / name)
        except OSError:                 # a dangling link: named when it is read
            return ()
        return found.st_size, found.st_mtime_ns

    def __len__(self) -> int:
        """Number of files."""
        return len(self.names)

    def name(self, i: int) -> str:
        """Path relative to the folder."""
        return self.names[i]

    def read(self, i: int) -> bytes:
        """Content of file i.

        Raises:
            OSError: it cannot be read, or is not a regular file: reading a pipe would block forever.
        """
        return read_file(self.root / self.names[i])


def read_file(path: Path) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: it is not a regular file, or cannot be read.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise OSError("a dangling link")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    return path.read_bytes()


class ZipFiles:
    """Image files in a zip; every process opens its own handle."""

    def __init__(self, path: Path, names: list[str]):
        self.path = path
        self.names = names
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._entries = {zip_name(entry.filename): entry for entry in self._zip.infolist()}
        facts = [(name, self._entries[name].file_size, self._entries[name].CRC) for name in names]
        self.key = hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def _zip(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():  # a forked file handle shares its position
            self._opened = (os.getpid(), zipfile.ZipFile(self.path))
        return self._opened[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        """Number of files."""
        return len(self.names)

    def name(self, i: int) -> str:
        """Path inside the zip."""
        return self.names[i]

    def read(self, i: int) -> bytes:
        """Content of file i."""
        return self._zip.read(self._entries[self.names[i]])


def image_files(path: Path, names: list[str]) -> Files:
    """The files with these names in a folder or a zip."""
    return FolderFiles(path, names) if path.is_dir() else ZipFiles(path, names)


def leave_out_own(listing: Listing, root: Path) -> None:
    """Removes what this program wrote from the list of images in `root`."""
    own: dict[str, list[str]] = {}
    for name, reason in ours(root, listing.plain).items():
        own.setdefault(reason, []).append(name)
    for reason, names in own.items():
        listing.leave_out(names, reason)


class ImageFolder(ImageData):
    """A folder or zip of images, each taken once.

    Sibling folders `train`, `val` (or `valid`, `validation`) and `test` are the splits, whatever else lies
    beside them; a missing one is held out of `train`; without such folders, all are (aigc/data/layout.py).
    Below them, subfolders are classes, in natural order, if there are at least two and every image lies in one.
    Captions beside the images make the set `captioned`. Files that this program wrote are left out.
    """

    own_files = True

    def __init__(
        self,
        *,
        path: str,                                  # folder or .zip
        batch_size: int,                            # images per batch on each device
        seed: int = 0,                              # order and augmentation of the training images
        split_seed: int = 0,                        # what is held out
        flip: bool = False,                         # mirror training images left to right, half of the time
        labels: bool | str = "auto",                # subfolders are classes: true, false, or auto as above
        captions: bool = True,                      # read a.txt beside a.png, and metadata.jsonl or .csv
        validation: int | float = 0.1,              # number or fraction held out without such a folder; 0: none
        test: int | float = 0.1,                    # likewise
        size: int | Sequence[int] | None = None,    # pixels or [height, width]; None: their own if equal, else 32
        channels: int | str = "auto",               # 1, 3, or auto: 1 if all images are grey
        range: Sequence[float] | None = None,       # [black, white] of 16-bit and float files; None: from the set
        fit: str = "crop",                          # other aspect ratios: crop, pad or stretch
        skip_broken: bool = False,                  # leave unreadable images out instead of stopping
        follow_links: bool = False,                 # also follow links that lead out of the folder
        workers: int | str = "auto",                # processes that decode what does not fit in memory
        memory_gb: float = 2.0,                     # decode up to this much (2^30 bytes) once
        licence: str | None = None,                 # what its owner allows, for the record; None: not known
        caption: str | None = None,                 # captions made of class names, "a {label}"; None: none
        names: Sequence[str] | None = None,         # of the classes in these captions; None: their own
        rewording: Mapping[str, Any] | None = None, # of training captions (saying.py); None: none
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, workers=workers,
                         memory_gb=memory_gb, caption=caption, names=names, rewording=rewording)
        self.licence = licence
        if labels not in ("auto", True, False):
            raise UserError(f"data.labels must be auto, true or false, not {labels!r}")
        self.path = Path(path).expanduser()
        self.name = shown(self.path.stem) or "images"
        self.use_labels = labels
        self.use_captions = captions
        self.validation = validation
        self.test = test
        self.follow_links = follow_links
        self.wanted = Wanted(size, channels, fit, skip_broken, range)

    def prepare_data(self) -> None:
        """Fails early, on one rank, and caches the findings about large sets for the others."""
        self.setup()

    def load(self) -> dict[str, Split]:
        """Lists, checks and decodes the images, and holds out the splits that have no folder."""
        listing, root = self._list()
        captions = self._captions(listing, root)
        layout = lay_out(listing.names, str(self.path), labels=self.use_labels)
        self.notes = [layout.note] * bool(layout.note)
        files = {split: image_files(root, found) for split, found in layout.files.items()}
        parts = open_parts(files, self.wanted, name=shown(str(self.path)), fits=self.fits)
        labels = self._labels(layout, parts)
        texts: dict[str, list[str]] = {}
        if captions:
            self.kind = "captioned"
            good = {split: [layout.files[split][i] for i in part.rows.tolist()] for split, part in parts.items()}
            _, remark = complete([name for found in good.values() for name in found], captions)
            self.notes += [remark] * bool(remark)
            texts = {split: complete(found, captions)[0] for split, found in good.items()}
        cut = cut_splits(parts, validation=self.validation, test=self.test, seed=self.split_seed,
                         labels=None if labels is None else labels["train"])
        self.left_out = told(listing.left_out) + told(layout.left_out)
        self.look_at(parts)
        return {split: parts[part].split(rows, None if labels is None else labels[part], texts.get(part))
                for split, (part, rows) in cut.items()}

    def _list(self) -> tuple[Listing, Path]:
        """The images, except those that this program wrote, and the folder or zip that holds them."""
        listing, root = look(self.path, "data.path", follow_links=self.follow_links), self.path
        refuse_unreadable(listing, "data.path", skip=self.wanted.skip_broken)
        if not listing.names and len(listing.zips) == 1:     # images.zip beside metadata.jsonl
            root = self.path / listing.zips[0]
            inside = look(root, "data.path")
            inside.outer = listing.beside
            listing = inside
        elif listing.zips:
            listing.left_out["zips beside pictures"] = listing.zips
        leave_out_own(listing, root)
        refuse_empty(listing, "data.path")
        return listing, root

    def _captions(self, listing: Listing, root: Path) -> dict[str, str]:
        """Captions by image name; empty where there are none."""
        if not self.use_captions:
            return {}
        where = shown(str(self.path))
        if root.is_dir():
            return captions_beside(listing.names, listing.beside, lambda name: read_file(root / name), where)
        archive = ZipFiles(root, listing.beside)
        inside = captions_beside(listing.names, listing.beside,
                                 lambda name: archive.read(listing.beside.index(name)), where)
        outer = captions_beside(listing.names, listing.outer, lambda name: read_file(self.path / name), where)
        return outer | inside

    def _labels(self, layout: Layout, parts: Mapping[str, Part]) -> dict[str, Tensor] | None:
        """Class numbers of the good images by split, or None; sets `classes` and `class_names`."""
        folder_of = {split: [layout.folders[split][i] for i in part.rows.tolist()] for split, part in parts.items()}
        known = sorted({folder for folder in folder_of["train"] if folder is not None}, key=natural)
        loose = [layout.files[split][i] for split, part in parts.items() for i in part.rows.tolist()
                 if layout.folders[split][i] is None]
        if self.use_labels == "auto" and loose and known:
            self.unlabelled = f"{counted(len(loose), 'image')} in no class folder: {listed(loose)}"
        if self.use_labels == "auto" and len(known) == len(folder_of["train"]) > 1 and (
            cuts(parts, validation=self.validation, test=self.test)
        ):
            self.unlabelled = "every image is in a folder of its own"
        if self.use_labels is False or (self.use_labels == "auto" and (self.unlabelled or loose or len(known) < 2)):
            return None
        if loose or not known:
            raise UserError(f"data.labels=true, but {shown(loose[0])} in {shown(str(self.path))} is in no class "
                            "folder: move it into one, or set data.labels=false")
        for split, folders in folder_of.items():
            strange = sorted(set(folders) - set(known), key=str)
            if strange:
                raise UserError(f"the class folder '{shown(str(strange[0]))}' in {shown(str(self.path))} is in "
                                f"{split} but not in train: add images of it there, or set data.labels=false")
        gone = sorted({str(folder) for folder in layout.folders["train"]} - set(known))
        if gone:
            layout.left_out["classes without a readable image"] = gone
        self.classes, self.class_names = len(known), [shown(name) for name in known]
        number = {name: k for k, name in enumerate(known)}
        return {split: torch.tensor([number[str(f)] for f in folders]) for split, folders in folder_of.items()}


def cuts(parts: Mapping[str, Part], *, validation: int | float, test: int | float) -> bool:
    """Whether images of train are held out for a split that has no part."""
    return bool((validation and "validation" not in parts) or (test and "test" not in parts))


def cut_splits(
    parts: dict[str, Part], *, validation: int | float, test: int | float, seed: int,
    groups: Sequence[object] | None = None, labels: Tensor | None = None,
) -> dict[str, tuple[str, Tensor]]:
    """The part and the rows that form each split; splits without a part are held out of train.

    `groups` (one value per image of the part train) keeps the images of a group in one split; without it, equal files
    stay together. Every class of `labels` (of the part train) keeps an image to train on. A share of 0 makes no split.
    """
    prints = parts["train"].prints
    if groups is None and len(prints.unique()) < len(prints):
        groups = prints.tolist()
    missing = {split: share for split, share in (("test", test), ("validation", validation)) if split not in parts}
    rest, held = cut(len(prints), missing, seed, groups=groups, labels=labels)
    found = {"train": ("train", rest)}
    for split in ("test", "validation"):
        if split in parts:
            found[split] = (split, torch.arange(len(parts[split].rows)))
        elif split in held:
            found[split] = ("train", held[split])
    return found
