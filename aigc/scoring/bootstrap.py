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
from aigc.scoring.scores.inception_score import SPLITS, certainties, score

LEVEL = 0.95           # of the intervals
KERNEL_ROWS = 2000     # most features per side used for the kernel distance's error


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


def frechet_resamples(features: Tensor, drawn: Tensor, mean: Tensor, cov: Tensor, root: Tensor) -> Tensor:
    """Fréchet distances `(b,)` of resamples of features `(m, d)` to a reference given by mean, covariance, root."""
    x = features.double() - mean
    turned = x @ root                                             # S1^(1/2) S2 S1^(1/2) is its covariance
    m, found = len(x), []
    for weights in drawn.double():
        centre = weights @ x / m
        spread = (weights @ x.square()).sum() - m * centre.square().sum()
        middle = turned.T @ (weights[:, None] * turned) - m * torch.outer(centre @ root, centre @ root)
        shared = torch.linalg.eigvalsh(middle / (m - 1)).clamp_min(0).sqrt().sum()
        found.append(centre.square().sum() + spread / (m - 1) + cov.trace() - 2 * shared)
    return torch.stack(found)


def kernel_resamples(
    features: Tensor, real: Tensor, resamples: int, seed: int, strata: Tensor | None = None
) -> tuple[Tensor, int]:
    """Squared kernel distances `(b,)` of resamples to the real features, without pairs of an image and itself.

    They use at most the first `KERNEL_ROWS` features; the number used is returned too. Terms that do not depend on the
    generated images are left out.
    """
    x, y = features[:KERNEL_ROWS].double(), real[:KERNEL_ROWS].double()
    m, d = x.shape
    within, across = (x @ x.T / d + 1) ** 3, ((x @ y.T / d + 1) ** 3).mean(1)
    within.fill_diagonal_(0)
    drawn = draws(m, resamples, seed, None if strata is None else strata[:m]).double()
    return ((drawn @ within) * drawn).sum(1) / (m * (m - 1)) - 2 * drawn @ across / m, m


def inception_resamples(logits: Tensor, drawn: Tensor) -> Tensor:
    """Inception scores `(b,)` of resamples of logits `(m, k)`; splits are consecutive images, without empty ones."""
    p, certainty = certainties(logits)
    parts = zip(p.tensor_split(SPLITS), certainty.tensor_split(SPLITS), drawn.double().tensor_split(SPLITS, dim=1),
                strict=True)
    return torch.stack([score(w @ own, w @ sure, w.sum(1)) for own, sure, w in parts]).nanmean(0)
