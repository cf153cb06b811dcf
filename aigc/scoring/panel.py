"""One feature network's scores of a stream of images, with intervals, and of the floors.

Features are computed once for all scores. Memory does not grow with the length of a stream: only sums and the first
`KEPT` features and logits are kept. The real side is processed once and cached (aigc/files/cache.py).
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError
from aigc.files.cache import keep_cached, load_cached
from aigc.scoring import bootstrap
from aigc.scoring.bootstrap import Estimate
from aigc.scoring.enough import no_inception_score, no_memorised, no_neighbours, smaller_subsets, too_few
from aigc.scoring.networks.features import FeatureNetwork, real_key
from aigc.scoring.scores.manifold import NAMES, Manifold
from aigc.scoring.scores.memorisation import LEAST, NEAREST, SHARE, copies, nearest, threshold
from aigc.scoring.sources import Source
from aigc.scoring.suite import KEPT, Suite

SEARCHED = 60_000          # most real images searched for nearest neighbours
VERSION = 2                # of a floor's content: a change makes new cache entries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """How images are scored, the same for every network."""

    kd_subsets: int             # see scoring/suite.py
    kd_subset_size: int
    neighbours: int             # k of precision, recall, density and coverage; 0: none of them
    memorisation: bool          # whether to search for nearest neighbours
    resamples: int              # of the bootstrap; 0: no intervals
    num_reals: int | None       # most images of the reference; None: all
    batch_size: int             # images at a time
    seed: int                   # of subsets, splits and resamples
    most: int | None = None     # images that are looked at on either side, at most; None: all


class Panel:
    """Scores one stream of images after another (`begin`, `look`, `scores`) against one reference."""

    def __init__(self, network: FeatureNetwork, how: How):
        self.network, self.how = network, how
        self.neighbours: Tensor | None = None       # features (n, d) of real images in half precision
        self.limit: float | None = None             # distance below which an image counts as memorised
        self.floors: dict[str, float] = {}
        self.near: tuple[Tensor, Tensor] | None = None      # result of `nearest` at the last scoring

    def bounded(self, n: int) -> int:
        """How many of n images are looked at."""
        return min(n, self.how.most or n)

    # ---- the real side ----

    def learn(self, source: Source) -> None:
        """Processes the reference, or loads the results from the cache.

        Raises:
            UserError: it has fewer than two images.
        """
        h, n = self.how, self.bounded(min(self.how.num_reals or source.count, source.count))
        self.source = source
        self.suite = Suite(self.network, kd_subsets=h.kd_subsets, kd_subset_size=h.kd_subset_size, seed=h.seed)
        self._manifold: Manifold | None = None
        keys = [real_key(self.network, source.sequence, source.split, kind, n) for kind in ("reals", "neighbours")]
        state, wide = load_cached(keys[0]), load_cached(keys[1]) if h.memorisation else None
        if state is None or (h.memorisation and wide is None):
            started = time.perf_counter()
            parts: list[Tensor] = []
            for batch in source.batches(n, h.batch_size):
                features = self._see(batch["image"])[0]
                self.suite.add_real(features)
                if h.memorisation and sum(len(part) for part in parts) < SEARCHED:
                    parts.append(features.half())
            if int(self.suite.frechet.real_features_num_samples) < 2:
                raise UserError(f"fewer than two images of {source.name} could be read: distances need at least two")
            state, wide = self.suite.real_state(), torch.cat(parts)[:SEARCHED] if parts else None
            if not source.failures:     # a broken file may be repaired under the same name
                keep_cached(keys[0], state)
                if wide is not None:
                    keep_cached(keys[1], wide)
            log.info("%s looked at %s images of %s (%.0f s)", self.network.name, f"{n:,}", source.name,
                     time.perf_counter() - started)
        self.suite.load_real(state)
        self.real, self.neighbours = self.suite.kept(real=True), wide
        self.num_reals = int(self.suite.frechet.real_features_num_samples)

    def measure_floor(self, source: Source | None, n: int) -> None:
        """Scores n real images that the reference does not contain; without that many there is no floor.

        Without a source, distances among the reference's own images define what counts as memorised.
        """
        h, n = self.how, self.bounded(n)
        m = min(n, source.count) if source is not None else 0
        self.floors, self.limit = {}, None
        options = (VERSION, h.kd_subsets, h.kd_subset_size, h.neighbours, h.memorisation, h.seed, self.num_reals)
        other = (source.sequence, source.split) if source is not None else None
        key = real_key(self.network, self.source.sequence, self.source.split, "panel", other, m, *options)
        kept = load_cached(key)
        if kept is None:
            scores: dict[str, float] = {}
            if source is not None and m >= 2:
                self.begin(m)
                for batch in source.batches(m, h.batch_size):
                    self.look(batch["image"], batch.get("label"))
                own = self.suite.kept(real=False)
                apart = self.nearest(own)[0][:, 0] if h.memorisation else None
                scores = {name: score.value for name, score in self.scores(errors=False).items()}
            else:
                own = self.real
                apart = self.nearest(own, k=2)[0][:, 1] if h.memorisation else None
            new = apart[~copies(apart, own)] if apart is not None else None       # the data may contain an image twice
            limit = threshold(new) if new is not None and len(new) >= LEAST else None
            kept = {"scores": scores, "limit": limit}
            keep_cached(key, kept)
        self.limit = kept["limit"]
        self.floors = kept["scores"] if m == n else {}
        if self.floors and self.limit is not None:
            self.floors[self.called("memorised")] = SHARE

    def notes(self, n: int) -> list[str]:
        """What there are too few images for where n are scored."""
        n = self.bounded(n)
        counts = {"images": n, "reference images": self.num_reals}
        found = (too_few(counts, self.network.num_features),
                 smaller_subsets(self.how.kd_subset_size, self.suite.subset_size(n)))
        return [note for note in found if note]

    def missing(self, n: int) -> dict[str, str]:
        """Why n images have no score over this network, by its name."""
        n = self.bounded(n)
        around = no_neighbours(self.how.neighbours, n=min(n, KEPT), reals=len(self.real))
        reasons = {self.suite.names["is"]: no_inception_score(n, classifies=self.network.classifies),
                   **dict.fromkeys(map(self.called, NAMES), around),
                   self.called("memorised"): no_memorised(self.limit)}
        return {name: reason for name, reason in reasons.items() if reason and name not in self.ruled_out()}

    def ruled_out(self) -> dict[str, str]:
        """The scores that were not wanted, or that this network cannot give, with the reason."""
        found = {}
        if not self.network.classifies:
            found[self.suite.names["is"]] = "the network names no classes"
        if not self.how.neighbours:
            found |= dict.fromkeys(map(self.called, NAMES), "neighbours=0 leaves it out")
        if not self.how.memorisation:
            found[self.called("memorised")] = "memorisation=false leaves it out" if self.how.most is None else \
                f"it needs the whole reference, and this network sees {self.how.most:,} images at most"
        return found

    # ---- a stream ----

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.network.parameters()).device
        features, logits = self.network(images.to(device))
        return features.cpu(), logits.cpu()

    def begin(self, n: int) -> None:
        """Starts a new stream of n images, of which the first `how.most` count."""
        self.room = self.bounded(n)
        self.suite.begin(self.room)
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.values: dict[str, list[Tensor]] = {}

    def look(self, images: Tensor, labels: Tensor | None = None, *, pairs: Tensor | None = None) -> None:
        """Processes uint8 images `(m, c, h, w)`.

        Args:
            images: the next ones of the stream.
            labels: what they should show, `(m,)`; counted if the network knows the data's classes.
            pairs: position of each image's true counterpart in the reference, `(m,)`.
        """
        if not self.room:
            return
        images, labels = images[: self.room], labels[: self.room] if labels is not None else None
        pairs = pairs[: self.room] if pairs is not None else None
        self.room -= len(images)
        features, logits = self._see(images)
        self.suite.add(features, logits)
        if sum(len(part) for part in self.logits) < KEPT:
            self.logits.append(logits)
        if labels is not None:
            self.labels.append(labels.cpu())
        if labels is not None and self.network.classes is not None:
            self.values.setdefault("label_accuracy", []).append((logits.argmax(1) == labels.cpu()).double())
        if pairs is not None:
            alike = F.cosine_similarity(features, self.real[pairs])
            self.values.setdefault(self.called("similarity"), []).append(alike.double())

    def nearest(self, features: Tensor | None = None, k: int = NEAREST) -> tuple[Tensor, Tensor]:
        """Distances and indices `(m, k)` of the reference's features nearest to `features`, or to the stream's."""
        assert self.neighbours is not None
        own = self.suite.kept(real=False) if features is None else features
        centre = self.neighbours[:KEPT].float().mean(0, keepdim=True)
        return nearest(own, self.neighbours.split(KEPT), centre, k=min(k, len(self.neighbours)))

    @property
    def knows_all(self) -> bool:
        """Whether the features of all images of the reference are kept."""
        return len(self.real) == self.source.count

    def called(self, name: str) -> str:
        """A score's name with this network."""
        return f"{name}_{self.network.name}"

    def scores(self, *, errors: bool = True) -> dict[str, Estimate]:
        """Every score of the images since `begin`, with intervals if `errors`."""
        values = self.suite.scores()
        n = self.suite.generated
        found: dict[str, Estimate] = {}
        fakes = self.suite.kept(real=False)
        m = len(fakes)
        resampled: dict[str, tuple[Tensor, int]] = {}
        drawn, strata = None, torch.cat(self.labels)[:m] if self.labels else None
        if errors and self.how.resamples:
            drawn = bootstrap.draws(m, self.how.resamples, self.how.seed, strata)
            resampled[self.suite.names["fd"]] = self.suite.frechet_resamples(drawn), m
            resampled[self.suite.names["kd"]] = bootstrap.kernel_resamples(
                fakes, self.real, self.how.resamples, self.how.seed, strata
            )
            if self.suite.names["is"] in values:
                logits = torch.cat(self.logits)[:m]
                resampled[self.suite.names["is"]] = bootstrap.inception_resamples(logits, drawn), m
        if self.how.neighbours and m > self.how.neighbours < len(self.real):
            spread, redrawn = self._around(m).compare(fakes, drawn)
            values |= {self.called(name): value.item() for name, value in spread.items()}
            if drawn is not None:
                resampled |= {self.called(name): (value, m) for name, value in redrawn.items()}
        for name, value in values.items():
            error = bootstrap.standard_error(resampled[name][0], kept=resampled[name][1], n=n) if resampled else None
            found[name] = self._score(name, value, error)
        for name, parts in self.values.items():
            found[name] = self.mean(name, torch.cat(parts), errors=drawn is not None)
        if self.limit is not None:
            name = self.called("memorised")
            self.near = self.nearest()
            apart = self.near[0][:, 0]
            again = (apart < self.limit) | copies(apart, fakes)
            found[name] = self.mean(name, again.double(), errors=drawn is not None)
        return found

    def _around(self, m: int) -> Manifold:
        """The manifold of as many real images as were generated."""
        real = self.real[:m]
        if self._manifold is None or len(self._manifold.real) != len(real):
            self._manifold = Manifold(real, k=self.how.neighbours)
        return self._manifold

    def mean(self, name: str, values: Tensor, *, errors: bool = True) -> Estimate:
        """The mean of a value per image, with the interval that the bootstrap converges to."""
        error = values.std().item() / math.sqrt(len(values)) if errors and len(values) > 1 else None
        return self._score(name, values.double().mean().item(), error)

    def _score(self, name: str, value: float, error: float | None) -> Estimate:
        low, high = bootstrap.bounded(name, value, error)
        return Estimate(value, low, high, self.floors.get(name))

    # ---- the record ----

    def compared(self) -> dict[str, Any]:
        """How many images were compared with what; the whole protocol of a score without a network."""
        return {
            "num_samples": self.suite.generated,
            "data": self.source.name,
            "data_fingerprint": self.source.fingerprint,
            "split": self.source.split,
            "seed": self.how.seed,
        }

    def protocol(self) -> dict[str, Any]:
        """How the stream was scored: the part that all scores of this network share."""
        return {
            **self.network.facts(),
            **self.compared(),
            "num_reals": self.num_reals,
            **self.suite.protocol(self.suite.generated),
            "kept": KEPT,
            "neighbours": self.how.neighbours,
            "memorised_limit": self.limit,
            "searched": len(self.neighbours) if self.neighbours is not None else 0,
        }
