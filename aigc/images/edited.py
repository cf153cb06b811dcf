"""Pictures worked on by a task: opened, edited together where their sizes agree, and written with their recipes."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.data.decode import decode, header
from aigc.data.values import Ranges
from aigc.images.exact import Exact, encode, read_exact
from aigc.images.grids import grid_png, to_uint8
from aigc.images.masks import Masks, Padding, cut, feathered, grown, part_around
from aigc.images.output import Output
from aigc.images.pictures import READERS, Picture, ahead, reason_of, resize
from aigc.images.recipes import as_json, beside, pixels_of
from aigc.wording import Report, silent

COMPARISON, SHOWN = "comparison.png", 16                   # and the pictures in it

Edit = Callable[[Tensor, list[int], Tensor | None], Tensor]


@dataclass(frozen=True)
class Opened:
    """A picture as a task gets it, and how the result becomes a picture again.

    Attributes:
        picture: where it is, and its number.
        before: uint8 `(c, h, w)`: the whole picture, for people.
        image: uint8 `(c, h, w)`: what the task gets.
        mask: bool `(1, h, w)`: what is to change there; None: all of it.
        finish: from the task's result `(c, h, w)` in [-1, 1] to the picture.
        parents: name and SHA-256 of the files that it is made from.
        files: their paths by role, for the record.
    """

    picture: Picture
    before: Tensor
    image: Tensor
    mask: Tensor | None
    finish: Callable[[Tensor], Exact]
    parents: list[dict[str, str]]
    files: dict[str, str]


@dataclass(frozen=True)
class Done:
    """An edited picture; `place` is where it stood among those that were edited together, `size` their number."""

    opened: Opened
    after: Exact
    place: int
    size: int


def open_whole(picture: Picture, *, channels: int, ranges: Ranges) -> Opened:
    """A picture all of which changes, as displayed: upright, on white where transparent, grey or colour.

    Raises:
        ValueError: it cannot be read; says why.
    """
    data = _content(picture)
    image = _decoded(data, channels, ranges)
    return Opened(picture, image, image, None, _plain, [_parent(picture.source.name, data)],
                  {"source": str(picture.source)})


def _plain(made: Tensor) -> Exact:
    return Exact(to_uint8(made[None])[0].permute(1, 2, 0).cpu().numpy(), (0.0, 255.0))


def open_masked(
    picture: Picture, *, channels: int, ranges: Ranges, change: Masks | Padding, size: tuple[int, int],
    side: int | None,
) -> Opened:
    """A picture part of which changes; the task gets what is around that, at the `size` of a model.

    Every value outside the mask stays as it is.

    Args:
        picture: where it is.
        channels: 1 or 3.
        ranges: black and white, by the kind of numbers.
        change: the masks, or what is added around the picture.
        size: (height, width) of the model.
        side: see `part_around`.

    Raises:
        ValueError: it or its mask cannot be read, or they do not fit together; says why.
    """
    data = _content(picture)
    parents, files = [_parent(picture.source.name, data)], {"source": str(picture.source)}
    try:
        exact, before = read_exact(data, ranges), _decoded(data, channels, ranges)
    except Exception as error:                             # Pillow's decoders raise what they like
        raise ValueError(reason_of(error)) from error
    if isinstance(change, Padding):
        added = change.pixels(*exact.values.shape[:2])
        exact = exact.enlarged(**added)
        sides = (added["left"], added["right"], added["top"], added["bottom"])
        shown = F.pad(before[None].float(), sides, mode="replicate")[0].byte()
        mask, feather = F.pad(torch.zeros(before.shape[1:], dtype=torch.bool), sides, value=True), 0
    else:
        mask, shown = _mask_for(picture, exact, before, change, parents, files), before
        feather = change.feather
    part = part_around(mask, size, side)
    image, inner = cut(shown, part), cut(mask[None], part)
    if (part.height, part.width) != size:                  # what changes has left traces in its neighbours
        image = to_uint8(resize(image[None].float() / 127.5 - 1, size))[0]
        inner = grown(F.interpolate(inner[None].float(), size, mode="area")[0, 0] > 0, 1)[None]
    weight = cut(feathered(mask, feather)[None], part)[0]

    def finish(made: Tensor) -> Exact:
        if (part.height, part.width) != size:
            made = resize(made[None], (part.height, part.width))[0]
        h, w = mask.shape
        rows = slice(max(0, -part.top), min(part.height, h - part.top))
        columns = slice(max(0, -part.left), min(part.width, w - part.left))
        values = made[:, rows, columns].permute(1, 2, 0).float().cpu().numpy()
        return exact.changed(values, weight[rows, columns].double().numpy(), (max(0, part.top), max(0, part.left)))

    return Opened(picture, before, image, inner, finish, parents, files)


def _mask_for(
    picture: Picture, exact: Exact, shown: Tensor, masks: Masks, parents: list[dict[str, str]],
    files: dict[str, str],
) -> Tensor:
    """The mask of a picture; its file is entered among the parents."""
    file = masks.file_for(picture.target)
    if file is None:
        return masks.mask_of(exact, None, shown)
    try:
        content = file.read_bytes()
        parents.append(_parent(file.name, content) | {"role": "mask"})
        files["mask"] = str(file)
        return masks.mask_of(exact, content, shown)
    except Exception as error:
        if isinstance(error, ValueError) and "mask" in str(error):
            raise
        raise ValueError(f"its mask '{file}' cannot be read ({reason_of(error)})") from error


def _content(picture: Picture) -> bytes:
    try:
        return picture.read()
    except Exception as error:                             # zipfile raises what it likes
        raise ValueError(reason_of(error)) from error


def _decoded(data: bytes, channels: int, ranges: Ranges) -> Tensor:
    try:
        size, _ = header(data)
        return decode(data, size=size, channels=channels, limits=ranges)
    except Exception as error:                             # Pillow's decoders raise what they like
        raise ValueError(reason_of(error)) from error


def _parent(name: str, data: bytes) -> dict[str, str]:
    return {"name": name, "sha256": hashlib.sha256(data).hexdigest()}


def edited(
    pictures: list[Picture],
    edit: Edit,
    *,
    channels: int,
    batch_size: int,
    pixels: int,
    failures: dict[Path, str],
    ranges: Ranges = MappingProxyType({}),
    opening: Callable[..., Opened] = open_whole,
) -> Iterator[Done]:
    """Reads pictures, edits those of one size together, and yields what they become.

    A picture that cannot be read, or is too large for the memory, goes to `failures` and costs no other.

    Args:
        pictures: what to read.
        edit: from images `(n, c, h, w)` in [-1, 1], their numbers and their masks `(n, 1, h, w)` or None to images of
            the same size, or larger ones.
        channels: 1 or 3, what `edit` wants.
        batch_size: pictures edited together, at most.
        pixels: of all pictures of a batch together, at most; a single larger picture is a batch of its own.
        failures: takes the reason for each picture that failed.
        ranges: black and white, by the kind of numbers in the files.
        opening: opens a picture, `open_whole` or `open_masked`.
    """
    groups: dict[tuple[int, ...], list[Opened]] = {}

    def flush(shape: tuple[int, ...]) -> Iterator[Done]:
        group = groups.pop(shape)
        images = torch.stack([one.image for one in group]).float() / 127.5 - 1
        masks = None if group[0].mask is None else torch.stack([one.mask for one in group if one.mask is not None])
        try:
            after = edit(images, [one.picture.number for one in group], masks).cpu()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            for one in group:
                failures[one.picture.source] = (f"{shape[2]} x {shape[1]} pixels do not fit into memory, give side=")
            return
        for place, (one, made) in enumerate(zip(group, after, strict=True)):
            yield Done(one, one.finish(made), place, len(group))

    def held(shape: tuple[int, ...]) -> int:
        return sum(max(one.before.numel(), one.image.numel()) // channels for one in groups[shape])

    reading = ahead(partial(opening, channels=channels, ranges=ranges), pictures, 2 * READERS)
    for picture, future in zip(pictures, reading, strict=True):
        try:
            one = future.result()
        except ValueError as error:
            failures[picture.source] = str(error)
            continue
        shape = tuple(one.image.shape)
        groups.setdefault(shape, []).append(one)
        if len(groups[shape]) >= batch_size or held(shape) >= pixels:
            yield from flush(shape)
        if sum(map(len, groups.values())) >= 4 * batch_size or sum(map(held, groups)) >= 4 * pixels:
            yield from flush(max(groups, key=held))        # many sizes: none waits for ever
    for shape in list(groups):
        yield from flush(shape)


def write_edited(
    pictures: list[Picture], edit: Edit, output: Output, *, recipe: Mapping[str, Any], progress: Report = silent,
    failures: dict[Path, str], among: tuple[int, int] | None = None, **options: Any,
) -> list[str]:
    """Writes what `edit` makes of each picture, and `comparison.png`: the first ones beside their results.

    Args:
        pictures: what to read.
        edit: see `edited`.
        output: the folder to write to.
        recipe: what the recipes of all pictures share; PNGs contain theirs, other files have it beside them.
        progress: told how many pictures are written.
        failures: see `edited`.
        among: place and number of copies, where `edit` puts each picture among copies (`editing.tasks.among_copies`).
        **options: those of `edited`.

    Returns:
        SHA-256 of the values of each picture that was written.

    Raises:
        RunError: the folder does not take them.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    made: list[str] = []
    progress(0, len(pictures), "")
    for done in edited(pictures, edit, failures=failures, **options):
        one, picture = done.opened, done.opened.picture
        pixels = pixels_of(done.after.values)
        place, size = among or (done.place, done.size)
        own = {"number": picture.number, "parents": one.parents, "pixels": pixels,
               "batch": {"start": place, "size": size, "at_once": options["batch_size"]}}
        whole = {**recipe, **own}
        try:
            content = encode(done.after.values, picture.target, whole, bilevel=done.after.bilevel)
        except (ValueError, OSError, KeyError) as error:
            failures[picture.source] = str(error) or type(error).__name__
            continue
        output.write(picture.target, content, kind="image", number=picture.number, **one.files)
        if PurePosixPath(picture.target).suffix.lower() != ".png":
            output.write(beside(picture.target), as_json(whole), kind="recipe")
        made.append(pixels)
        if len(pairs) < SHOWN:
            pairs.append((one.before, looked_at(done.after, options["channels"])))
        progress(len(made), len(pictures), "")
    if pairs and COMPARISON not in {picture.target for picture in pictures}:
        output.write(COMPARISON, comparison(pairs), kind="comparison")
    return made


def looked_at(picture: Exact, channels: int) -> Tensor:
    """A picture at 8 bits, uint8 `(channels, h, w)`, without its alpha: it is opaque where it has changed."""
    black, white = picture.limits
    colour = (picture.values[..., : picture.colours].astype(np.float64) - black) * (255 / (white - black))
    shown = torch.from_numpy(np.clip(np.rint(colour), 0, 255).astype(np.uint8)).permute(2, 0, 1)
    return shown if len(shown) == channels else shown[:1].expand(channels, -1, -1) if len(shown) == 1 else \
        shown.float().mean(0, keepdim=True).byte()


def comparison(pairs: list[tuple[Tensor, Tensor]], cell: int = 128) -> bytes:
    """A PNG of (before, after) pairs, uint8 `(c, h, w)`, each fitted into squares of `cell` pixels, two a row."""

    def fitted(image: Any) -> Tensor:
        h, w = image.shape[1:]
        scale = cell / max(h, w)
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        small = resize(image[None].float() / 127.5 - 1, size)
        top, left = (cell - size[0]) // 2, (cell - size[1]) // 2
        return F.pad(small, (left, cell - size[1] - left, top, cell - size[0] - top), value=1.0)[0]

    cells = [fitted(image) for pair in pairs for image in pair]
    return grid_png(torch.stack(cells), columns=4 if len(pairs) > 1 else 2, scale=1)
