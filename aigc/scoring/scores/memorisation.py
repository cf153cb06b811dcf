"""Whether samples copy training images: their distance to the nearest one, compared with that of real images.

An image is `memorised` if its nearest training image is closer than that of 99 in 100 held-out images, or equal within
the precision of the features. By construction, 1% of new real images are; more than a few per cent means that training
images are reproduced. (Compare Meehan et al. 2020, "A non-parametric test to detect data-copying in generative
models".)
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from aigc.images.grids import save_grid
from aigc.scoring.scores.manifold import distances

SHARE = 0.01           # of held-out images that count as memorised
LEAST = 100            # held-out images: fewer have no closest hundredth
ROUNDING = 2**-10      # of features in half precision, relative to their length: closer ones are equal
SHOWN, NEAREST = 12, 4     # rows of the picture, and training images in each row


def nearest(
    features: Tensor, reference: Iterable[Tensor], centre: Tensor, *, k: int = NEAREST
) -> tuple[Tensor, Tensor]:
    """Distances `(n, k)` to the nearest rows of the reference, nearest first, and their indices `(n, k)`.

    `reference` comes in parts `(m, d)` of any precision; `centre` `(1, d)` is subtracted from all features.
    """
    own = features.float() - centre
    best = torch.full((len(own), k), torch.inf)
    rows = torch.full((len(own), k), -1)
    start = 0
    for part in reference:
        apart = distances(own, part.float() - centre)
        numbers = torch.arange(start, start + len(part)).expand(len(own), -1)
        best, order = torch.cat([best, apart], 1).topk(k, largest=False)
        rows = torch.cat([rows, numbers], 1).gather(1, order)
        start += len(part)
    return best, rows


def copies(apart: Tensor, features: Tensor) -> Tensor:
    """Which features `(n, d)` have a neighbour, at distance `apart` `(n,)`, that is equal in half precision."""
    return apart <= ROUNDING * features.norm(dim=1)


def threshold(held_out: Tensor) -> float:
    """The distance below which an image counts as memorised, from the distances of held-out images `(n,)`."""
    return torch.quantile(held_out.double(), SHARE).item()


def save_neighbours(samples: Tensor, neighbours: Tensor, found: Tensor, limit: float, path: Path) -> None:
    """Draws the samples that are closest to training images, each beside its nearest ones.

    Args:
        samples: uint8 `(n, c, h, w)`, nearest first.
        neighbours: uint8 `(n, k, c, h, w)`.
        found: their distances, `(n,)`.
        limit: distance below which a sample counts as memorised.
        path: of the PNG.
    """
    k = neighbours.shape[1]
    cells = torch.cat([samples[:, None], neighbours], 1).flatten(0, 1)
    captions = [f"at {value / limit:.2f} of the limit" for value in found.tolist()]
    titles = ["sample", "nearest", *(f"{place}." for place in range(2, k + 1))]
    save_grid(cells, path, columns=k + 1, captions=captions, titles=titles)


def no_memorised(limit: float | None) -> str | None:
    """Why it is not known which images are memorised, where that has this limit; None: it is known."""
    return f"its limit needs {LEAST} real images that are no copies, and there are fewer" if limit is None else None
