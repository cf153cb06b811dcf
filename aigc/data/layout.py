"""What the folders of a set of images mean: splits, classes, or neither; anything else is left out or refused.

Splits are sibling folders `train` and `val` or `test` (or similar names): at the top, inside one folder that holds
everything, or inside each of several class folders. Held-out images never become training images because of what lies
beside their folders: loose pictures and other folders beside the splits are left out, and an ambiguous set is refused.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from aigc.errors import UserError
from aigc.files.names import split_of
from aigc.wording import counted, listed, shown

Folder = tuple[str, ...]


def shared_folders(names: Sequence[str], meaningful: Container[str]) -> int:
    """The number of leading folders that all files share, up to the first whose lower-case name is meaningful."""
    folders = [name.split("/")[:-1] for name in names]
    top = 0
    while all(len(f) > top for f in folders) and len({f[top] for f in folders}) == 1 and (
        folders[0][top].lower() not in meaningful
    ):
        top += 1
    return top


class _Splits:
    """The folder names that denote a split."""

    def __contains__(self, name: object) -> bool:
        return split_of(str(name)) is not None


@dataclass
class Layout:
    """Which images are in which split and class folder.

    Attributes:
        files: names by split; train is never empty.
        folders: the class folder of each file, or None where it is in none.
        left_out: names of files that do not belong, by reason.
        note: a remark on how names were interpreted; empty: none.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    folders: dict[str, list[str | None]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    note: str = ""

    def take(self, split: str, name: str, folder: str | None) -> None:
        """Adds an image to a split."""
        self.files.setdefault(split, []).append(name)
        self.folders.setdefault(split, []).append(folder)

    def leave(self, name: str, reason: str) -> None:
        """Leaves an image out."""
        self.left_out.setdefault(reason, []).append(name)


def lay_out(names: Sequence[str], root: str, *, labels: bool | str = "auto") -> Layout:
    """Interprets the folders of these images; `root` names the whole in errors, `labels` is ImageFolder's option.

    Raises:
        UserError: there is no folder to train on, or it is ambiguous which one is.
    """
    parts = [tuple(name.split("/")) for name in names]
    places: dict[Folder, dict[str, set[str]]] = {}
    for part in parts:
        for depth, folder in enumerate(part[:-1]):
            split = split_of(folder)
            if split is not None:
                places.setdefault(part[:depth], {}).setdefault(split, set()).add(folder)
    whole = [place for place, kinds in places.items() if "train" in kinds and len(kinds) > 1]
    if any(place[: len(other)] == other for place in whole for other in whole if other != place):
        raise _unclear(whole, root, "one inside the other")
    siblings = [place for place in places if whole and whole[0] and place and place[:-1] == whole[0][:-1]]
    if len(whole) == 1 and len(siblings) < 2:
        return _beside(parts, places, whole[0], root)
    if whole:
        return _in_classes(parts, places, whole, root)
    top = parts[0][: shared_folders(names, _Splits())]
    kinds = places.get(top, {})
    if "train" in kinds and _is_split(parts, top, kinds["train"], root, labels):
        return _beside(parts, places, top, root)
    everywhere = {kind for found in places.values() for kind in found}
    if kinds and "train" not in kinds:
        _refuse_held_out(parts, top, kinds, root)
    elif "train" in everywhere and len(everywhere) > 1:
        raise _unclear(sorted(places), root, "in different folders")
    layout = Layout()
    for part in parts:
        layout.take("train", "/".join(part), part[len(top)] if len(part) > len(top) + 1 else None)
    held = sorted("/".join([*place, folder]) for place, found in places.items() for kind, folders in found.items()
                  if kind != "train" for folder in folders)
    if held:
        what = "is a folder like any other" if len(held) == 1 else "are folders like any other"
        layout.note = f"{listed(held)} {what}, because there is no folder train beside it"
    return layout


def _class_of(part: Folder, depth: int) -> str | None:
    """The image's folder at a depth, if there is one."""
    return part[depth] if len(part) > depth + 1 else None


def _beside(parts: list[Folder], places: dict, place: Folder, root: str) -> Layout:
    """Splits in one folder; anything else in it, or loose above it, is left out."""
    _refuse_twice(places[place], place, root)
    layout, depth = Layout(), len(place)
    beside = "/".join([*place, *sorted(places[place].get("train", ()))])
    for part in parts:
        name = "/".join(part)
        split = split_of(part[depth]) if part[:depth] == place and len(part) > depth + 1 else None
        if split is not None:
            layout.take(split, name, _class_of(part, depth + 1))
        elif part[:-1] == place[: len(part) - 1]:
            layout.leave(name, f"loose pictures beside {shown(beside)}/")
        elif part[:depth] == place:
            layout.leave(name, f"pictures in other folders beside {shown(beside)}/")
        else:
            train = listed(sorted(places[place]["train"]))
            raise UserError(f"{shown(root)} holds {train} in {shown('/'.join(place))}, and other images beside that "
                            f"in {shown('/'.join(part[:-1]))}: name the one folder that you mean as data.path")
    return layout


def _in_classes(parts: list[Folder], places: dict, whole: list[Folder], root: str) -> Layout:
    """Class folders that each hold splits (cat/train, cat/test, dog/train, dog/test)."""
    above = whole[0][:-1]
    if not above and not whole[0]:
        raise _unclear(whole, root, "at several depths")
    if any(place[:-1] != above for place in whole):
        raise _unclear(whole, root, "at several depths")
    layout, depth = Layout(note="each class folder holds its own splits"), len(above)
    for place, kinds in places.items():
        if place[:-1] == above and place:
            _refuse_twice(kinds, place, root)
    for part in parts:
        name, mine = "/".join(part), part[:depth] == above
        split = split_of(part[depth + 1]) if mine and len(part) > depth + 2 else None
        if split is not None:
            layout.take(split, name, part[depth])
        elif part[:-1] == above[: len(part) - 1] or (mine and len(part) == depth + 2 and part[: depth + 1] in places):
            layout.leave(name, "loose pictures beside the folders of splits")
        elif mine and part[: depth + 1] in places:
            layout.leave(name, "pictures in other folders beside those of splits")
        else:
            raise UserError(f"{shown(root)} holds splits in {listed(['/'.join(p) for p in sorted(whole)])}, and other "
                            f"images in {shown('/'.join(part[:-1]))}: give each class folder the same splits, or name "
                            "one of them as data.path")
    return layout


def _is_split(parts: list[Folder], top: Folder, folders: set[str], root: str, labels: bool | str) -> bool:
    """Whether a folder `train` without another split beside it is a split rather than one class among others.

    Raises:
        UserError: it is ambiguous.
    """
    depth = len(top)
    others = sorted({part[depth] for part in parts if len(part) > depth + 1 and part[depth] not in folders})
    deep = any(len(part) > depth + 2 for part in parts if part[depth] in folders)
    if not others or deep:
        return True
    if labels is True:
        return False
    if len(others) > 1:
        name = sorted(folders)[0]
        raise UserError(f"{shown(root)} holds the folder {shown(name)} beside {listed(others)}: if it is the training "
                        f"set, name it as data.path, and if it is a class, set data.labels=true")
    return True


def _refuse_held_out(parts: list[Folder], top: Folder, kinds: dict[str, set[str]], root: str) -> None:
    """Refuses folders for validation or test without one for training, unless it is one class among others.

    Raises:
        UserError: says what was found.
    """
    held = sorted(folder for folders in kinds.values() for folder in folders)
    others = sorted({part[len(top)] for part in parts if len(part) > len(top) + 1} - set(held))
    loose = ["/".join(part) for part in parts if len(part) == len(top) + 1]
    if len(held) > 1 or not others or loose:
        beside = [listed(others)] * bool(others) + [counted(len(loose), "loose picture")] * bool(loose)
        rest = f" beside {' and '.join(beside)}" if beside else ""
        word = "folder" if len(held) == 1 else "folders"
        raise UserError(f"{shown(root)} has the {word} {listed(held)}{rest} but none called train: put the training "
                        "images into a folder train, or name one of them as data.path")


def _refuse_twice(kinds: dict[str, set[str]], place: Folder, root: str) -> None:
    """Refuses two folders that mean the same split.

    Raises:
        UserError: names them.
    """
    for split, folders in kinds.items():
        if len(folders) > 1:
            where = shown("/".join([root, *place]))
            raise UserError(f"{where} has the folders {listed(sorted(folders))}, which both mean {split}: rename or "
                            "remove one of them")


def _unclear(places: Sequence[Folder], root: str, how: str) -> UserError:
    names = ["/".join(place) or "its top" for place in sorted(places)]
    return UserError(f"{shown(root)} has folders called train and test (or similar) {how} ({listed(names)}): name the "
                     "one folder that you mean as data.path")
