"""All scores on one feature network: those that are registered (aigc/scoring/scores/registry.py).

Features are computed once and shared: the metrics get a network that passes them through. They receive features in the
order of their items, so several devices give exactly the numbers of one. Memory does not grow with the length of a
stream of features: only sums and the first `KEPT` features are kept.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.scores.frechet import FrechetDistance, frechet_distance
from aigc.scoring.scores.kernel import KernelDistance
from aigc.scoring.scores.registry import FeatureScore, Measured, chosen

KEPT = 10_000         # most features kept per side, for the kernel distance's subsets


class HandThrough(nn.Module):
    """Takes the place of torchmetrics' network: its input is already features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        """`features` in float64, the precision of all scores."""
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
        kd_subset_size: int = 1000,     # images in each; fewer if there are fewer
        neighbours: int = 0,            # k of precision, recall, density and coverage; 0: none of them
        seed: int = 0,                  # of the subsets and of the inception score's splits
        extra: Sequence[str] = (),      # modules of scores besides this package's
    ):
        self.network = network
        self.num_features = network.num_features
        self.names = network.score_names()
        self.kd_subsets = kd_subsets
        self.kd_subset_size = kd_subset_size
        self.neighbours = neighbours
        self.seed = seed
        hand_through = HandThrough(network.num_features)
        self.frechet = FrechetDistance(hand_through)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it keeps features: here at most KEPT
            self.kernel = KernelDistance(
                hand_through, subsets=kd_subsets, reset_real_features=False, sync_on_compute=False
            )
        self.kernel.seed = seed
        self.logits: list[Tensor] = []
        self.measures: list[FeatureScore] = [one(self) for one in chosen(extra)]

    def add_real(self, features: Tensor) -> None:
        """Adds features `(n, d)` of real images, in random order."""
        self.frechet.update(features, real=True)
        self._keep(features, real=True)

    def _keep(self, features: Tensor, *, real: bool) -> None:
        kept = self.kernel.real_features if real else self.kernel.fake_features
        room = KEPT - sum(len(part) for part in kept)
        if room > 0:
            self.kernel.update(features[:room], real=real)

    def real_state(self) -> dict[str, Tensor]:
        """The real side: sums for the Fréchet distance and float32 features for the kernel distance."""
        return {
            "sum": self.frechet.real_features_sum,
            "products": self.frechet.real_features_cov_sum,
            "n": self.frechet.real_features_num_samples,
            "features": self.kept(real=True),
        }

    def load_real(self, state: dict[str, Tensor]) -> None:
        """Restores another suite's `real_state()`."""
        self.frechet.real_features_sum = state["sum"]
        self.frechet.real_features_cov_sum = state["products"]
        self.frechet.real_features_num_samples = state["n"]
        self.frechet.forget_root()
        self.kernel.real_features = [state["features"].double()]

    def distance_to_real(self, features: Tensor) -> float:
        """Fréchet distance of features `(n, d)` to the real side, which does not change."""
        features = features.double()
        mean, cov, root = self.frechet.real_moments()
        return frechet_distance(mean, cov, features.mean(0), torch.cov(features.T), root1=root).item()

    def compute(self, features: Tensor, logits: Tensor | None = None) -> dict[str, float]:
        """Scores of generated images from all their features `(n, d)` and logits `(n, k)`; needs at least two."""
        self.begin(len(features))
        self.add(features, logits)
        return self.scores()

    def begin(self, n: int) -> None:
        """Starts again with n new generated images."""
        self.frechet.reset()
        self.kernel.reset()
        self.logits = []
        for one in self.measures:
            one.begin(n)

    def add(self, features: Tensor, logits: Tensor | None = None) -> None:
        """Adds the features `(m, d)` and logits `(m, k)` of the next generated images."""
        self.frechet.update(features, real=False)
        self._keep(features, real=False)
        if logits is not None and sum(len(part) for part in self.logits) < KEPT:
            self.logits.append(logits)
        for one in self.measures:
            one.add(features, logits)

    def scores(self) -> dict[str, float]:
        """Scores of the images added since `begin`, by name; those with too few images for them are left out."""
        return {name: measured.value for name, measured in self.measure().items()}

    def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
        """The same with their values on resamples of the kept images, drawn `(b, m)` times within their strata."""
        return {one.called(name): measured for one in self.measures
                for name, measured in one.measure(drawn, strata).items()}

    def missing(self, n: int, reals: int) -> dict[str, str]:
        """Why n images have no score against so many kept real ones, by its name."""
        return {one.called(name): reason for one in self.measures
                if (reason := one.missing(min(n, KEPT), reals)) for name in one.names}

    def ruled_out(self) -> dict[str, str]:
        """The scores that the network or the options leave out, with the reason."""
        return {one.called(name): reason for one in self.measures if (reason := one.ruled_out()) for name in one.names}

    @property
    def generated(self) -> int:
        """Number of generated images added since `begin`."""
        return int(self.frechet.fake_features_num_samples)

    def kept(self, *, real: bool) -> Tensor:
        """At most the first `KEPT` features `(m, d)` of a side, float32."""
        return torch.cat(list(self.kernel.real_features if real else self.kernel.fake_features)).float()

    def kept_logits(self) -> Tensor:
        """The logits `(m, k)` of the kept generated images; `(m, 0)` where none were added."""
        m = sum(len(part) for part in self.kernel.fake_features)
        return torch.cat(self.logits)[:m] if self.logits else torch.zeros(m, 0)

    def subset_size(self, n: int) -> int:
        """Images per subset of the kernel distance for n generated ones."""
        return min(self.kd_subset_size, n, sum(len(part) for part in self.kernel.real_features))

    def protocol(self, n: int) -> dict[str, Any]:
        """How n images are scored."""
        return {name: fact for one in self.measures for name, fact in one.protocol(n).items()}
