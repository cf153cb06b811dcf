"""One feature network's scores of a stream of images against one reference, with intervals and floors.

Training and evaluation score by it alike; they differ in `How`. Features are computed once for all scores. On one
device memory does not grow with the length of a stream: only sums and the first `KEPT` features and logits are kept.
Several devices look at shares of the images, and `together` they bring what they saw into the order of one. The real
side is processed once and cached (aigc/files/cache.py).
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError
from aigc.files.cache import keep_cached, load_cached
from aigc.scoring import bootstrap
from aigc.scoring.bootstrap import Estimate
from aigc.scoring.devices import ALONE, Devices
from aigc.scoring.enough import ROUNDING, smaller_subsets, too_few
from aigc.scoring.networks.features import FeatureNetwork, real_key
from aigc.scoring.scores.memorisation import LEAST, NEAREST, SHARE, copies, nearest, no_memorised, threshold
from aigc.scoring.sources import Source
from aigc.scoring.suite import KEPT, Suite

SEARCHED = 60_000          # most real images searched for nearest neighbours
PAIRED = ("psnr", "ssim")  # what may be known of each image of a stream besides
VERSION = 2                # of a floor's content: a change makes new cache entries

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """How images are scored, the same for every network."""

    kd_subsets: int                 # see scoring/suite.py
    kd_subset_size: int
    batch_size: int                 # images at a time
    seed: int                       # of subsets, splits and resamples
    neighbours: int = 0             # k of precision, recall, density and coverage; 0: none of them
    memorisation: bool = False      # whether to search for nearest neighbours
    resamples: int = 0              # of the bootstrap; 0: no intervals
    num_reals: int | None = None    # most images of the reference; None: all
    most: int | None = None         # images of a stream that are looked at, the first ones; None: all
    extra: tuple[str, ...] = ()     # modules of scores besides this package's
    together: bool = False          # adds what was seen of a stream at once, as several devices must
    logits: bool = True             # whether scores read them; training's of translations do not
    flags: torch.dtype = torch.float64      # in which shares of images are averaged; training's are float32


class Panel:
    """Scores one stream of images after another (`begin`, `look`, `gather`, `scores`) against one reference.

    Attributes:
        real: features of the reference that are kept, `(m, d)`.
        num_reals, size: how many of its images were looked at, and how many there are.
        floors: scores of as many real images outside the reference, by name.
        distances: Fréchet distance of so many of them, where that alone is known.
        near: result of `nearest` at the last scoring.
    """

    def __init__(self, network: FeatureNetwork, how: How, devices: Devices = ALONE):
        self.network, self.how, self.devices = network, how, devices
        self.suite = self._suite()
        self.neighbours: Tensor | None = None       # features (n, d) of real images in half precision
        self.paired = False                         # images have true counterparts in the reference
        self.limit: float | None = None             # distance below which an image counts as memorised
        self.floors: dict[str, float] = {}
        self.distances: dict[int, float] = {}
        self.near: tuple[Tensor, Tensor] | None = None

    def bounded(self, n: int) -> int:
        """How many of n images are looked at."""
        return min(n, self.how.most or n)

    # ---- the real side ----

    def _suite(self) -> Suite:
        h = self.how
        return Suite(self.network, kd_subsets=h.kd_subsets, kd_subset_size=h.kd_subset_size, neighbours=h.neighbours,
                     seed=h.seed, extra=h.extra)

    def learn(self, source: Source) -> None:
        """Processes the reference, or loads the results from the cache; on the first device.

        Raises:
            UserError: it has fewer than two images.
        """
        h, n, first = self.how, min(self.how.num_reals or source.count, source.count), self.devices.first
        self.source, self.suite, self.num_reals, self.size = source, self._suite(), n, source.count
        keys = [real_key(self.network, source.sequence, source.split, kind, n) for kind in ("reals", "neighbours")]
        state: Any = load_cached(keys[0]) if first else None
        wide = load_cached(keys[1]) if first and h.memorisation else None
        if not self.devices.broadcast(state is not None and (wide is not None or not h.memorisation)):
            started = time.perf_counter()
            parts: list[Tensor] = []
            for seen in self._seen(source, n):
                if not first:
                    continue
                self.suite.add_real(seen["features"])
                if h.memorisation and sum(len(part) for part in parts) < SEARCHED:
                    parts.append(seen["features"].half())
            if first:
                if int(self.suite.frechet.real_features_num_samples) < 2:
                    raise UserError(f"fewer than two images of {source.name} could be read: distances need at least "
                                    "two")
                state, wide = self.suite.real_state(), torch.cat(parts)[:SEARCHED] if parts else None
                if not source.failures:     # a broken file may be repaired under the same name
                    keep_cached(keys[0], state)
                    if wide is not None:
                        keep_cached(keys[1], wide)
                log.info("%s looked at %s images of %s (%.0f s)", self.network.name, f"{n:,}", source.name,
                         time.perf_counter() - started)
        if first:
            self.suite.load_real(state)
            self.real, self.neighbours = self.suite.kept(real=True), wide
            self.num_reals = int(self.suite.frechet.real_features_num_samples)

    def know(self, features: Tensor) -> None:
        """Takes the features `(n, d)` of all images of the reference, which are known."""
        self.suite, self.real, self.num_reals, self.size = self._suite(), features, len(features), len(features)
        self.suite.add_real(features)

    def measure_floor(self, source: Source | None, n: int) -> None:
        """Scores n real images that the reference does not contain; without that many there is no floor.

        Without a source, distances among the reference's own images define what counts as memorised.
        """
        h, n = self.how, self.bounded(n)
        m = min(n, source.count) if source is not None else 0
        self.floors, self.limit = {}, None
        options = (VERSION, h.kd_subsets, h.kd_subset_size, h.neighbours, h.memorisation, h.seed, self.num_reals)
        other = (source.sequence, source.split) if source is not None else None
        key = real_key(self.network, self.source.sequence, self.source.split, "panel", other, m, *options, *h.extra)
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

    def measure_distance(self, source: Source, n: int) -> None:
        """Only the Fréchet distance of n real images that the reference does not contain; on the first device."""
        key = real_key(self.network, self.source.sequence, self.source.split, "floor", self.num_reals, n)
        distance = load_cached(key) if self.devices.first else None
        if not self.devices.broadcast(distance is not None):
            features = torch.cat([seen["features"] for seen in self._seen(source, n)])
            if self.devices.first:
                distance = self.suite.distance_to_real(features)
                keep_cached(key, distance)
        if distance is not None:
            self.distances[n] = distance

    def notes(self, n: int, what: str = "images") -> list[str]:
        """What to think of scores of n images, called `what`: of a judge that taught, and of too few images."""
        n = self.bounded(n)
        counts = {what: n, "reference images": self.num_reals}
        found = (self.network.biased(), too_few(counts, self.network.num_features),
                 smaller_subsets(self.how.kd_subset_size, min(self.how.kd_subset_size, n, self.num_reals, KEPT)))
        return [note for note in found if note]

    def missing(self, n: int) -> dict[str, str]:
        """Why n images have no score over this network, by its name."""
        reasons = {**self.suite.missing(self.bounded(n), len(self.real)),
                   self.called("memorised"): no_memorised(self.limit)}
        return {name: reason for name, reason in reasons.items() if reason and name not in self.ruled_out()}

    def ruled_out(self) -> dict[str, str]:
        """The scores that were not wanted, or that this network cannot give, with the reason."""
        found = self.suite.ruled_out()
        if not self.how.memorisation:
            found[self.called("memorised")] = "memorisation=false leaves it out" if self.how.most is None else \
                f"it needs the whole reference, and this network sees {self.how.most:,} images at most"
        return found

    # ---- a stream ----

    def see(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """What the network sees in uint8 images `(m, c, h, w)`: `features` `(m, d)` and `logits` `(m, k)`.

        Where the images have labels `(m,)`, and the network knows the data's classes, also which are `right` `(m,)`.
        """
        device = next(self.network.parameters()).device
        features, logits = self.network(images.to(device))
        seen = {"features": features.cpu()}
        if self.how.logits:
            seen["logits"] = logits.cpu()
        if labels is not None and self.network.classes is not None:
            seen["right"] = logits.argmax(1).cpu() == labels.cpu()
        return seen

    def _seen(self, source: Source, n: int) -> Iterator[dict[str, Tensor]]:
        """What it sees in the first n images of a source: batch by batch, or all together, on all devices."""
        if not self.how.together:
            yield from (self.see(batch["image"]) for batch in source.batches(n, self.how.batch_size))
            return
        numbers: list[int] = []
        parts = []
        for batch in source.batches(n, self.how.batch_size):
            parts.append({"features": self.see(batch["image"])["features"]})
            numbers += batch["numbers"]
        yield self.devices.collect(numbers, parts, n)

    def begin(self, n: int) -> None:
        """Starts a new stream of n images, of which the first `how.most` count."""
        self.count = 0
        self.waiting: list[dict[str, Tensor]] = []
        self.numbers: list[int] = []
        self.labels: list[Tensor] = []
        self.values: dict[str, list[Tensor]] = {}
        if not self.how.together:
            self.suite.begin(self.bounded(n))

    def look(
        self, images: Tensor, labels: Tensor | None = None, *, numbers: Sequence[int] | None = None, **known: Tensor
    ) -> None:
        """Processes uint8 images `(m, c, h, w)`.

        Args:
            images: the next ones of the stream.
            labels: what they should show, `(m,)`; counted if the network knows the data's classes.
            numbers: their places in the stream; None: those that follow.
            **known: what else is known of each image, `(m, ...)`, as for `add`: its `features` are not computed then.
        """
        places = list(numbers) if numbers is not None else [*range(self.count, self.count + len(images))]
        self.count += len(images)
        rows = [k for k, place in enumerate(places) if self.how.most is None or place < self.how.most]
        if not rows:
            return
        if len(rows) < len(images):
            images, labels = images[rows], labels[rows] if labels is not None else None
            known = {name: value[rows] for name, value in known.items()}
        seen = {**(self.see(images, labels) if "features" not in known else {}), **known}
        if labels is not None:
            seen["labels"] = labels.cpu()
        if self.how.together:
            self.waiting.append(seen)
            self.numbers += [places[k] for k in rows]
        else:
            self.add(seen)

    def gather(self, n: int) -> dict[str, Tensor]:
        """What all devices saw of a stream of n places, on all of them, in its order."""
        return self.devices.collect(self.numbers, self.waiting, n)

    def add(self, seen: Mapping[str, Tensor]) -> None:
        """Adds what was seen in the next images: their features, logits, labels, and what is right.

        `pairs` `(m,)` are the places of their true counterparts in the reference; `psnr` and `ssim` `(m,)` compare
        them with true counterparts elsewhere.
        """
        self.suite.add(seen["features"], seen.get("logits"))
        if "labels" in seen:
            self.labels.append(seen["labels"])
        if "right" in seen:
            self.values.setdefault("label_accuracy", []).append(seen["right"].to(self.how.flags))
        for name in PAIRED:
            if name in seen:
                self.values.setdefault(name, []).append(seen[name].double())
        if "pairs" in seen:
            alike = F.cosine_similarity(seen["features"], self.real[seen["pairs"]])
            self.values.setdefault(self.called("similarity"), []).append(alike.double())

    def scores_of(self, seen: Mapping[str, Tensor], n: int | None = None) -> dict[str, float]:
        """The values of all scores of what was gathered, of the first n images; as often as wanted."""
        n = len(seen["features"]) if n is None else n
        self.suite.begin(n)
        self.labels, self.values = [], {}
        self.add({name: value[:n] for name, value in seen.items()})
        return {name: score.value for name, score in self.scores(errors=False).items()}

    def nearest(self, features: Tensor | None = None, k: int = NEAREST) -> tuple[Tensor, Tensor]:
        """Distances and indices `(m, k)` of the reference's features nearest to `features`, or to the stream's."""
        assert self.neighbours is not None
        own = self.suite.kept(real=False) if features is None else features
        centre = self.neighbours[:KEPT].float().mean(0, keepdim=True)
        return nearest(own, self.neighbours.split(KEPT), centre, k=min(k, len(self.neighbours)))

    @property
    def knows_all(self) -> bool:
        """Whether the features of all images of the reference are kept."""
        return len(self.real) == self.size

    def called(self, name: str) -> str:
        """A score's name with this network."""
        return f"{name}_{self.network.name}"

    def scores(self, *, errors: bool = True) -> dict[str, Estimate]:
        """Every score of the images since `begin`, with intervals if `errors`."""
        n, m = self.suite.generated, len(self.suite.kept(real=False))
        drawn, strata = None, torch.cat(self.labels)[:m] if self.labels else None
        if errors and self.how.resamples:
            drawn = bootstrap.draws(m, self.how.resamples, self.how.seed, strata)
        found: dict[str, Estimate] = {}
        for name, one in self.suite.measure(drawn, strata).items():
            error = bootstrap.standard_error(one.again, kept=one.kept, n=n) if one.again is not None else None
            found[name] = self._score(name, one.value, error)
        distance = self.suite.names["fd"]
        if (floor := self.distances.get(n, 0.0)) > ROUNDING:
            found[f"{distance}_over_floor"] = Estimate(found[distance].value / floor)
        for name, parts in self.values.items():
            found[name] = self.mean(name, torch.cat(parts), errors=drawn is not None)
        if self.limit is not None:
            name, fakes = self.called("memorised"), self.suite.kept(real=False)
            self.near = self.nearest()
            apart = self.near[0][:, 0]
            again = (apart < self.limit) | copies(apart, fakes)
            found[name] = self.mean(name, again.double(), errors=drawn is not None)
        return found

    def mean(self, name: str, values: Tensor, *, errors: bool = True) -> Estimate:
        """The mean of a value per image, with the interval that the bootstrap converges to."""
        error = values.std().item() / math.sqrt(len(values)) if errors and len(values) > 1 else None
        return self._score(name, values.mean().item(), error)

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
