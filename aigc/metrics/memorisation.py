"""Whether samples are training images: how near their nearest neighbour is, beside how near one is to real images.

An image is `memorised` where its nearest training image is nearer than that of 99 in 100 held-out images, or the same
to the precision of what is compared: 1% of new real images are by construction, so more than a few per cent says that
training images come back. (Compare Meehan et al. 2020, "A non-parametric test to detect data-copying in generative
models".)
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from aigc.grids import save_grid
from aigc.metrics.manifold import distances

SHARE = 0.01           # of held-out images that count as memorised
LEAST = 100            # held-out images: with fewer, their nearest hundredth is no image
ROUNDING = 2**-10      # of features in half precision, as a share of their length: nothing nearer can be told apart
SHOWN, NEAREST = 12, 4     # rows of the picture, and training images in each


def nearest(
    features: Tensor, reference: Iterable[Tensor], centre: Tensor, *, k: int = NEAREST
) -> tuple[Tensor, Tensor]:
    """Distances `(n, k)` to the nearest of the reference, nearest first, and their numbers `(n, k)` in it.

    `reference` comes in parts `(m, d)` of any precision; `centre` `(1, d)` is subtracted from everything.
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
    """Which features `(n, d)` lie so near to another, at `apart` `(n,)`, that half precision knows no difference."""
    return apart <= ROUNDING * features.norm(dim=1)


def threshold(held_out: Tensor) -> float:
    """The distance below which an image counts as memorised, from those of held-out images `(n,)`."""
    return torch.quantile(held_out.double(), SHARE).item()


def save_neighbours(samples: Tensor, neighbours: Tensor, found: Tensor, limit: float, path: Path) -> None:
    """A picture of the samples that lie nearest to training images, each beside its nearest ones.

    Args:
        samples: uint8 `(n, c, h, w)`, nearest first.
        neighbours: uint8 `(n, k, c, h, w)`.
        found: `(n,)`, their distances.
        limit: distance below which one counts as memorised.
        path: of the PNG.
    """
    k = neighbours.shape[1]
    cells = torch.cat([samples[:, None], neighbours], 1).flatten(0, 1)
    captions = [f"at {value / limit:.2f} of the limit" for value in found.tolist()]
    titles = ["sample", "nearest", *(f"{place}." for place in range(2, k + 1))]
    save_grid(cells, path, columns=k + 1, captions=captions, titles=titles)
