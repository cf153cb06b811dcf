"""Inception score of a stream of images: memory does not grow with their number."""

import numpy as np
import torch
from torch import Tensor

from aigc.scoring.scores.kernel import FIDELITY_SEED

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
