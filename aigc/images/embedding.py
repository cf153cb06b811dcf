"""Pictures as the vectors of a family that scores texts, each looked at once: what it has seen is in the cache.

A cache entry belongs to the weights, to the folder (file, zip or glob) that was given and to how its numbers are read;
a picture in it that has another size or time now is looked at again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.values import Ranges
from aigc.files.cache import keep_cached, load_cached
from aigc.images.pictures import Picture
from aigc.images.reading import in_batches
from aigc.wording import Report, silent

VERSION = 1                 # of the entries: a change makes new ones


def embedded(
    pictures: Sequence[Picture], family: Any, sha256: str, *, named: str, batch_size: int, ranges: Ranges,
    failures: dict[Path, str], progress: Report = silent,
) -> tuple[list[Picture], Tensor]:
    """The pictures that can be read, and their unit vectors `(n, embedding)` float32 on the CPU.

    Args:
        pictures: what to look at; other shapes than the family's are cropped around their middle.
        family: one that scores texts.
        sha256: of its weights.
        named: the folder, file or glob that holds the pictures, as typed.
        batch_size: pictures looked at together.
        ranges: black and white, by the kind of numbers in the files.
        failures: takes the reason for each picture that cannot be read.
        progress: told how many pictures are done.
    """
    place = str(Path(named).expanduser().absolute())
    key = hashlib.sha256(repr((VERSION, sha256, place, sorted(ranges.items()))).encode()).hexdigest()[:24]
    kept: Any = load_cached(f"embedded-{key}") or {"stamps": {}, "rows": {}, "vectors": torch.zeros(0)}
    stamps = {str(picture.source): _stamp(picture) for picture in pictures}
    known = {name: kept["vectors"][row] for name, row in kept["rows"].items()
             if name in stamps and kept["stamps"][name] == stamps[name]}
    fresh = [picture for picture in pictures if str(picture.source) not in known]
    progress(len(known), len(pictures), "")
    for batch in in_batches(fresh, family, batch_size=batch_size, ranges=ranges, failures=failures):
        images = torch.stack([image for _, image in batch]).float() / 127.5 - 1
        with torch.no_grad():
            vectors = family.embed_images(images).float().cpu()
        known.update({str(picture.source): vector for (picture, _), vector in zip(batch, vectors, strict=True)})
        progress(len(known) + len(failures), len(pictures), "")
    if fresh and known:
        names = sorted(known)
        keep_cached(f"embedded-{key}", {
            "stamps": {name: stamps[name] for name in names}, "rows": {name: row for row, name in enumerate(names)},
            "vectors": torch.stack([known[name] for name in names]),
        })
    readable = [picture for picture in pictures if str(picture.source) in known]
    vectors = [known[str(picture.source)] for picture in readable]
    return readable, torch.stack(vectors) if vectors else torch.zeros(0, int(family.hparams["embedding"]))


def _stamp(picture: Picture) -> list[int]:
    """What changes with a picture's content: size and time of a file, size and checksum of an entry of a zip."""
    if picture.entry is not None:
        return [picture.entry.file_size, picture.entry.CRC]
    status = picture.source.stat()
    return [status.st_size, status.st_mtime_ns]
