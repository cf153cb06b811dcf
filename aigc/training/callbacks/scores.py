"""Scores a family while it trains and when it is done: held-out losses, and samples against real images.

The same protocol for every family and every run: the items and the seeds of the samples are fixed, so two runs differ
by their models only. Several devices share the work and give the numbers of one.
"""

import logging
import time
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from aigc.errors import UserError, check_count
from aigc.files.cache import keep_cached, load_cached
from aigc.images.grids import to_uint8
from aigc.images.streams import counting, items, samples
from aigc.models.family import Family
from aigc.scoring.enough import ROUNDING, no_floor, no_inception_score, no_label_accuracy, smaller_subsets, too_few
from aigc.scoring.networks.features import FeatureNetwork, real_key
from aigc.scoring.networks.oracle import oracle_of
from aigc.scoring.scores.attributes import SPLITS, found_and_asked, found_clear, reads_back, shares, shows_shapes
from aigc.training.callbacks.evaluating import evaluating
from aigc.training.callbacks.scoring import Scoring, collect, place

log = logging.getLogger(__name__)


class Scores(Scoring):
    """Every `every_images` and at the end: the family's own losses on held-out images, as `val/<name>`, and scores.

    Scores over a feature network are `fd_<network>` (Fréchet distance), `kd_<network>` (kernel distance),
    `is_<network>` (inception score), called fid, kid and is for the published Inception-v3 alone; `label_accuracy` is
    how often the data's classifier sees the label that was asked for. The floor is the Fréchet distance of as many
    real test images to the same reference; `<fd>_over_floor` says how many times the samples are as far. A second
    network, which costs many times the first, gives the same scores at the end only, of `second_images` at most.

    With condition=text and data that can read attributes back from an image, `attributes/seen/<attribute>` and
    `attributes/heldout/<attribute>` are how often it is as the caption asks (scoring/scores/attributes.py). With
    condition=none and such data of single objects, `attributes/clear` is how often one clear known shape is seen.
    """

    def __init__(
        self,
        *,
        network: str | None,                    # a name of metrics.networks.NETWORKS; None: no scores over features
        every_images: int,                      # seen, between two scorings
        batch_size: int,                        # images at once, on every device
        num_samples: int | None = None,         # images made for a scoring; None: only without a network
        num_reals: int | None = None,           # reference images, at most; None: all of the split
        second: str | None = None,              # another, at the end; auto: a foreign one beside the classifier
        second_images: int = 2000,              # samples and reference images that it sees, at most
        num_samples_final: int | None = None,   # at the end also as many, as `final/<score>`; None: no other number
        split: str = "train",                   # whose images are the reference, and whose conditions are used
        balanced: bool = True,                  # labels as conditions: equally many of each class; else as in the data
        attribute_samples: int = 0,             # condition=text: images read back, of seen and of held-out captions
        validation_images: int = 0,             # held-out images for the family's own losses, at most
        weights: str | None = None,             # local file of the network's weights; None: download
        preprocessing: str | None = None,       # of squeezenet's weights: caffe or torchvision
        monitor: str | None = None,             # the score that says which model is best; None: the Fréchet distance
        mode: str | None = None,                # less is better (min), or more (max); None: as the catalogue says
        kd_subsets: int = 100,                  # see scoring/suite.py
        kd_subset_size: int = 1000,
        seed: int = 0,                          # of the samples; the same for every run, so that scores compare
    ):
        super().__init__(
            network=network, second=second, weights=weights, preprocessing=preprocessing, every_images=every_images,
            batch_size=batch_size, validation_images=validation_images, monitor=monitor, mode=mode,
            kd_subsets=kd_subsets, kd_subset_size=kd_subset_size, seed=seed,
        )
        check_count("metrics.attribute_samples", attribute_samples, least=0)
        check_count("metrics.num_samples", num_samples, least=2, optional=True)
        check_count("metrics.num_reals", num_reals, least=2, optional=True)
        check_count("metrics.second_images", second_images, least=2)
        check_count("metrics.num_samples_final", num_samples_final, least=num_samples or 2, optional=True)
        if network is not None and num_samples is None:
            raise UserError(f"metrics.network={network} needs metrics.num_samples=<images made for a scoring>")
        self.num_samples = num_samples or 0
        self.num_samples_final = num_samples_final or self.num_samples
        self.num_reals = num_reals
        self.second_images = second_images
        self.split = split
        self.balanced = balanced
        self.attribute_samples = attribute_samples
        self.suite: Any = None                  # metrics.suite.Suite; on rank 0 it knows the real side
        self.floors: dict[int, float] = {}      # Fréchet distance of so many real test images

    @property
    def more_at_end(self) -> bool:
        """Whether more samples are made at the end, or a second network looks at them."""
        return self.num_samples_final != self.num_samples or self.second is not None

    def measure(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of samples and of their attributes, complete on rank 0."""
        scores: dict[str, float] = {}
        if self.suite is not None:
            scores |= self._samples(trainer, pl_module, final=final)
        if self.attribute_samples and reads_back(trainer.datamodule, pl_module):  # type: ignore[attr-defined]
            scores |= self._attributes(trainer, pl_module)
        elif self.attribute_samples and shows_shapes(trainer.datamodule, pl_module):  # type: ignore[attr-defined]
            scores |= self._clear(trainer, pl_module)
        return scores

    def _samples(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of samples, complete on rank 0; of the first `num_samples` under the plain names."""
        assert self.network is not None
        n, second = (self.num_samples_final, self.second) if final else (self.num_samples, None)
        m = min(self.num_samples, self.second_images)       # which the second network sees
        data, network = trainer.datamodule, self.network  # type: ignore[attr-defined]
        labelled = pl_module.hparams.get("condition", "none") == "label"
        judged = labelled and network.classes is not None and network.classes == data.classes
        rows: list[Tensor] = []
        numbers: list[int] = []
        other_rows: list[Tensor] = []
        other_numbers: list[int] = []
        counter: Any = SimpleNamespace(rows=0)
        with counting(pl_module, counter):
            for part, batch, made in samples(pl_module, data, self.split, n, batch_size=self.batch_size,
                                             seed=self.seed, balanced=self.balanced, **place(trainer)):
                features, logits = network(made)
                seen = (logits.argmax(1).cpu() == batch["label"]).float() if judged else torch.zeros(len(part))
                rows.append(torch.cat([features.cpu(), logits.cpu(), seen[:, None]], 1))
                numbers += part
                if second is not None and (chosen := [k for k, number in enumerate(part) if number < m]):
                    other_rows.append(torch.cat([found.cpu() for found in second(made[chosen])], 1))
                    other_numbers += [part[k] for k in chosen]
        self.sampling = {"evaluations": round(counter.rows / max(1, len(numbers)), 3) or 1.0}
        table = collect(trainer, pl_module.device, numbers, rows, n)
        beside = {}
        if second is not None:
            seen = collect(trainer, pl_module.device, other_numbers, other_rows, m)
            beside = self._measure_second(trainer, pl_module, seen)
        if not trainer.is_global_zero:
            return {}
        scores = self._measure(table[: self.num_samples], judged) | beside
        if n != self.num_samples:
            scores |= {f"final/{name}": value for name, value in self._measure(table, judged).items()}
        return scores

    def _measure(self, table: Tensor, judged: bool) -> dict[str, float]:
        """Scores of samples by their rows `(n, d + k + 1)`: features, logits, and whether the label was seen."""
        d = self.suite.num_features
        scores = _distances(self.suite, self.floors, table[:, :d], table[:, d:-1])
        if judged:
            scores["label_accuracy"] = table[:, -1].mean().item()
        return scores

    def _measure_second(self, trainer: L.Trainer, pl_module: Family, table: Tensor) -> dict[str, float]:
        """Scores over the second network of samples by their rows `(m, d + k)`; complete on rank 0."""
        assert self.second is not None
        m, d = len(table), self.second.num_features
        suite, floors = self._learn(trainer, pl_module, self.second, self.second_reals(trainer), {m})
        if not trainer.is_global_zero:
            return {}
        scores = _distances(suite, floors, table[:, :d], table[:, d:])
        self._say(trainer.datamodule, self.second, m, self.second_reals(trainer), floors)  # type: ignore[attr-defined]
        self.protocol["second"] = {
            "scores": list(scores), "metric": suite.names["fd"], **self.second.facts(), "num_samples": m,
            "num_reals": self.second_reals(trainer), "floor": floors.get(m), **suite.protocol(m),
        }
        return scores

    def _attributes(self, trainer: L.Trainer, pl_module: Family) -> dict[str, float]:
        """How often attributes are as the captions of test and of held-out combinations ask; complete on rank 0."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:   # rank 0 makes what reads, the others find it in the cache
            trainer.strategy.barrier()
        oracle_of(data).to(pl_module.device)
        if trainer.is_global_zero:
            trainer.strategy.barrier()
        n = self.attribute_samples
        scores: dict[str, float] = {}
        for name, split in SPLITS.items():
            if split in data.splits:
                numbers, rows = found_and_asked(pl_module, data, split, n, batch_size=self.batch_size, seed=self.seed,
                                                **place(trainer))
                table = collect(trainer, pl_module.device, numbers, rows, n).long()
                if trainer.is_global_zero:
                    found = shares(*table.tensor_split(2, dim=1))
                    scores |= {f"attributes/{name}/{key}": value for key, value in found.items()}
        return scores

    def _clear(self, trainer: L.Trainer, pl_module: Family) -> dict[str, float]:
        """The share of samples that show one clear known shape; complete on rank 0."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:   # rank 0 makes what reads, the others find it in the cache
            trainer.strategy.barrier()
        oracle_of(data).to(pl_module.device)
        if trainer.is_global_zero:
            trainer.strategy.barrier()
        n = self.attribute_samples
        numbers, rows = found_clear(pl_module, data, n, batch_size=self.batch_size, seed=self.seed, **place(trainer))
        table = collect(trainer, pl_module.device, numbers, rows, n)
        return {"attributes/clear": table.mean().item()} if trainer.is_global_zero else {}

    # ---- the real side ----

    def prepare(self, trainer: L.Trainer, pl_module: Family) -> None:
        """Loads the feature network, the real statistics and the floor, or makes and caches them; once.

        Raises:
            UserError: weights are missing, or a split is.
        """
        if self.network_name is None or self.suite is not None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.count(self.split) < 2:
            raise UserError(f"{data.name} has one image in {self.split}, and distances need at least two: add images, "
                            "or choose metrics=losses")
        with evaluating(pl_module):
            network = self.build(trainer, pl_module)
            count = self.reals(trainer)
            sizes = {self.num_samples, self.num_samples_final}
            suite, self.floors = self._learn(trainer, pl_module, network, count, sizes)
        if self.monitor is None:
            self.monitor = suite.names["fd"]
        self.protocol = {
            "metric": suite.names["fd"],
            **network.facts(),
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "split": self.split,
            "num_samples": self.num_samples,
            "num_samples_final": self.num_samples_final,
            "num_reals": count,
            "balanced": self.balanced,
            "seed": self.seed,
            "attribute_samples": self.attribute_samples
            if reads_back(data, pl_module) or shows_shapes(data, pl_module) else 0,
            "floor": self.floors.get(self.num_samples),
            "floor_final": self.floors.get(self.num_samples_final),
            **suite.protocol(self.num_samples),
        }
        self.suite = suite
        self._say(data, network, self.num_samples, count, self.floors)
        condition, more = pl_module.hparams.get("condition", "none"), self.num_samples_final
        self._without("label_accuracy", no_label_accuracy(condition, network.classes, data.classes),
                      condition != "label")
        if more != self.num_samples:
            self._without(f"final/{suite.names['fd']}_over_floor",
                          no_floor(more, self._held(data), self.floors.get(more)), self.split == "test")
        if self.second is not None:
            self._say(data, self.second, min(self.num_samples, self.second_images), self.second_reals(trainer), {})

    def reals(self, trainer: L.Trainer) -> int:
        """How many reference images there are."""
        count = trainer.datamodule.count(self.split)  # type: ignore[attr-defined]
        return min(self.num_reals or count, count)

    def second_reals(self, trainer: L.Trainer) -> int:
        """How many of them the second network sees."""
        return min(self.reals(trainer), self.second_images)

    def _say(
        self, data: Any, network: FeatureNetwork, n: int, reals: int, floors: dict[int, float]
    ) -> None:
        """Notes what there are too few images for, and why a score over a network is not taken."""
        notes = (too_few({"samples": n, "reference images": reals}, network.num_features),
                 smaller_subsets(self.kd_subset_size, min(self.kd_subset_size, n, reals)))
        self.notes += [note for note in notes if note and note not in self.notes]
        names = network.score_names()
        self._without(f"{names['fd']}_over_floor", no_floor(n, self._held(data), floors.get(n)), self.split == "test")
        self._without(names["is"], no_inception_score(n, classifies=network.classifies),
                      not network.classifies and not data.classes)

    def _without(self, name: str, reason: str | None, chosen: bool) -> None:
        """Records why there is no such score, if there is a reason; `chosen`: the user's own choices rule it out."""
        if reason:
            (self.ruled_out if chosen else self.missing)[name] = reason

    def _held(self, data: Any) -> int | None:
        """How many test images are held out of the reference; None: no split is."""
        return None if self.split == "test" or "test" not in data.splits else data.count("test")

    def _learn(
        self, trainer: L.Trainer, pl_module: Family, network: FeatureNetwork, count: int, sizes: set[int]
    ) -> tuple[Any, dict[int, float]]:
        """A network's suite, which on rank 0 knows the real side, and its floors of so many samples as there are."""
        from aigc.scoring.suite import Suite

        suite = Suite(network, kd_subsets=self.kd_subsets, kd_subset_size=self.kd_subset_size, seed=self.seed)
        self._load_reals(trainer, pl_module, network, suite, count)
        tested = self._held(trainer.datamodule) or 0  # type: ignore[attr-defined]
        floors = {n: self._floor(trainer, pl_module, network, suite, count, n) for n in sizes if n <= tested}
        return suite, {n: value for n, value in floors.items() if value is not None}

    def _load_reals(
        self, trainer: L.Trainer, pl_module: Family, network: FeatureNetwork, suite: Any, count: int
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        key = real_key(network, data.sequence, self.split, "reals", count)
        state = load_cached(key) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(state is not None, src=0):
            started = time.perf_counter()
            features = self._real_features(trainer, pl_module, network, self.split, count)
            if trainer.is_global_zero:
                suite.add_real(features)
                state = suite.real_state()
                keep_cached(key, state)
                log.info("%s looked at %s real images (%.0f s)", network.name, f"{count:,}",
                         time.perf_counter() - started)
        if trainer.is_global_zero:
            suite.load_real(state)

    def _floor(
        self, trainer: L.Trainer, pl_module: Family, network: FeatureNetwork, suite: Any, count: int, n: int
    ) -> float | None:
        """Fréchet distance of n test images to the reference; known to rank 0."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        key = real_key(network, data.sequence, self.split, "floor", count, n)
        floor = load_cached(key) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(floor is not None, src=0):
            features = self._real_features(trainer, pl_module, network, "test", n)
            if trainer.is_global_zero:
                floor = suite.distance_to_real(features)
                keep_cached(key, floor)
        return floor

    def _real_features(
        self, trainer: L.Trainer, pl_module: Family, network: FeatureNetwork, split: str, n: int
    ) -> Tensor:
        """Features `(n, d)` of the first n items of a split, on all ranks."""
        data, rows, numbers = trainer.datamodule, [], []  # type: ignore[attr-defined]
        for part, batch in items(data, split, n, batch_size=self.batch_size, **place(trainer)):
            real = to_uint8(pl_module.reals(data.prepare(batch, pl_module.device)))
            rows.append(network(real)[0].cpu())
            numbers += part
        return collect(trainer, pl_module.device, numbers, rows, n)


def _distances(suite: Any, floors: dict[int, float], features: Tensor, logits: Tensor) -> dict[str, float]:
    """Scores of n samples over a network, and how many times as far as real images they are, where that is known."""
    scores = suite.compute(features, logits)
    name = suite.names["fd"]
    if (floor := floors.get(len(features), 0.0)) > ROUNDING:
        scores[f"{name}_over_floor"] = scores[name] / floor
    return scores
