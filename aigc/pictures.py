"""Picture files in, pictures of the same names and sizes out: any number of them, read ahead, in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.data.decode import decode, header
from aigc.data.names import ENDINGS
from aigc.errors import UserError
from aigc.grids import save_grid
from aigc.metrics.features import to_uint8

WRITTEN: dict[str, dict[str, Any]] = {                     # endings that are kept; other pictures become PNGs
    ".png": {}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"lossless": True}, ".bmp": {},
    ".tif": {}, ".tiff": {},
}
READERS = 4                                                # threads that decode ahead
SMALLEST = 16                                              # pixels a side that a network gets; less is padded
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A picture file, where its result goes, and its place among all of them."""

    source: Path
    target: Path
    number: int


def find_pictures(images: str, out: Path, form: str = "keep") -> list[Picture]:
    """The pictures that `images` means: a file, a folder with its subfolders, or a glob (`**` too).

    Results keep the place below the folder, or below the part of the glob before its first wildcard. `form` is `keep`
    (the same ending, where it can be written without much loss) or `png`. What lies in `out` is no input.

    Raises:
        UserError: nothing is found, or a result would overwrite a picture that was given.
    """
    path = Path(images).expanduser()
    if path.is_dir():
        root, found = path, [Path(f, name) for f, _, names in os.walk(path, followlinks=True) for name in names]
    elif path.is_file():
        root, found = path.parent, [path]
    else:
        parts = path.parts
        plain = next((k for k, part in enumerate(parts) if has_magic(part)), None)
        if plain is None:
            raise UserError(f"images='{images}' does not exist: give a picture, a folder or a glob such as 'a/*.png'")
        root, found = Path(*parts[:plain]), [Path(name) for name in glob(str(path), recursive=True)]
    own = out.resolve()
    sources = sorted(
        file for file in found
        if (file == path or file.suffix.lower() in ENDINGS) and not file.name.startswith(".")
        and file.is_file() and (file == path or not file.resolve().is_relative_to(own) or own == root.resolve())
    )
    if not sources:
        raise UserError(f"images='{images}' holds no pictures ({' '.join(ENDINGS)}): name others")
    pictures, taken, given = [], set(), {source.resolve() for source in sources}
    for number, source in enumerate(sources):
        place = source.relative_to(root)
        kept = form == "keep" and place.suffix.lower() in WRITTEN
        target = out / (place if kept else place.with_suffix(".png"))
        while target in taken:                             # a.png and a.gif in one folder
            target = target.with_name(f"{place.name}{target.suffix}")
            place = place.with_name(f"{place.name}_")
        if target.resolve() in given:
            raise UserError(f"out='{out}' would overwrite '{source}', which is an input: choose another folder")
        taken.add(target)
        pictures.append(Picture(source, target, number))
    return pictures


def read(picture: Picture, channels: int) -> Tensor:
    """The picture as displayed, uint8 `(channels, h, w)`: upright, on white where transparent, grey or colour.

    Raises:
        ValueError: it cannot be read; says why.
    """
    try:
        data = picture.source.read_bytes()
        size, _ = header(data)
        return decode(data, size=size, channels=channels)
    except Exception as error:                             # Pillow's decoders raise what they like
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].split(" <")[0]
        raise ValueError(reason) from error


def write(image: Tensor, path: Path) -> None:
    """Writes uint8 `(c, h, w)` by the ending of `path`, to a temporary name first; makes the folder.

    Raises:
        UserError: the folder does not take it.
    """
    from PIL import Image

    array = image.permute(1, 2, 0).numpy()
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.ascontiguousarray(array[..., 0] if len(image) == 1 else array))
        ending = path.suffix.lower()
        picture.save(temporary, format=Image.registered_extensions()[ending], **WRITTEN[ending])
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"'{path}' could not be written ({reason}): choose another out=, or make room") from error
    finally:
        with suppress(OSError):                            # where the folder could not be made
            temporary.unlink()


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Future[Result]]:
    """`function` of every item, in order, up to `depth` of them worked on in threads before they are asked for."""
    rest = iter(items)
    with ThreadPoolExecutor(READERS) as pool:
        waiting = deque(pool.submit(function, item) for item in islice(rest, depth))
        try:
            while waiting:
                done = waiting.popleft()
                done.exception()                           # waits
                waiting.extend(pool.submit(function, item) for item in islice(rest, 1))
                yield done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def edited(
    pictures: list[Picture],
    edit: Callable[[Tensor, list[int]], Tensor],
    *,
    channels: int,
    batch_size: int,
    pixels: int,
    failures: dict[Path, str],
) -> Iterator[tuple[Picture, Tensor, Tensor]]:
    """Reads pictures, edits those of one size together, and yields (picture, before, after), uint8 `(c, h, w)`.

    A picture that cannot be read, or is too large for the memory, goes to `failures` and costs no other.

    Args:
        pictures: what to read.
        edit: from images `(n, c, h, w)` in [-1, 1] and their numbers to images of the same size.
        channels: 1 or 3, what `edit` wants.
        batch_size: pictures edited together, at most.
        pixels: of all pictures of a batch together, at most; a single larger picture is a batch of its own.
        failures: takes the reason for each picture that failed.
    """
    groups: dict[tuple[int, ...], list[tuple[Picture, Tensor]]] = {}

    def flush(shape: tuple[int, ...]) -> Iterator[tuple[Picture, Tensor, Tensor]]:
        group = groups.pop(shape)
        before = torch.stack([image for _, image in group])
        try:
            after = to_uint8(edit(before.float() / 127.5 - 1, [picture.number for picture, _ in group])).cpu()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            for picture, _ in group:
                failures[picture.source] = f"{shape[2]} x {shape[1]} pixels do not fit into memory, give side="
            return
        for (picture, image), made in zip(group, after, strict=True):
            yield picture, image, made

    def full(shape: tuple[int, ...], n: int) -> bool:
        return n >= batch_size or n * shape[1] * shape[2] >= pixels

    for picture, future in zip(pictures, ahead(lambda p: read(p, channels), pictures, 2 * READERS), strict=True):
        try:
            image = future.result()
        except ValueError as error:
            failures[picture.source] = str(error)
            continue
        shape = tuple(image.shape)
        groups.setdefault(shape, []).append((picture, image))
        if full(shape, len(groups[shape])):
            yield from flush(shape)
        held = {s: len(group) for s, group in groups.items()}
        if sum(held.values()) >= 4 * batch_size or sum(n * s[1] * s[2] for s, n in held.items()) >= 4 * pixels:
            yield from flush(max(held, key=lambda s: held[s] * s[1] * s[2]))  # many sizes: none waits for ever
    for shape in list(groups):
        yield from flush(shape)


def at_side(edit: Callable[[Tensor], Tensor], images: Tensor, side: int | None) -> Tensor:
    """`edit` of images `(n, c, h, w)` in [-1, 1] at a shorter side of `side` pixels (None: their own), scaled back.

    Less than `SMALLEST` pixels are padded by repeating the edge, and cropped again.
    """
    h, w = images.shape[2:]
    scale = 1.0 if side is None else side / min(h, w)
    work = (max(1, round(h * scale)), max(1, round(w * scale)))
    given = images if work == (h, w) else resize(images, work)
    given = F.pad(given, (0, max(0, SMALLEST - work[1]), 0, max(0, SMALLEST - work[0])), mode="replicate")
    made = edit(given)[:, :, : work[0], : work[1]]
    return made if work == (h, w) else resize(made, (h, w))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] at another size, antialiased bicubic."""
    return F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)


def save_comparison(pairs: list[tuple[Tensor, Tensor]], path: Path, cell: int = 128) -> None:
    """A picture of (before, after) pairs, uint8 `(c, h, w)`, each fitted into squares of `cell` pixels, two a row."""

    def fitted(image: Any) -> Tensor:
        h, w = image.shape[1:]
        scale = cell / max(h, w)
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        small = resize(image[None].float() / 127.5 - 1, size)
        top, left = (cell - size[0]) // 2, (cell - size[1]) // 2
        return F.pad(small, (left, cell - size[1] - left, top, cell - size[0] - top), value=1.0)[0]

    cells = [fitted(image) for pair in pairs for image in pair]
    save_grid(torch.stack(cells), path, columns=4 if len(pairs) > 1 else 2, scale=1)
