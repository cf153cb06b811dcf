"""Fréchet distance between Gaussians, with the matrix square root in symmetric form."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from aigc.scoring.scores.registry import FeatureScore, Measured, feature_score


def matrix_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix `(d, d)`; negative eigenvalues are rounding errors."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(
    mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor, *, root1: Tensor | None = None
) -> Tensor:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982), float64 scalar.

    S1 S2 and S1^(1/2) S2 S1^(1/2) have the same eigenvalues, and the latter is symmetric: `eigvalsh` is exact for
    singular covariances too (fewer samples than dimensions) and several times faster than general eigenvalues.
    Means are `(d,)`, covariances `(d, d)`; `root1` is `matrix_root(cov1)`, if already known.
    """
    mean1, cov1, mean2, cov2 = (t.double() for t in (mean1, cov1, mean2, cov2))
    root = matrix_root(cov1) if root1 is None else root1
    middle = root @ cov2 @ root
    shared = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * shared
    return distance.clamp_min(0)


def mean_and_covariance(total: Tensor, products: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(d,)` and covariance `(d, d)`, over n - 1, from sums of features and of their outer products."""
    mean = total / n
    return mean, (products - n * torch.outer(mean, mean)) / (n - 1)


class FrechetDistance(FrechetInceptionDistance):
    """torchmetrics' metric (its states and updates) with the symmetric root, in float64.

    It keeps the root of the real covariance, because the real side does not change between scorings.
    """

    def __init__(self, feature: torch.nn.Module):
        super().__init__(feature=feature, reset_real_features=False, sync_on_compute=False)
        self._root: tuple[int, Tensor] | None = None         # number of real images, root of their covariance

    def forget_root(self) -> None:
        """Call this after replacing the real side's states directly."""
        self._root = None

    def compute(self) -> Tensor:
        """The distance, float64 scalar; needs at least two images per side."""
        assert self.fake_features_num_samples >= 2, "a covariance needs two images"
        mean, cov, root = self.real_moments()
        fake = mean_and_covariance(self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples)
        return frechet_distance(mean, cov, *fake, root1=root)

    def real_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean `(d,)`, covariance `(d, d)` and its root for the real side, float64; needs at least two images."""
        n = int(self.real_features_num_samples)
        assert n >= 2, "a covariance needs two images"
        mean, cov = mean_and_covariance(
            self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples
        )
        if self._root is None or self._root[0] != n:
            self._root = (n, matrix_root(cov))
        return mean, cov, self._root[1]


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


@feature_score
class Frechet(FeatureScore):
    """The Fréchet distance of the suite's sums of features."""

    names = ("fd_*",)

    def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
        """Of all images; resamples of the kept ones."""
        metric, value = self.sides.frechet, self.sides.frechet.compute().item()
        if drawn is None:
            return {"fd_*": Measured(value)}
        fakes = self.sides.kept(real=False)
        return {"fd_*": Measured(value, frechet_resamples(fakes, drawn, *metric.real_moments()), len(fakes))}

    def protocol(self, n: int) -> dict[str, Any]:
        """How the covariance is computed."""
        return {"fd_covariance": "over n - 1, float64, symmetric root"}
