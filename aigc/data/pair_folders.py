"""Your own images of two kinds: folders trainA, trainB, testA, testB, or both images of a pair in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.decode import Wanted, parse_size
from aigc.data.download import Archive, fetch
from aigc.data.encoded import Encoded, Files, Part, open_parts
from aigc.data.folder import image_files, leave_out_own
from aigc.data.listing import look, refuse_empty, refuse_unreadable
from aigc.data.pair_layout import LAYOUTS, SIDES, WAYS, Listing, PairLayout, lay_out_sides, partner_name
from aigc.data.pairs import PairData
from aigc.data.split import Lazy, Split, hold_out
from aigc.errors import UserError, choices
from aigc.wording import counted, listed, shown, told

DIRECTIONS = ("a2b", "b2a")
MIXED_SIZE = 64  # pixels, where the images' sizes differ and none is chosen
EVEN = (1.9, 2.1)  # approximate width over height of two square images side by side
Named = Mapping[str, Mapping[str, list[tuple[str, str]]]]  # by split and side: (name of the pair, file)


class Half:
    """One half of images that lie side by side, with `Lazy`'s interface; both halves share the last decoded images."""

    def __init__(self, whole: "Whole", side: int):
        n, channels, height, width = whole.images.shape
        self.whole = whole
        self.side = side
        self.shape = (n, channels // 2, height, width)

    def take(self, index: Tensor) -> Tensor:
        """Images `index` `(k,)` as uint8 `(k, c, h, w)`."""
        return self.whole.take(index)[:, self.side * self.shape[1] : (self.side + 1) * self.shape[1]].clone()


class Whole:
    """Pairs of images side by side; keeps the last decoded ones."""

    def __init__(self, images: Lazy):
        self.images = images
        self.last: tuple[list[int], Tensor] | None = None

    def take(self, index: Tensor) -> Tensor:
        """Both halves of images `index` `(k,)`, stacked along the channels: uint8 `(k, 2 * c, h, w)`."""
        asked = index.tolist()
        if self.last is None or self.last[0] != asked:
            self.last = (asked, self.images.take(index))
        return self.last[1]


class UnpairedFolder(PairData):
    """A folder or zip with trainA, trainB and optionally valA, valB, testA, testB (or train/A, A/train, ...).

    A missing split is held out of train. Where both sides of a split have the same file names (or `12_A.jpg` and
    `12_B.jpg`), they are true pairs: families do not train on the pairing, but evaluation uses it.
    """

    own_files = True
    of_pairs = False               # whether two files, or the halves of one, form a pair

    def __init__(
        self,
        *,
        root: str,                                  # folder or .zip
        batch_size: int,                            # images of each side per batch on each device
        seed: int = 0,                              # order and augmentation of the training images
        split_seed: int = 0,                        # what is held out
        load_size: int | Sequence[int] | None = None,  # training images before cropping; None: crop_size
        crop_size: int | Sequence[int] | None = None,  # of training images; None: load_size, else their own, else 64
        test_size: int | Sequence[int] | None = None,  # of whole images for validation and test; None: crop_size
        flip: bool = False,                         # mirror training images left to right, half of the time
        validation: int | float = 0.1,              # number or fraction held out for a missing folder
        test: int | float = 0.1,                    # likewise
        direction: str = "a2b",                     # b2a: folder B is the first side
        channels: int | str = "auto",               # 1, 3, or auto: 1 if all images are grey
        fit: str = "stretch",                       # other aspect ratios: stretch, crop or pad
        margins: Sequence[float] = (0.0, 0.0),      # white around images of A and of B, as a share of width and height
        layout: str = "auto",                       # of PairedFolder: what tells which images form a pair
        skip_broken: bool = False,                  # leave unreadable images out instead of stopping
        follow_links: bool = False,                 # also follow links that lead out of the folder
        workers: int | str = "auto",                # processes that decode what does not fit in memory
        memory_gb: float = 2.0,                     # decode up to this much (2^30 bytes) once
        licence: str | None = None,                 # what its owner allows, for the record; None: not known
        archive: Archive | None = None,             # downloaded and unpacked into `root` if that is missing
        download: bool = True,                      # whether that is allowed
    ):
        super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed, flip=flip, workers=workers,
                         memory_gb=memory_gb)
        self.licence = licence
        if direction not in DIRECTIONS:
            raise UserError(f"unknown data.direction '{direction}': {choices(direction, DIRECTIONS)}")
        if layout not in LAYOUTS:
            raise UserError(f"unknown data.layout '{layout}': {choices(layout, LAYOUTS)}")
        self.layout = layout
        self.follow_links = follow_links
        self.root = Path(root).expanduser()
        self.name = shown(self.root.stem) or "images"
        whole = parse_size(test_size, "test_size")
        crop = parse_size(crop_size, "crop_size") or parse_size(load_size, "load_size") or whole
        self.load_size = parse_size(load_size, "load_size") or crop
        self.crop_size = crop
        self.test_size = whole or crop
        if crop and self.load_size and (crop[0] > self.load_size[0] or crop[1] > self.load_size[1]):
            raise UserError(f"data.crop_size={crop_size} is larger than data.load_size={load_size}: crop at most that")
        if len(margins) != 2 or not all(0 <= margin < 0.5 for margin in margins):
            raise UserError(f"data.margins={list(margins)} must be two shares of an image's side, at least 0 and less "
                            "than 0.5: one for side A, one for side B")
        self.margins = dict(zip(SIDES, margins, strict=True))
        self.validation = validation
        self.test = test
        self.direction = direction
        self.wanted = Wanted(None, channels, fit, skip_broken)
        self.archive = archive
        self.download = download

    def prepare_data(self) -> None:
        """Downloads what is missing, on one rank, and fails early; caches the findings about large sets.

        Raises:
            UserError: the download is not allowed or fails, or the data are broken.
        """
        if self.archive is not None and not self.root.exists():
            if not self.download:
                raise UserError(f"{self.root} does not exist and data.download=false: name another data.root, or "
                                "allow the download with data.download=true")
            fetch(self.archive, self.root, self.progress)
        self.setup()

    def load(self) -> dict[str, Split]:
        """Lists, checks and decodes the images of both sides, and holds out the splits that have no folders."""
        return self._load_sides(self._list())

    def _list(self) -> PairLayout:
        """The files of both sides, except those that this program wrote."""
        listing = look(self.root, "data.root", follow_links=self.follow_links)
        refuse_unreadable(listing, "data.root", skip=self.wanted.skip_broken)
        leave_out_own(listing, self.root)
        refuse_empty(listing, "data.root")
        layout = lay_out_sides(listing.names, shown(str(self.root)), layout=self.layout, paired=self.of_pairs)
        self.left_out = told(listing.left_out) + told(layout.left_out)
        self.side_names = layout.sides if self.direction == "a2b" else layout.sides[::-1]
        return layout

    def _load_sides(self, layout: PairLayout) -> dict[str, Split]:
        """The splits of two folders, or of two files per pair."""
        listing = layout.files
        _check_sides(listing, self.root)
        named = {split: {side: sorted((partner_name(name, side), name) for name in found)
                         for side, found in sides.items()} for split, sides in listing.items()}
        pairs = {split: _agree(*([key for key, _ in sides[s]] for s in SIDES)) for split, sides in named.items()}
        self.check_pairs(named, pairs)
        chosen = self._cut({split: {side: [name for _, name in found] for side, found in sides.items()}
                            for split, sides in named.items()})
        files = {f"{split}{side.upper()}": image_files(self.root, names)
                 for split, sides in chosen.items() for side, names in sides.items()}
        parts = self._open(files)
        self.look_at(parts)
        splits, larger = {}, None
        for split in chosen:
            keys = [f"{split}{side.upper()}" for side in SIDES]
            both = [parts[key] for key in keys]
            rows = [torch.arange(len(part.rows)) for part in both]
            if pairs.setdefault(split, pairs["train"]):  # a broken image also excludes its partner
                rows = [torch.isin(one.rows, other.rows).nonzero()[:, 0] for one, other in (both, both[::-1])]
                if not len(rows[0]):
                    raise UserError(f"no pair of {split} images in {self.root} is readable: repair them")
            sides = [part.split(mine, None, None) for part, mine in zip(both, rows, strict=True)]
            if split == "train" and self._crops:
                larger = self._ordered(sides)
                sides = [self._whole(half, files[key], part.rows[mine], margin=self.margins[side])
                         for side, key, half, part, mine in zip(SIDES, keys, sides, both, rows, strict=True)]
            splits[split] = self._ordered(sides)
        return self.pair_splits(splits, pairs=pairs, larger=larger)

    def _cut(self, chosen: Listing) -> Listing:
        """Holds missing splits out of train: the same rows on both sides if they have equally many."""
        for split, share in (("test", self.test), ("validation", self.validation)):
            if split not in chosen and share:
                train, chosen["train"], chosen[split] = chosen["train"], {}, {}
                for side, names in train.items():
                    kept, held = hold_out(len(names), share, self.split_seed, what=f"data.{split}")
                    chosen["train"][side] = [names[i] for i in kept.tolist()]
                    chosen[split][side] = [names[i] for i in held.tolist()]
        return chosen

    def check_pairs(self, named: Named, pairs: Mapping[str, bool]) -> None:
        """Refuses folders that do not fit this kind of data; unpaired ones may hold anything."""

    # ---- sizes ----

    @property
    def _crops(self) -> bool:
        return not self.load_size == self.crop_size == self.test_size

    def _open(self, files: Mapping[str, Files], *, halves: bool = False) -> dict[str, Part]:
        """All parts, training images at the load size and others at the test size."""
        sizes = None
        if self.load_size and self.test_size:
            sizes = {part: self.load_size if part.startswith("train") else self.test_size for part in files}
        if halves and any(self.margins.values()):
            raise UserError(f"data.margins is for two folders, and {self.root} has two images in each file: give "
                            "data.margins=[0,0]")
        margins = {} if halves else {part: self.margins[part[-1].lower()] for part in files}
        return open_parts(files, self.wanted, name=str(self.root), fits=self.fits, sizes=sizes, mixed_size=MIXED_SIZE,
                          halves=halves, margins=margins, check=self._check_halves if halves else None)

    def _check_halves(self, files: Mapping[str, Files], shapes: Mapping[str, Tensor]) -> None:
        """Refuses files that do not look like two images side by side, unless the layout was chosen.

        Raises:
            UserError: names a few of them, and the available layouts.
        """
        if self.layout == "halves":
            return
        uneven = []
        for part, found in shapes.items():
            for i, (height, width) in enumerate(found.tolist()):
                if height and not EVEN[0] <= width / height <= EVEN[1]:
                    uneven.append(f"{files[part].name(i)} ({width} x {height})")
        if uneven:
            n = sum(map(len, files.values()))
            be = "is" if len(uneven) == 1 else "are"
            raise UserError(f"{len(uneven):,} of {counted(n, 'image')} in {shown(str(self.root))} {be} not about "
                            f"twice as wide as high ({listed(uneven)}), so their halves are unlikely to be pairs: "
                            f"{WAYS}, or give data.layout=halves if every file does hold two images")

    def _whole(self, train: Split, files: Files, rows: Tensor, **options: Any) -> Split:
        """The training images, files `rows`, at the test size like the other splits; decoded on demand."""
        if self.load_size == self.test_size:
            return train
        channels = train.images.shape[1] // (2 if "halves" in options else 1)
        images = Encoded(files, rows, size=self.test_size, channels=channels, fit=self.wanted.fit, **options)
        return Split(images, digest=f"{train.digest} at {self.test_size}")

    def _ordered(self, sides: Sequence[Split]) -> tuple[Split, Split]:
        first, second = sides if self.direction == "a2b" else sides[::-1]
        return first, second


class PairedFolder(UnpairedFolder):
    """A folder or zip of pairs: two folders with the same file names, files like `1_A.png` and `1_B.png`, or two
    images side by side in each file (aigc/data/pair_layout.py).

    Folders `train`, `val` and `test` are the splits; a missing one is held out of train. Two folders are laid out as
    for `UnpairedFolder`: trainA and trainB, train/A and train/B, A/train and B/train, or A and B. The source is the
    left image (or A) and the target the right one (or B), unless `direction` is b2a.
    """

    kind = "paired"
    of_pairs = True

    def load(self) -> dict[str, Split]:
        """Lists, checks and decodes the pairs, and holds out the splits that have no folder."""
        layout = self._list()
        return self._load_halves(layout.files) if layout.kind == "halves" else self._load_sides(layout)

    def check_pairs(self, named: Named, pairs: Mapping[str, bool]) -> None:
        """Refuses images without a partner.

        Raises:
            UserError: names a few of them.
        """
        for split, sides in named.items():
            if pairs[split]:
                continue
            keys = {side: {key for key, _ in found} for side, found in sides.items()}
            alone = [name for side, other in (("a", "b"), ("b", "a"))
                     for key, name in sides[side] if key not in keys[other]]
            if not alone:
                raise UserError(f"the {split} images in {self.root} have partners of the same name more than once: "
                                "name each pair differently")
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            raise UserError(f"{counted(len(alone), f'{split} image')} without a partner of the same name on the "
                            f"other side in {self.root}: {', '.join(alone[:3])}{more}; add or delete them, or take "
                            "data=unpaired_folder")

    def _load_halves(self, chosen: Listing) -> dict[str, Split]:
        """The splits of files that hold two images side by side."""
        if "train" not in chosen:
            raise UserError(f"data.root={self.root} has images for {' and '.join(sorted(chosen))} but none for train: "
                            "add a folder called train")
        files = {split: image_files(self.root, found[""]) for split, found in self._cut(chosen).items()}
        parts = self._open(files, halves=True)
        self.look_at(parts)
        splits, larger = {}, None
        for split, part in parts.items():
            whole = part.split(torch.arange(len(part.rows)), None, None)
            sides = _halves(whole)
            if split == "train" and self._crops:
                larger = self._ordered(sides)
                sides = _halves(self._whole(whole, files[split], part.rows, halves=True))
            splits[split] = self._ordered(sides)
        return self.pair_splits(splits, pairs=dict.fromkeys(splits, True), larger=larger)


def _halves(split: Split) -> list[Split]:
    """Both halves of images that lie side by side."""
    images = split.images
    if isinstance(images, Tensor):
        both: list[Tensor | Lazy] = list(images.chunk(2, dim=1))
    else:
        whole = Whole(images)
        both = [Half(whole, side) for side in (0, 1)]
    return [Split(half, digest=f"{split.digest} half {side}") for side, half in enumerate(both)]


def _agree(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether both sides hold the same names (sorted), each once."""
    return a == b and len(set(a)) == len(a)


def _check_sides(listing: Listing, root: Path) -> None:
    """Refuses a set that lacks a side or training images.

    Raises:
        UserError: says what is missing.
    """
    if "train" not in listing:
        found = f"it has images for {' and '.join(sorted(listing))} only" if listing else "it holds none of them"
        raise UserError(f"data.root={root} must hold the folders trainA and trainB with the images of the two sides, "
                        f"but {found}: rename your folders, or name another")
    for split, sides in listing.items():
        if len(sides) < 2:
            there, missing = ("A", "B") if "a" in sides else ("B", "A")
            raise UserError(f"data.root={root} has {split} images of side {there} but none of side {missing}: add "
                            f"them as {split}{missing}")
