"""How much scores vary with the samples: standard errors by the bootstrap (Efron and Tibshirani 1993).

The generated images are resampled with replacement and scored; the reference stays fixed. The interval is the value
plus and minus z standard errors (their chapter 12): resamples contain repeats, so their values lie above (distances)
or below (recall, coverage) the score, and an interval of their percentiles would miss it.
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from aigc.runs.catalogue import entry_of

LEVEL = 0.95           # of the intervals


class Estimate(NamedTuple):
    """A score's value with its interval, and its floor: the value of real images outside the reference."""

    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None


def draws(n: int, resamples: int, seed: int, strata: Tensor | None = None) -> Tensor:
    """The number of times that each of n images is in each resample, float32 `(resamples, n)`.

    Images are resampled within their stratum `(n,)`: where labels were asked for, every resample has as many images of
    each label. Otherwise class shares would vary too, and intervals would be several times too wide.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(resamples, n)
    for value in [None] if strata is None else strata.unique():
        members = torch.arange(n) if value is None else (strata == value).nonzero()[:, 0]
        rows = members[torch.randint(len(members), (resamples, len(members)), generator=generator)]
        drawn.scatter_add_(1, rows, torch.ones(rows.shape))
    return drawn


def standard_error(values: Tensor, *, kept: int, n: int) -> float:
    """The standard error of a score of n images, from its values `(b,)` on resamples of the first `kept`."""
    return values.double().std().item() * math.sqrt(kept / n)


def interval(value: float, error: float, *, least: float = -math.inf, most: float = math.inf) -> tuple[float, float]:
    """The `LEVEL` interval of a score that is bounded by `least` and `most`."""
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error
    return max(least, value - half), min(most, value + half)


def bounded(name: str, value: float, error: float | None) -> tuple[float | None, float | None]:
    """The interval of the score `name`, within the bounds that the catalogue gives it; None without an error."""
    if error is None or not math.isfinite(error):
        return None, None
    entry = entry_of(name)
    least, most = entry.bounds if entry is not None else (None, None)
    return interval(value, error, least=-math.inf if least is None else least, most=math.inf if most is None else most)
