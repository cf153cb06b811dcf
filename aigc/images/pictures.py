"""Picture files in, pictures of the same names and sizes out: any number of them, read ahead, in bounded memory."""

import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor

from aigc.data.decode import extremes
from aigc.data.values import Range, Ranges, ranges_for
from aigc.errors import UserError
from aigc.files.names import ENDINGS, is_hidden, is_image, zip_name
from aigc.files.written import ours
from aigc.networks import resample

WRITTEN: dict[str, dict[str, Any]] = {                     # endings that are kept; other pictures become PNGs
    ".png": {}, ".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"lossless": True}, ".bmp": {},
    ".tif": {}, ".tiff": {},
}
EXACT = (".png", ".tif", ".tiff")                          # those that keep every mode and depth
LARGEST = 2**30                                            # bytes of a picture in a zip, unpacked
READERS = 4                                                # threads that decode ahead
SMALLEST = 16                                              # pixels a side that a network gets; less is padded
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A picture file, or an entry of a zip; the name of its result below the output folder; its place among all."""

    source: Path                                           # in a zip: <zip>/<entry>, for people
    target: str
    number: int
    archive: zipfile.ZipFile | None = None
    entry: zipfile.ZipInfo | None = None

    def read(self) -> bytes:
        """The content of the file.

        Raises:
            ValueError: of an entry that is too large or protected; zipfile raises others.
        """
        if self.archive is None or self.entry is None:
            return self.source.read_bytes()
        if self.entry.flag_bits & 1:
            raise ValueError("protected by a password")
        if self.entry.file_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20:,} MiB once unpacked")
        return self.archive.read(self.entry)


def find_pictures(
    images: str, out: Path, form: str = "keep", *, left_out: dict[str, list[str]] | None = None
) -> list[Picture]:
    """The pictures that `images` means: a file, a folder with its subfolders, a zip likewise, or a glob (`**` too).

    Results keep the place below the folder, in the zip, or below the part of the glob before its first wildcard. What
    lies in `out` is no input, and neither are grids that this program drew.

    Args:
        images: as typed.
        out: where results go.
        form: `keep` (the same ending, where it can be written without much loss), `exact` (where no value changes) or
            `png`.
        left_out: takes the names of grids and the like, by the reason.

    Raises:
        UserError: nothing is found, or a result would overwrite a picture that was given.
    """
    path = Path(images).expanduser()
    if path.is_file() and (path.suffix.lower() == ".zip" or (not is_image(path.name) and zipfile.is_zipfile(path))):
        return _in_zip(path, form, left_out)
    root, found = _in_folders(path, images)
    own = out.resolve()
    sources = sorted(
        file for file in found
        if (file == path or file.suffix.lower() in ENDINGS) and not file.name.startswith(".")
        and file.is_file() and (file == path or not file.resolve().is_relative_to(own) or own == root.resolve())
    )
    if sources != [path]:
        names = {source.relative_to(root).as_posix(): source for source in sources}
        sources = [names[name] for name in without_drawings(root, list(names), left_out)]
    if not sources:
        raise UserError(f"images='{images}' holds no pictures ({' '.join(ENDINGS)}): name others")
    given = {source.resolve(): source for source in sources}
    targets = _targets([source.relative_to(root).as_posix() for source in sources], form)
    for target in targets:
        if (source := given.get((out / target).resolve())) is not None:
            raise UserError(f"out='{out}' would overwrite '{source}', which is an input: choose another folder")
    return [Picture(source, target, k) for k, (source, target) in enumerate(zip(sources, targets, strict=True))]


def _in_folders(path: Path, images: str) -> tuple[Path, list[Path]]:
    """The folder that places are relative to, and all files that a file, folder or glob means."""
    if path.is_dir():
        return path, [Path(f, name) for f, _, names in os.walk(path, followlinks=True) for name in names]
    if path.is_file():
        return path.parent, [path]
    parts = path.parts
    plain = next((k for k, part in enumerate(parts) if has_magic(part)), None)
    if plain is None:
        raise UserError(f"images='{images}' does not exist: give a picture, a folder, a zip or a glob such as "
                        "'a/*.png'")
    return Path(*parts[:plain]), [Path(name) for name in glob(str(path), recursive=True)]


def _in_zip(path: Path, form: str, left_out: dict[str, list[str]] | None) -> list[Picture]:
    """The pictures in a zip. Nothing is unpacked; names that lead out of it are taken as if they stayed inside."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"images='{path}' is not an intact zip ({error}): give a picture, a folder, a zip or a "
                        "glob") from error
    entries = {zip_name(entry.filename): entry for entry in archive.infolist() if not entry.is_dir()}
    names = sorted(name for name in entries if is_image(name) and not any(
        is_hidden(part) for part in name.split("/") if part not in (".", "..")))
    names = without_drawings(path, names, left_out)
    if not names:
        raise UserError(f"images='{path}' holds no pictures ({' '.join(ENDINGS)}): name another zip")
    if all(entries[name].flag_bits & 1 for name in names):
        raise UserError(f"images='{path}' is protected by a password: unpack it, and give the folder")
    inside = ["/".join(part for part in name.split("/") if part not in ("", ".", "..")) for name in names]
    return [Picture(path / place, target, k, archive, entries[name])
            for k, (name, place, target) in enumerate(zip(names, inside, _targets(inside, form), strict=True))]


def without_drawings(root: Path, names: list[str], left_out: dict[str, list[str]] | None = None) -> list[str]:
    """Names of image files in a folder or zip without grids and the like, which `left_out` takes by the reason."""
    drawn = ours(root, names, only_drawings=True)
    for name, reason in drawn.items():
        if left_out is not None:
            left_out.setdefault(reason, []).append(name)
    return [name for name in names if name not in drawn]


def _targets(places: list[str], form: str) -> list[str]:
    """Names for the results of pictures at these places, all different."""
    targets: dict[str, None] = {}
    for name in places:
        place = PurePosixPath(name)
        kept = form != "png" and place.suffix.lower() in (EXACT if form == "exact" else WRITTEN)
        target = place if kept else place.with_suffix(".png")
        while str(target) in targets:                      # a.png and a.gif in one folder
            target = target.with_name(f"{place.name}{target.suffix}")
            place = place.with_name(f"{place.name}_")
        targets[str(target)] = None
    return list(targets)


def ranges_of(pictures: Iterable[Picture], given: Range | None, known: Ranges) -> tuple[dict[str, Range], list[str]]:
    """Black and white of all pictures together, see `values.ranges_for`; those that cannot be read do not count."""
    found = []
    for future in ahead(lambda picture: extremes(picture.read()), pictures, 2 * READERS):
        if future.exception() is None and (one := future.result()) is not None:
            found.append(one)
    return ranges_for(found, given, known)


def reason_of(error: Exception) -> str:
    """Why a picture could not be read, in a line without objects' addresses."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0].split(" <")[0]


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


def at_side(edit: Callable[[Tensor], Tensor], images: Tensor, side: int | None) -> Tensor:
    """`edit` of images `(n, c, h, w)` in [-1, 1] at a shorter side of `side` pixels (None: their own), scaled back.

    Less than `SMALLEST` pixels are padded by repeating the edge, and cropped again. Results may be larger, by a whole
    factor.
    """
    h, w = images.shape[2:]
    scale = 1.0 if side is None else side / min(h, w)
    work = (max(1, round(h * scale)), max(1, round(w * scale)))
    given = images if work == (h, w) else resize(images, work)
    given = F.pad(given, (0, max(0, SMALLEST - work[1]), 0, max(0, SMALLEST - work[0])), mode="replicate")
    made = edit(given)
    factor = made.shape[2] // given.shape[2]
    made = made[:, :, : factor * work[0], : factor * work[1]]
    return made if work == (h, w) else resize(made, (factor * h, factor * w))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] at another size, antialiased bicubic."""
    return resample.resize(images, size).clamp(-1, 1)
