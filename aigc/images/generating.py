"""Images of a trained family, one at a time, and files of them."""

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import IO, Any

import numpy as np
import torch

from aigc.images.grids import TONE, grid_png, to_uint8
from aigc.images.output import Output
from aigc.images.recipes import as_json, beside, pixels_of, png
from aigc.models.family import Family
from aigc.models.guidance import Guidance
from aigc.noise import mix
from aigc.wording import Report, silent

GRID = 64  # images shown in grid.png
ROWS = 16  # most labels with a row each; with more, each image has its label above


def sample_uint8(
    family: Family, n: int, *, seed: int, condition: Any = None, batch_size: int = 64, first: int = 0,
    progress: Report = silent, guides: Guidance | None = None, **options: Any,
) -> Iterator[np.ndarray]:
    """Yields images `(h, w, c)` uint8, the k-th from seed mix(seed, first + k); tells `progress` how many are made.

    `guides`: guidance by other runs, for these n images.
    """
    progress(0, n, "")
    for start in range(0, n, batch_size):
        stop = min(n, start + batch_size)
        given = None if condition is None else condition[start:stop]
        seeds = [mix(seed, first + k) for k in range(start, stop)]
        how = guides.of(range(start, stop), options) if guides is not None else options
        made = family.sample(stop - start, condition=given, seeds=seeds, **how)
        progress(stop, n, "")
        yield from to_uint8(made).permute(0, 2, 3, 1).cpu().numpy()


def write(
    images: Iterator[np.ndarray], out: Output, form: str, n: int, *, recipe: Callable[[int], dict[str, Any]],
    asked: Sequence[dict[str, Any]] | None = None, found: Callable[[int], dict[str, Any]] | None = None,
    first: int = 0,
) -> None:
    """Writes n images `(h, w, c)` one by one, so an interruption loses none: PNGs or images.npy, and grid.png.

    Args:
        images: the images.
        out: the folder to write to.
        form: png or npy.
        n: number of images.
        recipe: how the image of a number was made; each PNG holds it with number, label and text, see `recipes`. For
            images.npy, that of number -1 is that of all, beside it.
        asked: `label` or `text` of each image: shown in the grid; texts are written to prompts.txt.
        found: what is known of image k once it is made, for its recipe.
        first: number of the first image.

    Raises:
        RunError: the images cannot be written.
    """
    start = next(images)                                   # wrong options fail here, before anything is written
    shown = torch.zeros(min(n, GRID), start.shape[-1], *start.shape[:2], dtype=torch.uint8)
    words = [str(next(iter(one.values()))) for one in asked or []]

    def each() -> Iterator[tuple[int, np.ndarray]]:
        for k, image in enumerate(chain([start], images)):
            if k < GRID:
                shown[k] = torch.from_numpy(image).permute(2, 0, 1)
            yield k, image

    if asked and "text" in asked[0]:
        out.write("prompts.txt", "".join(f"{prompt}\n" for prompt in words).encode(), kind="list of prompts")
    if form == "npy":
        with out.file("images.npy", keep=True, kind="array") as file:
            write_array(file, (image for _, image in each()), n)
        out.write(beside("images.npy"), as_json(recipe(-1)), kind="recipe")
    else:
        for k, image in each():
            facts = {"number": first + k, **(asked[k] if asked else {}), **(found(k) if found is not None else {})}
            name = f"{first + k:0{max(5, len(str(first + n - 1)))}}.png"
            out.write(name, png(image, {**recipe(first + k), **facts, "pixels": pixels_of(image)}), kind="image",
                      **facts)
    out.write("grid.png", overview(shown, words[: len(shown)], rows=in_rows(asked)), kind="grid")


def in_rows(asked: Sequence[dict[str, Any]] | None) -> bool:
    """Whether the grid has a row per label or text: for texts, and for a few labels."""
    return asked is not None and ("text" in asked[0] or len({one["label"] for one in asked[:GRID]}) <= ROWS)


def write_array(file: IO[bytes], images: Iterator[np.ndarray], n: int) -> None:
    """Writes n images `(h, w, c)` uint8 one by one to a .npy file of `(n, h, w, c)`.

    If interrupted, the file is valid and holds the images until then.
    """
    done = 0

    def header(shape: tuple[int, ...]) -> None:
        file.seek(0)
        facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, facts)  # type: ignore[no-untyped-call]

    try:
        for image in images:
            if not done:
                header((n, *image.shape))                  # has space for the digits of any number of images
                set_aside(file, n * image.nbytes)
            file.write(np.ascontiguousarray(image).tobytes())
            done += 1
    finally:
        if 0 < done < n:
            file.truncate()
            header((done, *image.shape))


def set_aside(file: IO[bytes], size: int) -> None:
    """Reserves `size` more bytes on the disk, so that a full disk is noticed now and not after hours.

    Raises:
        OSError: there is not enough space.
    """
    try:
        os.posix_fallocate(file.fileno(), file.tell(), size)
    except OSError as error:                               # not every file system supports it
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def overview(images: torch.Tensor, words: Sequence[str], *, rows: bool) -> bytes:
    """A grid of images `(n, c, h, w)` uint8 as a PNG.

    With `rows`, a row per different word, with the word above it; else each image has its word above it, if any.
    """
    if not words:
        return grid_png(images)
    if not rows:
        return grid_png(images, words=words)
    places = {word: [k for k, own in enumerate(words) if own == word] for word in dict.fromkeys(words)}
    if len(places) == 1:
        side = math.ceil(math.sqrt(len(images)))
        return grid_png(images, columns=side, captions=[words[0], *[""] * (math.ceil(len(images) / side) - 1)])
    columns = max(map(len, places.values()))
    blank = torch.full_like(images[0], TONE)
    cells = [images[found[k]] if k < len(found) else blank for found in places.values() for k in range(columns)]
    return grid_png(torch.stack(cells), columns=columns, captions=list(places))
