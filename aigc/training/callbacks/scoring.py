"""What all scores of a training family share: when they are taken, what is kept, and which is best.

What is measured, and how devices share it, is aigc/scoring's: evaluation measures by the same panels.

A subclass says how to get ready (`prepare`) and what to measure (`measure`).
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from aigc.errors import UserError, check_count, choices
from aigc.models.family import Family
from aigc.runs.catalogue import described, higher_is_better
from aigc.runs.summary import read_summary, write_summary
from aigc.scoring.devices import Devices
from aigc.scoring.losses import held_out_losses
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.networks.registry import FOREIGN, build_network, check_network, second_network
from aigc.scoring.scores.registry import load
from aigc.training.callbacks.evaluating import evaluating
from aigc.wording import counted

log = logging.getLogger(__name__)


class Scoring(L.Callback):
    """Scores every `every_images` and at the end.

    Attributes:
        latest: the last scores by name.
        best: the best value of `monitor` so far, or None; `is_best` says whether the last scoring set it.
        network, second: what scores look through, once training starts; `second` at the end only, or None.
        history: images, seconds and scores of every scoring.
        protocol: how scores were measured, plain values; empty before training starts.
        scored_images: images seen at the last scoring.
        sampling: what a sample cost there: `evaluations` of the network; empty where none were made.
    """

    def __init__(
        self,
        *,
        network: str | None,        # a name of metrics.networks.NETWORKS; None: no scores over features
        second: str | None,         # another that scores beside it at the end; auto, or None
        weights: str | None,        # local file of the network's weights
        preprocessing: str | None,  # of squeezenet: that of its weights
        every_images: int,          # seen, between two scorings
        batch_size: int,            # images at once on every device
        validation_images: int,     # held-out images for the family's own losses, at most
        monitor: str | None,        # the score that says which model is best; None: the Fréchet distance
        mode: str | None,           # whether less of it is better (min), or more (max); None: as the catalogue says
        kd_subsets: int,            # see scoring/suite.py
        kd_subset_size: int,
        seed: int,                  # of the samples
        extra: Sequence[str],       # modules of scores besides this package's
    ):
        check_network(network, weights=weights, preprocessing=preprocessing)
        second_network(second, network)
        if mode not in (None, "min", "max"):
            raise UserError(f"metrics.mode '{mode}' is unknown: {choices(mode, ('min', 'max'))}")
        for name, value, least in (
            ("every_images", every_images, 1), ("batch_size", batch_size, 1),
            ("validation_images", validation_images, 0), ("kd_subsets", kd_subsets, 1),
            ("kd_subset_size", kd_subset_size, 2),
        ):
            check_count(f"metrics.{name}", value, least=least)
        self.network_name = network
        self.second_name = second
        self.weights = weights
        self.preprocessing = preprocessing
        self.every_images = every_images
        self.batch_size = batch_size
        self.validation_images = validation_images
        self.monitor = monitor
        self.mode = mode
        self.kd_subsets = kd_subsets
        self.kd_subset_size = kd_subset_size
        self.seed = seed
        self.extra = load(extra, "metrics.extra")
        self.network: FeatureNetwork | None = None
        self.second: FeatureNetwork | None = None
        self.protocol: dict[str, Any] = {}
        self.latest: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        self.is_best = False
        self.scored_images = 0
        self.sampling: dict[str, float] = {}
        self.notes: list[str] = []              # what to think of the scores; said once, kept in the record
        self.missing: dict[str, str] = {}       # why a score could not be taken, by its name
        self.ruled_out: dict[str, str] = {}     # the same where the user's choices leave none; in the record alone

    # ---- what a subclass defines ----

    def prepare(self, trainer: L.Trainer, pl_module: Family) -> None:
        """Loads the feature network and measures the real side; once, on all ranks.

        Raises:
            UserError: weights are missing, or a split is.
        """
        raise TypeError(f"{type(self).__name__} must define prepare()")

    def measure(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of what the family makes, complete on rank 0; called on all ranks, in evaluation mode."""
        raise TypeError(f"{type(self).__name__} must define measure()")

    @property
    def more_at_end(self) -> bool:
        """Whether `measure(final=True)` measures more than usual."""
        return False

    # ---- when ----

    def on_train_start(self, trainer: L.Trainer, pl_module: Family) -> None:  # type: ignore[override]
        """Prepares the feature network and the real side, so that anything missing is reported before training."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.validation_images and "validation" not in data.splits:
            raise UserError(f"metrics.validation_images={self.validation_images} needs images held out for "
                            "validation, and data.validation=0: set metrics.validation_images=0, or hold some out")
        self.prepare(trainer, pl_module)
        if trainer.is_global_zero:
            for note in self.notes:
                log.warning("%s", note)
            for name, reason in self.missing.items():
                log.info("no %s: %s", name, reason)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Family, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scores when another `every_images` have been seen; the last step is scored at the end."""
        crossed = pl_module.progress.images // self.every_images > self.scored_images // self.every_images
        if crossed and not trainer.should_stop:
            self.score(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Family) -> None:  # type: ignore[override]
        """Scores the result of training, unless a signal asks to end."""
        done = self.scored_images == pl_module.progress.images and not self.more_at_end
        if not done and not pl_module.progress.interrupted:
            self.score(trainer, pl_module, final=True)
        elif not done:
            self.missing["final scores"] = (
                f"the run was interrupted after {counted(pl_module.progress.images, 'image')}, but these scores are "
                f"from {self.scored_images:,}")

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
            final: whether to measure also what is measured at the end only, under names of its own: the usual scores
                stay comparable with earlier ones.

        Raises:
            RunError: what the family makes is not finite.
            UserError: this family has no score called `monitor`.
        """
        started = time.perf_counter()
        self.prepare(trainer, pl_module)
        with evaluating(pl_module):
            scores = self.held_out(trainer, pl_module)
            scores |= self.measure(trainer, pl_module, final=final)
        found = trainer.strategy.broadcast(scores, src=0)
        progress = pl_module.progress
        scores = self.finite(found, progress.images)
        for name in (found.keys() - scores.keys()) if trainer.is_global_zero else ():
            log.warning("no %s: %s", name, self.missing[name])
        self.latest, self.scored_images = scores, progress.images
        self.history.append({"images": progress.images, "seconds": round(progress.seconds, 3), **scores})
        self.compare(scores)
        for logger in trainer.loggers:
            logger.log_metrics(scores, step=progress.batches)
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (folder / "summary.json").is_file():
            write_summary(folder, **self.facts())  # a run that goes on, or is killed, says how it was measured
        if trainer.is_global_zero and scores:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
            log.info("%s: %s (%.0f s)", counted(progress.images, "image"), shown, time.perf_counter() - started)
        return scores

    def finite(self, scores: dict[str, float], images: int) -> dict[str, float]:
        """The scores that are numbers; why the others are not goes to `missing`, until they are."""
        for name in [name for name in self.missing if math.isfinite(scores.get(name, math.nan))]:
            del self.missing[name]
        for name, value in scores.items():
            if not math.isfinite(value):
                self.missing[name] = f"it was {value} after {counted(images, 'image')}"
        return {name: value for name, value in scores.items() if math.isfinite(value)}

    def facts(self) -> dict[str, Any]:
        """What a run's summary says of its scores."""
        return {
            "scores": {"last": self.latest, "best": self.best, "monitor": self.monitor},
            "protocol": self.protocol,
            "catalogue": described(self.latest),
            "scores_notes": self.notes,
            "scores_missing": {**self.ruled_out, **self.missing},
            **({"sampling": self.sampling} if self.sampling else {}),
        }

    def compare(self, scores: dict[str, float]) -> None:
        """Whether these scores are the best so far.

        Raises:
            UserError: `monitor` is not one of them.
        """
        if self.monitor is None:
            self.is_best = False
            return
        if self.monitor not in scores and self.monitor not in self.missing:
            raise UserError(f"metrics.monitor '{self.monitor}' is not a score here: {choices(self.monitor, scores)}")
        value, more = scores.get(self.monitor), self.mode == "max" if self.mode else higher_is_better(self.monitor)
        self.is_best = value is not None and (self.best is None or (value > self.best if more else value < self.best))
        if self.is_best:
            self.best = value

    def held_out(self, trainer: L.Trainer, pl_module: Family) -> dict[str, float]:
        """The family's own losses on validation images."""
        if not self.validation_images:
            return {}
        return held_out_losses(
            pl_module, trainer.datamodule, "validation", self.validation_images,  # type: ignore[attr-defined]
            batch_size=self.batch_size, seed=self.seed, devices=devices_of(trainer, pl_module),
        )

    # ---- what subclasses build on ----

    def build(self, trainer: L.Trainer, pl_module: Family) -> FeatureNetwork:
        """The feature network, on every rank, and the second one, where there is one.

        Raises:
            UserError: the weights of one are missing.
        """
        assert self.network_name is not None
        self.network = network = self._built(trainer, pl_module, self.network_name, weights=self.weights,
                                             preprocessing=self.preprocessing)
        name, reason = second_network(self.second_name, self.network_name,
                                      trainer.datamodule.channels)  # type: ignore[attr-defined]
        self.second = self._built(trainer, pl_module, name) if name is not None else None
        if reason is not None:
            self.ruled_out[f"fd_{FOREIGN}"] = reason
        before = read_summary(Path(trainer.default_root_dir)).get("protocol") or {}
        known = before.get("network_sha256")
        if self.best is not None and known not in (None, network.sha256):
            log.warning("earlier scores used other weights of %s (%s, now %s): the best checkpoint is "
                        "chosen afresh", network.name, known[:8], network.sha256[:8])
            self.best = None
        return network

    def _built(self, trainer: L.Trainer, pl_module: Family, name: str, **options: str | None) -> FeatureNetwork:
        """A network on every rank; rank 0 trains or downloads it, the others find it in the cache."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return devices_of(trainer, pl_module).in_turn(
            lambda: build_network(name, data, pl_module.device, **options)).judge(pl_module.learned_through)


def devices_of(trainer: L.Trainer, pl_module: Family) -> Devices:
    """The devices that train, which share every scoring."""
    return Devices(trainer.global_rank, trainer.world_size, pl_module.device, trainer.strategy)
