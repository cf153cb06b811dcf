"""Which files of a folder or zip belong to which side, and which two of them form a pair.

Sides are recognized, in this order, by folders called A and B (trainA, train/A, A/train, A), by two folders of any
names, by file names that end in _A and _B, or as the two halves of each file, which then holds both images.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from aigc.data.layout import shared_folders
from aigc.errors import UserError
from aigc.files.names import SPLIT_NAMES, natural, split_of
from aigc.wording import counted, listed, shown

LAYOUTS = ("auto", "folders", "names", "halves")
SIDES = ("a", "b")
Listing = dict[str, dict[str, list[str]]]  # by split, then by side: file names
_SIDE = re.compile(rf"(?:({'|'.join(SPLIT_NAMES)})[ _-]?)?([ab])", re.IGNORECASE)
_SUFFIX = re.compile(r"(.+)[ _.-]([ab])", re.IGNORECASE)
WAYS = ("give each pair as 1_A.png and 1_B.png in one folder, as equal file names in two folders A and B, or side by "
        "side in one file twice as wide as high")


class _Meaningful:
    """Folder names that say which split or which side an image belongs to."""

    def __contains__(self, name: object) -> bool:
        return split_of(str(name)) is not None or _SIDE.fullmatch(str(name)) is not None


@dataclass
class PairLayout:
    """Which files are on which side.

    Attributes:
        kind: `folders`, `names` (of files in one folder) or `halves` (both images in one file).
        files: names by split and side; with halves the only side is "".
        sides: names of side A and side B in messages: "photos/" and "maps/".
        left_out: names of files that belong to neither, by reason.
    """

    kind: str
    files: Listing
    sides: tuple[str, str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def by_side(names: Sequence[str]) -> Listing:
    """Files by split and side, from folders like trainA, train/A, A/train or A alone (which is all for training).

    Files outside such folders are left out.
    """
    top = shared_folders(names, _Meaningful())
    found: Listing = {}
    for name in names:
        split, side = None, None
        for folder in name.split("/")[top:-1][:2]:
            match = _SIDE.fullmatch(folder)
            if match and side is None:
                split, side = SPLIT_NAMES[match[1].lower()] if match[1] else split, match[2].lower()
            elif split is None and split_of(folder):
                split = split_of(folder)
            else:
                break
        if side is not None:
            found.setdefault(split or "train", {}).setdefault(side, []).append(name)
    return found


def partner_name(name: str, side: str) -> str:
    """The name that both images of a pair share: the file's, without suffix and side (`12` for `12_A.jpg`)."""
    stem = PurePosixPath(name).stem
    match = _SUFFIX.fullmatch(stem)
    return match[1] if match and match[2].lower() == side else stem


def lay_out_sides(names: Sequence[str], root: str, *, layout: str = "auto", paired: bool = True) -> PairLayout:
    """The sides of these image files.

    Args:
        names: of the files, relative, with forward slashes.
        root: the name of the whole in messages.
        layout: one of LAYOUTS; auto: the first that fits the files.
        paired: whether the images form pairs; if not, only folders are considered.

    Raises:
        UserError: the files do not fit the layout.
    """
    if layout in ("auto", "folders"):
        if (files := by_side(names)) or not paired:
            found = PairLayout("folders", files, ("A", "B")) if files else _two_folders(names, alike=False)
        else:
            found = _two_folders(names, alike=layout == "auto")
        if found is not None:
            return _without_strays(found, names)
        if not paired:
            return PairLayout("folders", {}, ("A", "B"))
        if layout == "folders":
            raise UserError(f"data.layout=folders, but {root} does not hold two folders of images: {WAYS}")
    if layout in ("auto", "names"):
        named = _by_names(names, root, told=layout == "names")
        if named is not None:
            return named
    return PairLayout("halves", _by_split(names), ("left half", "right half"))


def _without_strays(found: PairLayout, names: Sequence[str]) -> PairLayout:
    taken = {name for sides in found.files.values() for part in sides.values() for name in part}
    if strays := [name for name in names if name not in taken]:
        found.left_out["pictures outside the folders of both sides"] = strays
    return found


def _two_folders(names: Sequence[str], *, alike: bool) -> PairLayout | None:
    """Two folders of any names, sorted by name; with `alike`, only if most of their files have equal names.""" 
    top = shared_folders(names, _Meaningful())
    placed = []
    for name in names:
        folders = name.split("/")[top:-1]
        split = next((split_of(folder) for folder in folders[:2] if split_of(folder)), None)
        own = [folder for folder in folders if not split_of(folder)]
        if own:
            placed.append((split or "train", own[0], name))
    sides = sorted({side for _, side, _ in placed}, key=natural)
    if len(sides) != 2:
        return None
    files: Listing = {}
    for split, side, name in placed:
        files.setdefault(split, {}).setdefault(SIDES[sides.index(side)], []).append(name)
    keys = [{(split, partner_name(name, side)) for split, both in files.items() for name in both.get(side, ())}
            for side in SIDES]
    if alike and len(keys[0] & keys[1]) < 0.5 * min(map(len, keys)):
        return None
    return PairLayout("folders", files, (f"{shown(sides[0])}/", f"{shown(sides[1])}/"))


def _by_names(names: Sequence[str], root: str, *, told: bool) -> PairLayout | None:
    """Pairs of files in one folder whose names end in _A and _B; None if most do not and the layout was not `told`.

    Raises:
        UserError: images have no partner.
    """
    partners: dict[str, dict[str, str]] = {}
    alone = []
    for name in names:
        match = _SUFFIX.fullmatch(PurePosixPath(name).stem)
        both = partners.setdefault(str(PurePosixPath(name).parent / match[1]), {}) if match else {}
        if match is None or match[2].lower() in both:
            alone.append(name)
        else:
            both[match[2].lower()] = name
    whole = [both for both in partners.values() if len(both) == 2]
    alone += [name for both in partners.values() if len(both) == 1 for name in both.values()]
    if not told and 4 * len(whole) < len(names):
        return None
    if alone:
        raise UserError(f"{counted(len(alone), 'image')} in {root} without a partner, whose name differs only "
                        f"in _A or _B: {listed(sorted(alone))}; add or delete them")
    of = _by_split(names)
    files = {split: {side: [both[side] for both in whole if both["a"] in set(found[""])] for side in SIDES}
             for split, found in of.items()}
    return PairLayout("names", files, ("..._A", "..._B"))


def _by_split(names: Sequence[str]) -> Listing:
    """Files by split, which the first folder that they do not share denotes; all on one side."""
    top = shared_folders(names, _Meaningful())
    found: Listing = {}
    for name in names:
        folders = name.split("/")[top:-1]
        split = split_of(folders[0]) if folders else None
        found.setdefault(split or "train", {}).setdefault("", []).append(name)
    return found
