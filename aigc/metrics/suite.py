"""All scores over one feature network: Fréchet distance, kernel distance and inception score, by torchmetrics.

Features are computed once and shared: the metrics get a network that hands them through. They are handed all features
in the order of their items, so that shares measured on several devices give the very numbers of one.
"""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from aigc.metrics.features import FeatureNetwork
from aigc.metrics.frechet import FrechetDistance, frechet_distance, mean_and_covariance

IS_SPLITS = 10        # Salimans et al. 2016
IS_LEAST = 10         # images a split: below, the score says more about their number than about them
KD_KEPT = 10_000      # real features that are kept for the kernel distance, at most


class HandThrough(nn.Module):
    """Stands where torchmetrics expects a network: its input is the features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """`features` in float64, in which all scores are computed."""
        return features.double()


class Suite:
    """Scores of images by their features; lives on the CPU, beside the model.

    Real features are added once (`add_real`, or `load_real` from the cache) and survive `compute`.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        kd_subsets: int = 100,          # random subsets that the kernel distance is averaged over
        kd_subset_size: int = 1000,     # images in each; fewer where there are fewer
        seed: int = 0,                  # of the subsets and of the inception score's splits
    ):
        self.num_features = network.num_features
        self.names = network.score_names()
        self.classifies = network.classifies
        self.kd_subsets = kd_subsets
        self.kd_subset_size = kd_subset_size
        self.seed = seed
        hand_through = HandThrough(network.num_features)
        self.frechet = FrechetDistance(hand_through)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both say that they keep features: a few megabytes here
            self.kernel = KernelInceptionDistance(
                hand_through, subsets=kd_subsets, reset_real_features=False, sync_on_compute=False
            )
            self.inception = InceptionScore(hand_through, splits=IS_SPLITS, sync_on_compute=False)

    def add_real(self, features: Tensor) -> None:
        """Adds features `(n, d)` of real images, in random order."""
        self.frechet.update(features, real=True)
        room = KD_KEPT - sum(len(part) for part in self.kernel.real_features)
        if room > 0:
            self.kernel.update(features[:room], real=True)

    def real_state(self) -> dict[str, Tensor]:
        """The real side: sums for the Fréchet distance and float32 features for the kernel distance."""
        return {
            "sum": self.frechet.real_features_sum,
            "products": self.frechet.real_features_cov_sum,
            "n": self.frechet.real_features_num_samples,
            "features": torch.cat(list(self.kernel.real_features)).float(),
        }

    def load_real(self, state: dict[str, Tensor]) -> None:
        """Takes over another suite's `real_state()`."""
        self.frechet.real_features_sum = state["sum"]
        self.frechet.real_features_cov_sum = state["products"]
        self.frechet.real_features_num_samples = state["n"]
        self.frechet.forget_root()
        self.kernel.real_features = [state["features"].double()]

    def distance_to_real(self, features: Tensor) -> float:
        """Fréchet distance of features `(n, d)` to the real side, which stays as it is."""
        features = features.double()
        real = mean_and_covariance(
            self.frechet.real_features_sum, self.frechet.real_features_cov_sum, self.frechet.real_features_num_samples
        )
        return frechet_distance(*real, features.mean(0), torch.cov(features.T)).item()

    def compute(self, features: Tensor, logits: Tensor | None = None) -> dict[str, float]:
        """Scores of generated images by their features `(n, d)` and logits `(n, k)`; needs two images.

        The kernel distance's subsets are no larger than either side; the inception score is left out where there are
        no logits, where they name nothing, or where a split would hold fewer than `IS_LEAST` images.
        """
        scores: dict[str, float] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.frechet.reset()
            self.frechet.update(features, real=False)
            scores[self.names["fd"]] = self.frechet.compute().item()
            self.kernel.reset()
            self.kernel.update(features, real=False)
            self.kernel.subset_size = self.subset_size(len(features))
            scores[self.names["kd"]] = self.kernel.compute()[0].item()
            if logits is not None and self.classifies and len(features) >= IS_SPLITS * IS_LEAST:
                self.inception.reset()
                sure = logits.double().log_softmax(1).clamp_min(-600)  # beyond, a probability is 0 and the score NaN
                self.inception.update(sure)
                scores[self.names["is"]] = self.inception.compute()[0].item()
        assert all(math.isfinite(value) for value in scores.values()), scores
        return scores

    def subset_size(self, n: int) -> int:
        """Images in a subset of the kernel distance where n were generated."""
        return min(self.kd_subset_size, n, sum(len(part) for part in self.kernel.real_features))

    def protocol(self, n: int) -> dict[str, Any]:
        """How n images are scored."""
        return {
            "fd_covariance": "over n - 1, float64, symmetric root",
            "kd_kernel": "(x.y / d + 1)^3, unbiased",
            "kd_subsets": self.kd_subsets,
            "kd_subset_size": self.subset_size(n),
            "is_splits": IS_SPLITS,
        }
