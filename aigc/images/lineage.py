"""The family tree of a folder of pictures, from their recipes: which was made of which, and how. No database.

A picture's parents are told in its recipe by SHA-256, so names, places and copies do not matter. Parents that are not
in the folder are shown by the name that they had.
"""

import base64
import html
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aigc.errors import UserError
from aigc.files.names import is_hidden, is_image
from aigc.images.output import sha256_of
from aigc.images.pictures import ahead, reason_of
from aigc.images.recipes import read_recipe
from aigc.wording import shown

THUMBNAIL = 72                                             # pixels of a picture's longer side in a drawing
MOST = 5000                                                # pictures in a drawing


@dataclass
class Member:
    """A picture of the family: its SHA-256, its name below the folder, its recipe; `here`: whether it is there."""

    sha256: str
    name: str
    recipe: dict[str, Any] | None = None
    here: bool = True
    children: list["Member"] = field(default_factory=list)
    path: Path | None = None

    def said(self) -> str:
        """How it was made, in a few words."""
        if not self.here:
            return "not here"
        if self.recipe is None:
            return "given"
        recipe = self.recipe
        words = [str(recipe.get("task") or recipe.get("verb") or "made"), f"by {recipe.get('run', '?')}"]
        words += [f"'{recipe[name]}'" for name in ("text", "label") if name in recipe]
        words += [f"{name} {recipe[name]}" for name in ("seed", "number") if name in recipe]
        return shown(" ".join(words))[:200]


def family_of(folder: Path) -> list[Member]:
    """The pictures of a folder and its subfolders that have no parent there, each with what was made of it.

    A picture of two parents is a child of both.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"images='{folder}' is no folder: give one that holds pictures")
    files = [Path(place, name) for place, folders, names in os.walk(folder) if not _hide(folders)
             for name in sorted(names) if is_image(name) and not is_hidden(name)]
    known: dict[str, Member] = {}
    for path, future in zip(files, ahead(_looked_at, files, 8), strict=True):
        if future.exception() is not None:
            continue
        sha256, recipe = future.result()
        if recipe is not None and "drawn" in recipe:       # a grid
            continue
        known.setdefault(sha256, Member(sha256, path.relative_to(folder).as_posix(), recipe, path=path))
    if not known:
        raise UserError(f"images='{folder}' holds no pictures: give another folder")
    return _joined(known)


def _hide(folders: list[str]) -> bool:
    """Leaves hidden folders out of a walk."""
    folders[:] = sorted(name for name in folders if not is_hidden(name))
    return False


def _looked_at(path: Path) -> tuple[str, dict[str, Any] | None]:
    return sha256_of(path), read_recipe(path)


def _joined(known: dict[str, Member]) -> list[Member]:
    """Members put below their parents; returns those without any, parents that are not here included."""
    roots = []
    for member in list(known.values()):
        above = [parent for parent in parents_in(member.recipe) if parent["sha256"] != member.sha256]
        for parent in above:
            other = known.setdefault(parent["sha256"], Member(parent["sha256"], parent["name"], here=False))
            other.children.append(member)
        if not above:
            roots.append(member)
    return sorted([*roots, *(member for member in known.values() if not member.here)], key=lambda one: one.name)


def parents_in(recipe: Mapping[str, Any] | None) -> Iterator[dict[str, str]]:
    """Name and SHA-256 of the parents in a recipe; what is odd there is none."""
    listed = recipe.get("parents") if recipe is not None else None
    for one in listed[:64] if isinstance(listed, list) else ():
        if isinstance(one, dict) and isinstance(one.get("sha256"), str) and isinstance(one.get("name"), str):
            yield one


def told(roots: Iterable[Member]) -> Iterator[tuple[Member, tuple[bool, ...], bool]]:
    """Members in the order of a tree: each with whether it and those above it are the last child, and whether again.

    What was already told is told without its children.
    """
    seen: set[str] = set()
    waiting: list[tuple[Member, tuple[bool, ...]]] = [(root, ()) for root in reversed(list(roots))]
    while waiting:
        member, lasts = waiting.pop()
        again = member.sha256 in seen
        seen.add(member.sha256)
        yield member, lasts, again
        children = [] if again else member.children
        for k in reversed(range(len(children))):
            waiting.append((children[k], (*lasts, k == len(children) - 1)))


def lines_of(roots: Iterable[Member]) -> list[str]:
    """The tree in lines of text."""
    lines = []
    for member, lasts, again in told(roots):
        branch = "".join("   " if last else "│  " for last in lasts[:-1])
        branch += "" if not lasts else "└─ " if lasts[-1] else "├─ "
        above = ", see above" if again and member.children else ""
        lines.append(f"{branch}{shown(member.name)}  ({member.said()}{above})")
    return lines


def page_of(roots: Iterable[Member], title: str) -> str:
    """The tree as an HTML page of its own, with pictures in it: it loads nothing."""
    parts, pictures = [], 0
    for member, lasts, again in told(roots):
        picture = None if again or pictures >= MOST else _thumbnail(member.path)
        pictures += picture is not None
        image = f'<img src="data:image/png;base64,{picture}" alt="">' if picture else "<span></span>"
        words = html.escape(member.said() + (", see above" if again and member.children else ""))
        parts.append(f'<div style="margin-left:{min(len(lasts), 40) * 3}em">{image}'
                     f"<b>{html.escape(shown(member.name))}</b><br><small>{words}</small></div>")
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}'
            f"</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n")


STYLE = ("body{font:14px sans-serif;margin:2em}div{min-height:76px;padding:4px 0 4px 1em;border-left:1px solid #bbb}"
         "img,span{width:72px;height:72px;object-fit:contain;float:left;margin-right:.8em;background:#eee;"
         "image-rendering:pixelated}small{color:#555}")


def _thumbnail(path: Path | None) -> str | None:
    """A small PNG of a picture in base64; None: it cannot be read."""
    from PIL import Image, ImageOps

    if path is None:
        return None
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            image = ImageOps.exif_transpose(opened).convert("RGBA")
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, format="PNG")
    except Exception as error:                             # Pillow's decoders raise what they like
        reason_of(error)
        return None
    return base64.b64encode(file.getvalue()).decode()
