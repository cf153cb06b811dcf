"""What fits what: the pictures that fit a text or another picture best, and the texts that fit a picture best.

Everything here works on the unit vectors of a family that scores texts (`images.embedding`).
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.data.decode import decode, header
from aigc.data.values import Ranges
from aigc.images.grids import TONE, grid_png
from aigc.images.pictures import Picture

CELL = 96                           # pixels a side of a picture in a grid
ROWS = 50                           # most rows of a grid


@dataclass(frozen=True)
class Match:
    """A picture and a query or text, and how well they fit: the cosine of their vectors."""

    query: str
    rank: int                       # from 1, the best
    fit: float
    picture: Picture


def best_pictures(
    queries: Sequence[str], asked: Tensor, pictures: Sequence[Picture], seen: Tensor, n: int
) -> list[Match]:
    """The n pictures with vectors `(m, d)` that fit each query, of vectors `(q, d)`, best; the best first."""
    fit = asked @ seen.T
    found = fit.sort(dim=1, descending=True, stable=True)
    return [Match(query, rank + 1, float(found.values[row, rank]), pictures[int(found.indices[row, rank])])
            for row, query in enumerate(queries) for rank in range(min(n, len(pictures)))]


def best_texts(
    pictures: Sequence[Picture], seen: Tensor, texts: Sequence[str], read: Tensor, n: int
) -> list[Match]:
    """The n texts with vectors `(t, d)` that fit each picture, of vectors `(m, d)`, best; the best first."""
    found = (seen @ read.T).sort(dim=1, descending=True, stable=True)
    return [Match(texts[int(found.indices[row, rank])], rank + 1, float(found.values[row, rank]), picture)
            for row, picture in enumerate(pictures) for rank in range(min(n, len(texts)))]


def as_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A table as a CSV file."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([head, *rows])
    return file.getvalue().encode()


def drawn(matches: Sequence[Match], ranges: Ranges, *, columns: int) -> bytes:
    """A grid of the pictures that were found, a query a row, up to `ROWS` of them, as a PNG."""
    queries = list(dict.fromkeys(match.query for match in matches))[:ROWS]
    rows = {query: [match for match in matches if match.query == query][:columns] for query in queries}
    width = max(map(len, rows.values()))
    blank = torch.full((3, CELL, CELL), TONE, dtype=torch.uint8)
    places = [row[k] if k < len(row) else None for row in rows.values() for k in range(width)]
    cells = [blank if match is None else thumbnail(match.picture, ranges) for match in places]
    words = ["" if match is None else f"{match.fit:.3f}" for match in places]
    return grid_png(torch.stack(cells), columns=width, captions=queries, words=words, scale=1)


def thumbnail(picture: Picture, ranges: Ranges) -> Tensor:
    """A picture that can be read in a square of `CELL` pixels, uint8 `(3, CELL, CELL)`; small ones in large pixels."""
    data = picture.read()
    (height, width), _ = header(data)
    scale = CELL // max(height, width)
    if scale < 2:
        return decode(data, size=(CELL, CELL), channels=3, fit="pad", limits=ranges)
    image = decode(data, size=(height, width), channels=3, limits=ranges)
    image = image.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    top, left = (CELL - image.shape[1]) // 2, (CELL - image.shape[2]) // 2
    return F.pad(image, (left, CELL - image.shape[2] - left, top, CELL - image.shape[1] - top), value=255)
