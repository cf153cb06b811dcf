"""Your own images: a folder or a zip, with class subfolders or without, split into train/val/test folders or not."""

import hashlib
import os
import zipfile
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.data.decode import Wanted
from aigc.data.encoded import Files, Part, open_parts
from aigc.data.split import Split, hold_out
from aigc.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}


class FolderFiles:
    """Image files under a folder."""

    def __init__(self, root: Path, names: list[str]):
        self.root = root
        self.names = names              # relative, with forward slashes
        facts = [(name, (stat := (root / name).stat()).st_size, stat.st_mtime_ns) for name in names]
        self.key = hashlib.sha256(repr((str(root.resolve()), facts)).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of files."""
        return len(self.names)

    def name(self, i: int) -> str:
        """Path relative to the folder."""
        return self.names[i]

    def read(self, i: int) -> bytes:
        """Content of file i."""
        return (self.root / self.names[i]).read_bytes()


class ZipFiles:
    """Image files in a zip; every process opens it for itself."""

    def __init__(self, path: Path, names: list[str]):
        self.path = path
        self.names = names
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        facts = [(name, self._zip.getinfo(name).file_size, self._zip.getinfo(name).CRC) for name in names]
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
        return self._zip.read(self.names[i])


def image_files(path: Path, names: list[str]) -> Files:
    """The files of these names in a folder or a zip."""
    return FolderFiles(path, names) if path.is_dir() else ZipFiles(path, names)


def list_images(path: Path, option: str) -> list[str]:
    """Sorted names of all image files in a folder or a zip, relative to it; `option` names it in errors.

    Raises:
        UserError: it is missing or unreadable, or holds no images.
    """
    try:
        if path.is_dir():
            everything = [str(PurePosixPath(Path(folder, file).relative_to(path)))
                          for folder, _, files in os.walk(path, followlinks=True) for file in files]
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                everything = archive.namelist()
        elif path.exists():
            raise UserError(f"{option}={path} is neither a folder nor a whole zip: name one of them")
        else:
            raise UserError(f"{option}={path} does not exist: name a folder or a zip of images")
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{option}={path} cannot be read ({error}): check it") from error
    names = sorted(name for name in everything if name.lower().endswith(ENDINGS)
                   and not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))
    if not names:
        raise UserError(f"{option}={path} holds no images ({' '.join(ENDINGS)}): name another folder or zip")
    return names


def shared_folders(names: Sequence[str], meaningful: Container[str]) -> int:
    """How many leading folders all files share, up to the first one whose name (in lower case) says something."""
    folders = [name.split("/")[:-1] for name in names]
    top = 0
    while all(len(f) > top for f in folders) and len({f[top] for f in folders}) == 1 and (
        folders[0][top].lower() not in meaningful
    ):
        top += 1
    return top


class ImageFolder(ImageData):
    """A folder or zip of images.

    Folders `train`, `val` (or `valid`, `validation`) and `test` at its top are the splits; a missing one is held out
    of `train`, and without them all images are one set to cut. Below that, subfolders are classes if every image lies
    in one and there are at least two.
    """

    def __init__(
        self,
        *,
        path: str,                                  # folder or .zip
        batch_size: int,                            # images a batch on every device
        seed: int = 0,                              # order and augmentation of the training images
        split_seed: int = 0,                        # what is held out
        flip: bool = False,                         # mirror training images left to right, half of the time
        labels: bool | str = "auto",                # subfolders are classes: true, false, or auto as above
        validation: int | float = 0.1,              # number or fraction held out where there is no such folder
        test: int | float = 0.1,                    # likewise
        size: int | Sequence[int] | None = None,    # pixels or [height, width]; None: their own if equal, else 32
        channels: int | str = "auto",               # 1, 3, or auto: 1 if all images are grey
        fit: str = "crop",                          # other aspect ratios: crop, pad or stretch
        skip_broken: bool = False,                  # leave unreadable images out instead of stopping
        workers: int | str = "auto",                # processes that decode what does not fit in memory
        memory_gb: float = 2.0,                     # decode up to this much (2^30 bytes) once
        licence: str | None = None,                 # what its owner allows, for the record; None: not known
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, workers=workers,
                         memory_gb=memory_gb)
        self.licence = licence
        if labels not in ("auto", True, False):
            raise UserError(f"data.labels must be auto, true or false, not {labels!r}")
        self.path = Path(path).expanduser()
        self.name = self.path.stem or "images"
        self.use_labels = labels
        self.validation = validation
        self.test = test
        self.wanted = Wanted(size, channels, fit, skip_broken)

    def prepare_data(self) -> None:
        """Fails early, on one rank, and leaves the findings about large sets in the cache for the others."""
        self.setup()

    def load(self) -> dict[str, Split]:
        """Lists, checks and decodes the images, and cuts the splits that have no folder of their own."""
        names = list_images(self.path, "data.path")
        top = shared_folders(names, SPLIT_NAMES)
        by_split = _by_split(names, top, self.path)
        labels = self._labels(by_split, top)
        files = {split: image_files(self.path, [name for name, _ in found]) for split, found in by_split.items()}
        parts = open_parts(files, self.wanted, name=str(self.path), fits=self.fits)
        cut = cut_splits(parts, validation=self.validation, test=self.test, seed=self.split_seed)
        return {split: parts[part].split(rows, None if labels is None else labels[part][parts[part].rows], None)
                for split, (part, rows) in cut.items()}

    def _labels(self, by_split: dict[str, list[tuple[str, int]]], top: int) -> dict[str, Tensor] | None:
        """Class numbers of all files by split, or None; sets `classes` and `class_names`."""
        folder_of = {split: [name.split("/")[depth] if name.count("/") > depth else None for name, depth in found]
                     for split, found in by_split.items()}
        known = sorted({folder for folder in folder_of["train"] if folder is not None})
        loose = [found[k][0] for split, found in by_split.items() for k, f in enumerate(folder_of[split]) if f is None]
        if self.use_labels is False or (self.use_labels == "auto" and (loose or len(known) < 2)):
            return None
        if loose or not known:
            raise UserError(f"data.labels=true, but {loose[0]} in {self.path} lies in no class folder: move it into "
                            "one, or set data.labels=false")
        for split, folders in folder_of.items():
            strange = sorted(set(folders) - set(known), key=str)
            if strange:
                raise UserError(f"the class folder '{strange[0]}' in {self.path} is in {split} but not in train: "
                                "add it there, or set data.labels=false")
        self.classes, self.class_names = len(known), known
        return {split: torch.tensor([known.index(str(f)) for f in folders]) for split, folders in folder_of.items()}


def _by_split(names: list[str], top: int, path: Path) -> dict[str, list[tuple[str, int]]]:
    """Files by split, each with the depth at which its class folder would be."""
    first = [name.split("/")[top].lower() if name.count("/") > top else "" for name in names]
    if not set(first) <= set(SPLIT_NAMES):
        return {"train": [(name, top) for name in names]}
    by_split: dict[str, list[tuple[str, int]]] = {}
    for name, folder in zip(names, first, strict=True):
        by_split.setdefault(SPLIT_NAMES[folder], []).append((name, top + 1))
    if "train" not in by_split:
        raise UserError(f"{path} has the folders {', '.join(sorted(set(first)))} but none called train: add it, or "
                        "name one of them as data.path")
    return by_split


def cut_splits(
    parts: dict[str, Part], *, validation: int | float, test: int | float, seed: int,
    groups: Sequence[object] | None = None,
) -> dict[str, tuple[str, Tensor]]:
    """Where each split comes from: the part and its rows; splits without a part of their own are held out of train.

    `groups` (one value for each image of the part train) keeps images of one group in one split.
    """
    rest = torch.arange(len(parts["train"].rows))
    cut = {}
    for split, share in (("test", test), ("validation", validation)):
        if split in parts:
            cut[split] = (split, torch.arange(len(parts[split].rows)))
        else:
            members = None if groups is None else [groups[i] for i in rest.tolist()]
            kept, held = hold_out(len(rest), share, seed, what=f"data.{split}", groups=members)
            rest, cut[split] = rest[kept], ("train", rest[held])
    return {"train": ("train", rest), **cut}
