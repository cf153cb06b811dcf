"""Inception score of a stream of images: memory does not grow with their number."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc.scoring.enough import be
from aigc.scoring.scores.kernel import FIDELITY_SEED
from aigc.scoring.scores.registry import FeatureScore, Measured, feature_score

SPLITS = 10        # Salimans et al. 2016
LEAST = 10         # images per split: with fewer, their number dominates the score


class InceptionScore:
    """exp of the mean KL(p(y|x) || p(y)), averaged over splits (Salimans et al. 2016), in float64.

    Images are assigned to the splits at random; with seed 0 the splits are torch-fidelity's.
    """

    def __init__(self, n: int, *, seed: int = 0, splits: int = SPLITS):
        order = torch.from_numpy(np.random.RandomState(FIDELITY_SEED + seed).permutation(n))
        bounds = torch.arange(splits + 1) * n // splits
        self.split_of = torch.empty(n, dtype=torch.long)
        self.split_of[order] = torch.arange(splits).repeat_interleave(bounds.diff())
        self.counts = torch.zeros(splits, dtype=torch.float64)
        self.seen = 0
        self.certainty = torch.zeros(splits, dtype=torch.float64)       # sums of p log p
        self.spread: Tensor | None = None                               # (splits, k): sums of p

    def update(self, logits: Tensor) -> None:
        """Adds the logits `(m, k)` of the next images."""
        p, certainty = certainties(logits)
        if self.spread is None:
            self.spread = torch.zeros(len(self.counts), p.shape[1], dtype=torch.float64)
        where = self.split_of[self.seen : self.seen + len(p)]
        self.counts += torch.bincount(where, minlength=len(self.counts))
        self.spread.index_add_(0, where, p)
        self.certainty.index_add_(0, where, certainty)
        self.seen += len(p)

    def compute(self) -> float:
        """The score of the added images; ignores splits without an image, which occur if fewer than n were added."""
        assert self.spread is not None, "no image was added"
        return score(self.spread, self.certainty, self.counts).nanmean().item()


def certainties(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities `(m, k)` and their sums of p log p `(m,)`, float64; probabilities below exp(-600) are 0."""
    log_p = logits.double().log_softmax(1).clamp_min(-600)
    p = log_p.exp()
    return p, (p * log_p).sum(1)


def score(spread: Tensor, certainty: Tensor, counts: Tensor) -> Tensor:
    """The score `(...)` from sums of p `(..., k)` and of p log p `(...)` over `counts` `(...)` images."""
    mean = spread / counts[..., None]
    return (certainty / counts - torch.xlogy(mean, mean).sum(-1)).exp()


def inception_resamples(logits: Tensor, drawn: Tensor) -> Tensor:
    """Inception scores `(b,)` of resamples of logits `(m, k)`; splits are consecutive images, without empty ones."""
    p, certainty = certainties(logits)
    parts = zip(p.tensor_split(SPLITS), certainty.tensor_split(SPLITS), drawn.double().tensor_split(SPLITS, dim=1),
                strict=True)
    return torch.stack([score(w @ own, w @ sure, w.sum(1)) for own, sure, w in parts]).nanmean(0)


def no_inception_score(n: int, *, classifies: bool) -> str | None:
    """Why n images have no inception score; None: they have one."""
    if not classifies:
        return "the network names no classes"
    if n < SPLITS * LEAST:
        return f"it needs {SPLITS * LEAST:,} images, and there {be(n)}"
    return None


@feature_score
class Inception(FeatureScore):
    """The inception score; left out if the logits are not classes, or if a split would hold too few images."""

    names = ("is_*",)
    state: InceptionScore | None = None

    def begin(self, n: int) -> None:
        """Assigns the n images to splits, if there are enough."""
        enough = self.sides.network.classifies and n >= SPLITS * LEAST
        self.state = InceptionScore(n, seed=self.sides.seed) if enough else None

    def add(self, features: Tensor, logits: Tensor | None) -> None:
        """Adds their probabilities."""
        if self.state is not None and logits is not None:
            self.state.update(logits)

    def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
        """Of all images; resamples of the kept ones."""
        if self.state is None or self.state.seen < SPLITS * LEAST:
            return {}
        value = self.state.compute()
        if drawn is None:
            return {"is_*": Measured(value)}
        return {"is_*": Measured(value, inception_resamples(self.sides.kept_logits(), drawn), drawn.shape[1])}

    def protocol(self, n: int) -> dict[str, Any]:
        """The number of splits."""
        return {"is_splits": SPLITS}

    def missing(self, n: int, reals: int) -> str | None:
        """Too few images."""
        return no_inception_score(n, classifies=self.sides.network.classifies)

    def ruled_out(self) -> str | None:
        """The network has no classes."""
        return None if self.sides.network.classifies else "the network names no classes"
