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

from aigc.callbacks.evaluating import evaluating
from aigc.callbacks.scoring import Scoring, collect, place
from aigc.errors import UserError, check_count
from aigc.metrics.attributes import SPLITS, found_and_asked, found_clear, reads_back, shares, shows_shapes
from aigc.metrics.cache import keep_cached, load_cached, real_key
from aigc.metrics.enough import (
    ROUNDING,
    no_floor,
    no_inception_score,
    no_label_accuracy,
    smaller_subsets,
    too_few,
)
from aigc.metrics.features import to_uint8
from aigc.metrics.items import counted, items, samples
from aigc.models.family import Family

log = logging.getLogger(__name__)


class Scores(Scoring):
    """Every `every_images` and at the end: the family's own losses on held-out images, as `val/<name>`, and scores.

    Scores over a feature network are `fd_<network>` (Fréchet distance), `kd_<network>` (kernel distance),
    `is_<network>` (inception score), called fid, kid and is for the published Inception-v3 alone; `label_accuracy` is
    how often the data's classifier sees the label that was asked for. The floor is the Fréchet distance of as many
    real test images to the same reference; `<fd>_over_floor` says how many times the samples are as far.

    With condition=text and data that can read attributes back from an image, `attributes/seen/<attribute>` and
    `attributes/heldout/<attribute>` are how often it is as the caption asks (metrics/attributes.py). With
    condition=none and such data of single objects, `attributes/clear` is how often one clear known shape is seen.
    """

    def __init__(
        self,
        *,
        network: str | None,                    # classifier, inception or squeezenet; None: no scores over features
        every_images: int,                      # seen, between two scorings
        batch_size: int,                        # images at once, on every device
        num_samples: int | None = None,         # images made for a scoring; None: only without a network
        num_reals: int | None = None,           # reference images, at most; None: all of the split
        num_samples_final: int | None = None,   # at the end also as many, as `final/<score>`; None: no other number
        split: str = "train",                   # whose images are the reference, and whose conditions are used
        balanced: bool = True,                  # labels as conditions: equally many of each class; else as in the data
        attribute_samples: int = 0,             # condition=text: images read back, of seen and of held-out captions
        validation_images: int = 0,             # held-out images for the family's own losses, at most
        weights: str | None = None,             # local file of the network's weights; None: download
        preprocessing: str | None = None,       # of squeezenet's weights: caffe or torchvision
        monitor: str | None = None,             # the score that says which model is best; None: the Fréchet distance
        mode: str = "min",                      # whether less of it is better, or more (max)
        kd_subsets: int = 100,                  # see metrics/suite.py
        kd_subset_size: int = 1000,
        seed: int = 0,                          # of the samples; the same for every run, so that scores compare
    ):
        super().__init__(
            network=network, weights=weights, preprocessing=preprocessing, every_images=every_images,
            batch_size=batch_size, validation_images=validation_images, monitor=monitor, mode=mode,
            kd_subsets=kd_subsets, kd_subset_size=kd_subset_size, seed=seed,
        )
        check_count("metrics.attribute_samples", attribute_samples, least=0)
        check_count("metrics.num_samples", num_samples, least=2, optional=True)
        check_count("metrics.num_reals", num_reals, least=2, optional=True)
        check_count("metrics.num_samples_final", num_samples_final, least=num_samples or 2, optional=True)
        if network is not None and num_samples is None:
            raise UserError(f"metrics.network={network} needs metrics.num_samples=<images made for a scoring>")
        self.num_samples = num_samples or 0
        self.num_samples_final = num_samples_final or self.num_samples
        self.num_reals = num_reals
        self.split = split
        self.balanced = balanced
        self.attribute_samples = attribute_samples
        self.suite: Any = None                  # metrics.suite.Suite; on rank 0 it knows the real side
        self.floors: dict[int, float] = {}      # Fréchet distance of so many real test images

    @property
    def more_at_end(self) -> bool:
        """Whether more samples are made at the end."""
        return self.num_samples_final != self.num_samples

    def measure(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of samples and of their attributes, complete on rank 0."""
        scores: dict[str, float] = {}
        if self.suite is not None:
            scores |= self._samples(trainer, pl_module, self.num_samples_final if final else self.num_samples)
        if self.attribute_samples and reads_back(trainer.datamodule, pl_module):  # type: ignore[attr-defined]
            scores |= self._attributes(trainer, pl_module)
        elif self.attribute_samples and shows_shapes(trainer.datamodule, pl_module):  # type: ignore[attr-defined]
            scores |= self._clear(trainer, pl_module)
        return scores

    def _samples(self, trainer: L.Trainer, pl_module: Family, n: int) -> dict[str, float]:
        """Scores of n samples, complete on rank 0; of the first `num_samples` under the plain names."""
        assert self.network is not None
        data, network = trainer.datamodule, self.network  # type: ignore[attr-defined]
        labelled = pl_module.hparams.get("condition", "none") == "label"
        judged = labelled and network.classes is not None and network.classes == data.classes
        rows: list[Tensor] = []
        numbers: list[int] = []
        counter: Any = SimpleNamespace(rows=0)
        with counted(pl_module, counter):
            for part, batch, made in samples(pl_module, data, self.split, n, batch_size=self.batch_size,
                                             seed=self.seed, balanced=self.balanced, **place(trainer)):
                features, logits = network(made)
                seen = (logits.argmax(1).cpu() == batch["label"]).float() if judged else torch.zeros(len(part))
                rows.append(torch.cat([features.cpu(), logits.cpu(), seen[:, None]], 1))
                numbers += part
        self.sampling = {"evaluations": round(counter.rows / max(1, len(numbers)), 3) or 1.0}
        table = collect(trainer, pl_module.device, numbers, rows, n)
        if not trainer.is_global_zero:
            return {}
        scores = self._measure(table[: self.num_samples], judged)
        if n != self.num_samples:
            scores |= {f"final/{name}": value for name, value in self._measure(table, judged).items()}
        return scores

    def _measure(self, table: Tensor, judged: bool) -> dict[str, float]:
        """Scores of samples by their rows `(n, d + k + 1)`: features, logits, and whether the label was seen."""
        d = self.suite.num_features
        scores = self.suite.compute(table[:, :d], table[:, d:-1])
        floor, name = self.floors.get(len(table), 0.0), self.suite.names["fd"]
        if floor > ROUNDING:
            scores[f"{name}_over_floor"] = scores[name] / floor
        if judged:
            scores["label_accuracy"] = table[:, -1].mean().item()
        return scores

    def _attributes(self, trainer: L.Trainer, pl_module: Family) -> dict[str, float]:
        """How often attributes are as the captions of test and of held-out combinations ask; complete on rank 0."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not trainer.is_global_zero:   # rank 0 makes what reads, the others find it in the cache
            trainer.strategy.barrier()
        data.read_back(torch.zeros(1, data.channels, *data.size, dtype=torch.uint8, device=pl_module.device))
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
        data.clear(torch.zeros(1, data.channels, *data.size, dtype=torch.uint8, device=pl_module.device))
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
        from aigc.metrics.suite import Suite

        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.count(self.split) < 2:
            raise UserError(f"{data.name} has one image in {self.split}, and distances need at least two: add images, "
                            "or choose metrics=losses")
        with evaluating(pl_module):
            network = self.build(trainer, pl_module)
            suite = Suite(network, kd_subsets=self.kd_subsets, kd_subset_size=self.kd_subset_size, seed=self.seed)
            count = min(self.num_reals or data.count(self.split), data.count(self.split))
            self._load_reals(trainer, pl_module, suite, count)
            tested = 0 if self.split == "test" or "test" not in data.splits else data.count("test")
            floors = {n: self._floor(trainer, pl_module, suite, count, n)
                      for n in {self.num_samples, self.num_samples_final} if n <= tested}
            self.floors = {n: value for n, value in floors.items() if value is not None}
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
        self._say(data, pl_module, count)

    def _say(self, data: Any, pl_module: Family, reals: int) -> None:
        """Notes what there are too few images for, and why a score is not taken."""
        network, n = self.network, self.num_samples
        assert network is not None
        notes = (too_few({"samples": n, "reference images": reals}, network.num_features),
                 smaller_subsets(self.kd_subset_size, min(self.kd_subset_size, n, reals)))
        self.notes = [note for note in notes if note]
        names, condition = network.score_names(), pl_module.hparams.get("condition", "none")
        held = None if self.split == "test" or "test" not in data.splits else data.count("test")
        over = f"{names['fd']}_over_floor"
        reasons = {over: no_floor(n, held, self.floors.get(n)),
                   "label_accuracy": no_label_accuracy(condition, network.classes, data.classes),
                   names["is"]: no_inception_score(n, classifies=network.classifies)}
        if self.more_at_end:
            more = self.num_samples_final
            reasons[f"final/{over}"] = no_floor(more, held, self.floors.get(more))
        chosen = {over: self.split == "test", f"final/{over}": self.split == "test",
                  "label_accuracy": condition != "label", names["is"]: not network.classifies and not data.classes}
        for name, reason in reasons.items():
            if reason:
                (self.ruled_out if chosen[name] else self.missing)[name] = reason

    def _load_reals(self, trainer: L.Trainer, pl_module: Family, suite: Any, count: int) -> None:
        assert self.network is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        key = real_key(self.network, data.sequence, self.split, "reals", count)
        state = load_cached(key) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(state is not None, src=0):
            started = time.perf_counter()
            features = self._real_features(trainer, pl_module, self.split, count)
            if trainer.is_global_zero:
                suite.add_real(features)
                state = suite.real_state()
                keep_cached(key, state)
                log.info("looked at %s real images (%.0f s)", f"{count:,}", time.perf_counter() - started)
        if trainer.is_global_zero:
            suite.load_real(state)

    def _floor(
        self, trainer: L.Trainer, pl_module: Family, suite: Any, count: int, n: int
    ) -> float | None:
        """Fréchet distance of n test images to the reference; known to rank 0."""
        assert self.network is not None
        data = trainer.datamodule  # type: ignore[attr-defined]
        key = real_key(self.network, data.sequence, self.split, "floor", count, n)
        floor = load_cached(key) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(floor is not None, src=0):
            features = self._real_features(trainer, pl_module, "test", n)
            if trainer.is_global_zero:
                floor = suite.distance_to_real(features)
                keep_cached(key, floor)
        return floor

    def _real_features(self, trainer: L.Trainer, pl_module: Family, split: str, n: int) -> Tensor:
        """Features `(n, d)` of the first n items of a split, on all ranks."""
        assert self.network is not None
        data, rows, numbers = trainer.datamodule, [], []  # type: ignore[attr-defined]
        for part, batch in items(data, split, n, batch_size=self.batch_size, **place(trainer)):
            real = to_uint8(pl_module.reals(data.prepare(batch, pl_module.device)))
            rows.append(self.network(real)[0].cpu())
            numbers += part
        return collect(trainer, pl_module.device, numbers, rows, n)
