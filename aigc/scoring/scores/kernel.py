"""Kernel distance (Binkowski et al. 2018): unbiased squared MMD with kernel (x.y / d + 1)^3, averaged over subsets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.image.kid import KernelInceptionDistance

from aigc.scoring.bootstrap import draws
from aigc.scoring.scores.registry import FeatureScore, Measured, feature_score

ROWS = 1000            # of a kernel matrix at a time: bounds the memory
EXACT = 3000           # images per side up to which kernel matrices are float64
KERNEL_ROWS = 2000     # most features per side used for the distance's error
FIDELITY_SEED = 2020   # of torch-fidelity's subsets and splits


class KernelDistance(KernelInceptionDistance):
    """torchmetrics' metric (its states and updates), with the values that it has in float64.

    Subsets are random; with seed 0 they are torch-fidelity's for the same images, if all are kept. One kernel matrix
    serves all subsets where that is less work than one per subset: 25 times less for 2,000 images per side and 100
    subsets of 1,000. Matrices of more than `EXACT` images are float32, minus a constant that the estimator cancels,
    and are summed in float64: their rounding errors average out, to about 1e-9 of the kernel.
    """

    seed = 0

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation over the subsets, float64; each side needs as many images as a subset."""
        real, fake = (torch.cat(list(side)).double() for side in (self.real_features, self.fake_features))
        m = self.subset_size
        assert min(len(real), len(fake)) >= m >= 2, "a subset needs two images, and no more than there are"
        drawing = np.random.RandomState(FIDELITY_SEED + self.seed)
        drawn = [[drawing.choice(len(side), m, replace=False) for side in (fake, real)] for _ in range(self.subsets)]
        y, x = torch.from_numpy(np.array(drawn)).unbind(1)
        constant = float((real.mean(0) @ fake.mean(0) / real.shape[1] + 1) ** 3)
        pairs = torch.zeros(self.subsets, dtype=torch.float64)
        for side, rows in ((real, x), (fake, y)):
            itself = (side.square().sum(1) / side.shape[1] + 1) ** 3 - constant
            pairs += _sums(side, side, rows, rows, constant) - itself[rows].sum(1)
        values = pairs / (m * (m - 1)) - 2 * _sums(real, fake, x, y, constant) / m**2
        return values.mean(), values.std(unbiased=False)


def _kernel(one: Tensor, other: Tensor, constant: float) -> Tensor:
    """The kernel minus a constant, `(n, m)`, of features `(n, d)` and `(m, d)`."""
    inner = torch.addmm(one.new_ones(1), one, other.T, alpha=1 / one.shape[1])
    return inner.square().mul_(inner).sub_(constant)


def _sums(one: Tensor, other: Tensor, rows: Tensor, columns: Tensor, constant: float) -> Tensor:
    """Sums `(s,)`, float64, of the kernel minus a constant over each subset's rows `(s, m)` and columns `(s, m)`."""
    subsets, m = rows.shape
    mirrored = other is one                                        # the matrix is symmetric
    if max(len(one), len(other)) > EXACT:
        one, other = one.float(), other.float()
    if len(one) * len(other) > subsets * m * m:
        sums = [_kernel(one[i], other[j], constant).sum(dtype=torch.float64)
                for i, j in zip(rows, columns, strict=True)]
        return torch.stack(sums)
    chosen, wanted = (side.new_zeros(subsets, len(side)).scatter_(1, index, 1.0)
                      for side, index in ((one, rows), (other, columns)))
    total = torch.zeros(subsets, dtype=torch.float64)
    for start in range(0, len(one), ROWS):
        part, first = slice(start, start + ROWS), start if mirrored else 0
        found = (chosen[:, part] @ _kernel(one[part], other[first:], constant)).mul_(wanted[:, first:]).double()
        total += found.sum(1)
        if mirrored:
            total += found[:, ROWS:].sum(1)
    return total


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


@feature_score
class Kernel(FeatureScore):
    """The kernel distance of the features that the suite keeps, over subsets no larger than either side."""

    names = ("kd_*",)

    def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
        """Of the kept images; the resamples are its own, of fewer."""
        metric = self.sides.kernel
        metric.subset_size = self.sides.subset_size(self.sides.generated)
        value = metric.compute()[0].item()
        if drawn is None:
            return {"kd_*": Measured(value)}
        fakes, real = self.sides.kept(real=False), self.sides.kept(real=True)
        return {"kd_*": Measured(value, *kernel_resamples(fakes, real, len(drawn), self.sides.seed, strata))}

    def protocol(self, n: int) -> dict[str, Any]:
        """The kernel, and the subsets of n images."""
        return {"kd_kernel": "(x.y / d + 1)^3, unbiased", "kd_subsets": self.sides.kd_subsets,
                "kd_subset_size": self.sides.subset_size(n)}
