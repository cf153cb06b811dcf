"""Scores a family while it trains and when it is done: held-out losses, and samples against real images.

The same protocol for every family and every run: the items and the seeds of the samples are fixed, so two runs differ
by their models only. Several devices share the work and give the numbers of one.
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from aigc.callbacks.evaluating import evaluating
from aigc.errors import RunError, UserError, choices
from aigc.metrics.cache import keep_cached, load_cached
from aigc.metrics.features import FeatureNetwork, to_uint8
from aigc.metrics.items import balanced_labels, items, seeds_of
from aigc.models.family import Family
from aigc.noise import mix

NETWORKS = ("classifier", "inception")
REAL_VERSION = 1             # of what is kept of the real side: a change makes new cache entries

log = logging.getLogger(__name__)


class Scores(L.Callback):
    """Every `every_images` and at the end: the family's own losses on held-out images, as `val/<name>`, and scores.

    Scores over a feature network are `fd_<network>` (Fréchet distance), `kd_<network>` (kernel distance),
    `is_<network>` (inception score), called fid, kid and is for the published Inception-v3 alone; `label_accuracy` is
    how often the data's classifier sees the label that was asked for. The floor is the Fréchet distance of as many
    real test images to the same reference; `<fd>_over_floor` says how many times the samples are as far.

    Attributes:
        latest: the last scores by name.
        best: the best value of `monitor` so far, or None; `is_best` says whether the last scoring set it.
        history: images, seconds and scores of every scoring.
        protocol: how scores were measured, plain values; empty before training starts.
        scored_images: images seen at the last scoring.
    """

    def __init__(
        self,
        *,
        network: str | None,                    # classifier or inception; None: held-out losses only
        every_images: int,                      # seen, between two scorings
        num_samples: int,                       # images made for a scoring
        batch_size: int,                        # of them at once, on every device
        num_reals: int | None = None,           # reference images, at most; None: all of the split
        num_samples_final: int | None = None,   # at the end also as many, as `final/<score>`; None: no other number
        split: str = "train",                   # whose images are the reference, and whose conditions are used
        balanced: bool = True,                  # labels as conditions: equally many of each class; else as in the data
        validation_images: int = 0,             # held-out images for the family's own losses, at most
        weights: str | None = None,             # local file of the network's weights; None: download
        monitor: str | None = None,             # the score that says which model is best; None: the Fréchet distance
        mode: str = "min",                      # whether less of it is better, or more (max)
        kd_subsets: int = 100,                  # see metrics/suite.py
        kd_subset_size: int = 1000,
        seed: int = 0,                          # of the samples; the same for every run, so that scores compare
    ):
        if network is not None and network not in NETWORKS:
            raise UserError(f"metrics.network '{network}' is unknown: {choices(network, NETWORKS)}")
        if network == "classifier" and weights is not None:
            raise UserError("metrics.weights belongs to metrics=inception: the classifier is trained on the data")
        if mode not in ("min", "max"):
            raise UserError(f"metrics.mode '{mode}' is unknown: {choices(mode, ('min', 'max'))}")
        for name, value, least in (
            ("every_images", every_images, 1), ("batch_size", batch_size, 1), ("num_samples", num_samples, 2),
            ("num_reals", num_reals, 2), ("num_samples_final", num_samples_final, num_samples),
            ("validation_images", validation_images, 0), ("kd_subsets", kd_subsets, 1),
            ("kd_subset_size", kd_subset_size, 2),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(f"metrics.{name} must be a whole number of at least {least}, not {value!r}")
        self.network_name = network
        self.weights = weights
        self.every_images = every_images
        self.num_samples = num_samples
        self.num_samples_final = num_samples_final or num_samples
        self.num_reals = num_reals
        self.batch_size = batch_size
        self.split = split
        self.balanced = balanced
        self.validation_images = validation_images
        self.monitor = monitor
        self.mode = mode
        self.kd_subsets = kd_subsets
        self.kd_subset_size = kd_subset_size
        self.seed = seed
        self.network: FeatureNetwork | None = None
        self.suite: Any = None                  # metrics.suite.Suite; on rank 0 it knows the real side
        self.floors: dict[int, float] = {}      # Fréchet distance of so many real test images
        self.protocol: dict[str, Any] = {}
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        self.is_best = False
        self.scored_images = 0

    # ---- when ----

    def on_train_start(self, trainer: L.Trainer, pl_module: Family) -> None:  # type: ignore[override]
        """Gets the feature network and the real side ready, so that what is missing is said before training."""
        self.prepare(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Family, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scores when another `every_images` have been seen; the last step is scored at the end."""
        crossed = pl_module.progress.images // self.every_images > self.scored_images // self.every_images
        if crossed and not trainer.should_stop:
            self.score(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Family) -> None:  # type: ignore[override]
        """Scores what training has come to, unless a signal asks to end."""
        done = self.scored_images == pl_module.progress.images and self.num_samples_final == self.num_samples
        if not done and not pl_module.progress.interrupted:
            self.score(trainer, pl_module, final=True)

    def state_dict(self) -> dict[str, Any]:
        """What has been scored so far."""
        return {
            "scored_images": self.scored_images, "latest": self.latest, "best": self.best, "history": self.history,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from there: nothing is scored twice, nothing left out."""
        self.scored_images, self.best = state_dict["scored_images"], state_dict["best"]
        self.latest, self.history = dict(state_dict["latest"]), list(state_dict["history"])

    # ---- what ----

    def score(self, trainer: L.Trainer, pl_module: Family, *, final: bool = False) -> dict[str, float]:
        """Scores the family as it is now, logs it, and returns the scores by name; to be called on all ranks.

        Args:
            trainer: whose data and loggers are used.
            pl_module: the family.
            final: whether to make `num_samples_final` samples; their scores come as `final/<name>` beside the others,
                which stay comparable with earlier ones.

        Raises:
            RunError: samples are not finite.
            UserError: `monitor` is no score that this family has.
        """
        started = time.perf_counter()
        self.prepare(trainer, pl_module)
        with evaluating(pl_module):
            scores = self._held_out(trainer, pl_module)
            if self.suite is not None:
                scores |= self._samples(trainer, pl_module, self.num_samples_final if final else self.num_samples)
        scores = trainer.strategy.broadcast(scores, src=0)
        progress = pl_module.progress
        self.latest, self.scored_images = scores, progress.images
        self.history.append({"images": progress.images, "seconds": round(progress.seconds, 3), **scores})
        self._compare(scores)
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=progress.batches)
        if trainer.is_global_zero:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            log.info("%s images: %s (%.0f s)", f"{progress.images:,}", shown, time.perf_counter() - started)
        return scores

    def _compare(self, scores: dict[str, float]) -> None:
        if self.monitor is None:
            self.is_best = False
            return
        if self.monitor not in scores:
            raise UserError(f"metrics.monitor '{self.monitor}' is no score here: {choices(self.monitor, scores)}")
        value = scores[self.monitor]
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        self.is_best = math.isfinite(value) and better
        if self.is_best:
            self.best = value

    def _held_out(self, trainer: L.Trainer, pl_module: Family) -> dict[str, float]:
        """Means of what `validation_step` returns, over images; every batch has its own random numbers."""
        if not self.validation_images:
            return {}
        data = trainer.datamodule  # type: ignore[attr-defined]
        loader = data.eval_dataloader("validation", limit=self.validation_images, batch_size=self.batch_size)
        mine: list[tuple[int, int, dict[str, float]]] = []
        for k, batch in enumerate(loader):
            if k % trainer.world_size == trainer.global_rank:
                torch.manual_seed(mix(self.seed, k))
                losses: Any = pl_module.validation_step(data.prepare(batch, pl_module.device), k) or {}
                mine.append((k, len(batch["index"]), {name: float(value) for name, value in losses.items()}))
        batches = sorted((part for rank in gather(trainer, mine) for part in rank), key=lambda part: part[0])
        total = sum(n for _, n, _ in batches)
        names = batches[0][2] if batches else {}
        return {f"val/{name}": sum(n * losses[name] for _, n, losses in batches) / total for name in names}

    def _samples(self, trainer: L.Trainer, pl_module: Family, n: int) -> dict[str, float]:
        """Scores of n samples, complete on rank 0; of the first `num_samples` under the plain names."""
        assert self.network is not None
        data, network = trainer.datamodule, self.network  # type: ignore[attr-defined]
        labelled = pl_module.hparams.get("condition", "none") == "label"
        judged = labelled and network.classes is not None and network.classes == data.classes
        rows: list[Tensor] = []
        numbers: list[int] = []
        place = {"rank": trainer.global_rank, "world": trainer.world_size}
        for part, batch in items(data, self.split, n, batch_size=self.batch_size, **place):
            if labelled and self.balanced:
                batch = {**batch, "label": balanced_labels(part, data.classes)}
            made = pl_module.fakes(data.prepare(batch, pl_module.device), seeds=seeds_of(part, self.seed))
            if not torch.isfinite(made).all():
                raise RunError(
                    f"samples became infinite or NaN after {pl_module.progress.images:,} images: the last good "
                    "checkpoint is kept; try a smaller learning rate or trainer.precision=32"
                )
            features, logits = network(to_uint8(made))
            seen = (logits.argmax(1).cpu() == batch["label"]).float() if judged else torch.zeros(len(part))
            rows.append(torch.cat([features.cpu(), logits.cpu(), seen[:, None]], 1))
            numbers += part
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
        floor, name = self.floors.get(len(table)), self.suite.names["fd"]
        if floor:
            scores[f"{name}_over_floor"] = scores[name] / floor
        if judged:
            scores["label_accuracy"] = table[:, -1].mean().item()
        return scores

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
        with evaluating(pl_module):
            for turn in (True, False):  # rank 0 trains or downloads, the others find it in the cache
                if trainer.is_global_zero == turn:
                    self.network = self._build(data, pl_module.device)
                trainer.strategy.barrier()
            assert self.network is not None
            suite = Suite(
                self.network, kd_subsets=self.kd_subsets, kd_subset_size=self.kd_subset_size, seed=self.seed
            )
            count = min(self.num_reals or data.count(self.split), data.count(self.split))
            self._load_reals(trainer, pl_module, suite, count)
            tested = 0 if self.split == "test" else data.count("test")
            floors = {n: self._floor(trainer, pl_module, suite, count, n)
                      for n in {self.num_samples, self.num_samples_final} if n <= tested}
            self.floors = {n: value for n, value in floors.items() if value is not None}
        if self.monitor is None:
            self.monitor = suite.names["fd"]
        self.protocol = {
            "metric": suite.names["fd"],
            **self.network.facts(),
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "split": self.split,
            "num_samples": self.num_samples,
            "num_samples_final": self.num_samples_final,
            "num_reals": count,
            "balanced": self.balanced,
            "seed": self.seed,
            "floor": self.floors.get(self.num_samples),
            "floor_final": self.floors.get(self.num_samples_final),
            **suite.protocol(self.num_samples),
        }
        self.suite = suite

    def _build(self, data: Any, device: torch.device) -> FeatureNetwork:
        if self.network_name == "classifier":
            from aigc.metrics.classifier import trained_classifier

            return trained_classifier(data, device)
        from aigc.metrics.inception import InceptionV3

        return InceptionV3(self.weights).to(device)

    def _key(self, data: Any, *what: object) -> str:
        """A cache entry's name: all that real features depend on."""
        assert self.network is not None
        facts = (REAL_VERSION, data.fingerprint, self.split, self.network.sha256, self.network.resizer, *what)
        return f"{what[0]}-{self.network.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:20]}"

    def _load_reals(self, trainer: L.Trainer, pl_module: Family, suite: Any, count: int) -> None:
        key = self._key(trainer.datamodule, "reals", count)  # type: ignore[attr-defined]
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
        key = self._key(trainer.datamodule, "floor", count, n)  # type: ignore[attr-defined]
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
        place = {"rank": trainer.global_rank, "world": trainer.world_size}
        for part, batch in items(data, split, n, batch_size=self.batch_size, **place):
            real = to_uint8(pl_module.reals(data.prepare(batch, pl_module.device)))
            rows.append(self.network(real)[0].cpu())
            numbers += part
        return collect(trainer, pl_module.device, numbers, rows, n)


def gather(trainer: L.Trainer, value: Any) -> list[Any]:
    """Every rank's `value`, by rank."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def collect(
    trainer: L.Trainer, device: torch.device, numbers: list[int], rows: Iterable[Tensor], n: int
) -> Tensor:
    """The table `(n, d)` that all ranks hold shares of, on every rank; `rows` belong at `numbers`."""
    width = torch.tensor(0)
    mine = torch.cat(list(rows)) if numbers else None
    if mine is not None:
        width = torch.tensor(mine.shape[1])
    if trainer.world_size > 1:
        width = trainer.strategy.reduce(width.to(device), reduce_op="max").cpu()
    table = torch.zeros(n, int(width))
    if mine is not None:
        table[numbers] = mine
    if trainer.world_size > 1:
        table = trainer.strategy.reduce(table.to(device), reduce_op="sum").cpu()
    return table
