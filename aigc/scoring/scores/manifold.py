"""Fidelity and diversity separately: precision and recall, density and coverage, from nearest neighbours of features.

Precision and recall follow Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing
generative models"; density and coverage follow Naeem et al. 2020, "Reliable fidelity and diversity metrics for
generative models". The manifold of a set is the union of balls around its features, each with the distance to the
k-th nearest other feature as its radius.
"""

import torch
from torch import Tensor

from aigc.scoring.enough import be
from aigc.scoring.scores.registry import FeatureScore, Measured, feature_score

NAMES = ("precision", "recall", "density", "coverage")
ROWS = 1000            # real features compared at a time: bounds the memory


def distances(one: Tensor, other: Tensor) -> Tensor:
    """Euclidean distances `(n, m)` of features `(n, d)` and `(m, d)`; centre float32 features first."""
    return torch.cdist(one, other, compute_mode="use_mm_for_euclid_dist")


def radii(features: Tensor, k: int) -> Tensor:
    """Distance `(n,)` of each of the features `(n, d)` to the k-th nearest other one."""
    return torch.cat([distances(part, features).kthvalue(k + 1, dim=1).values for part in features.split(ROWS)])


class Manifold:
    """The real side `(n, d)`, and the position of generated features relative to it."""

    def __init__(self, real: Tensor, *, k: int):
        assert len(real) > k, f"{len(real)} features have no {k} neighbours each"
        self.k = k
        self.centre = real.mean(0, keepdim=True)
        self.real = real - self.centre
        self.radii = radii(self.real, k)

    def compare(self, fake: Tensor, drawn: Tensor | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scores of features `(m, d)`, m > k: float64 scalars, and the scores of resamples `(b,)`.

        `drawn` `(b, m)` counts each feature in each resample; the balls are always those of all m.
        """
        fake = fake - self.centre
        own = radii(fake, self.k)
        counts = torch.zeros(len(fake), dtype=torch.float64)       # real balls that contain a generated feature
        weights = torch.ones(1, len(fake)) if drawn is None else torch.cat([torch.ones(1, len(fake)), drawn])
        recalled, covered = torch.zeros(2, len(weights), dtype=torch.float64)
        there = (weights > 0).float()
        for real, radius in zip(self.real.split(ROWS), self.radii.split(ROWS), strict=True):
            apart = distances(fake, real)
            inside = (apart <= radius).float()
            counts += inside.sum(1)
            covered += (there @ inside > 0).sum(1)
            recalled += (there @ (apart <= own[:, None]).float() > 0).sum(1)
        share = weights.double() / weights.double().sum(1, keepdim=True)
        found = {
            "precision": share @ (counts > 0).double(), "recall": recalled / len(self.real),
            "density": share @ counts / self.k, "coverage": covered / len(self.real),
        }
        return {name: values[0] for name, values in found.items()}, {name: v[1:] for name, v in found.items()}


def no_neighbours(k: int, *, n: int, reals: int) -> str | None:
    """Why n images have no precision, recall, density and coverage by k neighbours; None: they have them."""
    least = min(n, reals)
    return f"it needs more than {k:,} images on either side, and there {be(least)}" if least <= k else None


@feature_score
class Around(FeatureScore):
    """The four scores of the features that the suite keeps, among as many real images as were generated."""

    names = tuple(f"{name}_*" for name in NAMES)
    real: Manifold | None = None

    def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
        """Of the kept images, if more than k are kept of either side."""
        k, fakes, real = self.sides.neighbours, self.sides.kept(real=False), self.sides.kept(real=True)
        m = len(fakes)
        if not k or not m > k < len(real):
            return {}
        if self.real is None or len(self.real.real) != len(real[:m]):
            self.real = Manifold(real[:m], k=k)
        spread, redrawn = self.real.compare(fakes, drawn)
        return {f"{name}_*": Measured(value.item(), redrawn[name] if drawn is not None else None, m)
                for name, value in spread.items()}

    def missing(self, n: int, reals: int) -> str | None:
        """Too few images."""
        return no_neighbours(self.sides.neighbours, n=n, reals=reals)

    def ruled_out(self) -> str | None:
        """None are wanted."""
        return None if self.sides.neighbours else "neighbours=0 leaves it out"
