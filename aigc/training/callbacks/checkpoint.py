"""Writes `checkpoints/last.ckpt` often and `checkpoints/best.ckpt` at the best score."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from aigc.errors import RunError
from aigc.files import atomic
from aigc.training.callbacks.record import Record
from aigc.training.callbacks.scoring import Scoring
from aigc.training.sharded import local
from aigc.wording import counted


class Checkpoint(L.Callback):
    """Saves at most `every_seconds` apart, after every scoring, and at the end; each file atomically.

    Weights or losses that are not finite are never saved: the run ends with one sentence and the last good checkpoint.
    """

    def __init__(
        self,
        *,
        every_seconds: float = 60,      # of wall time between two saves
    ):
        self.every_seconds = every_seconds
        self.saved_at = 0.0
        self.best: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """The first save is due one interval from now."""
        self.saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves when it is time, when a score has just been measured, or when this was the last step."""
        progress = pl_module.progress
        scores = self._scores(trainer)
        scored = scores is not None and scores.scored_images == progress.images
        due = time.monotonic() - self.saved_at >= self.every_seconds
        if trainer.world_size > 1:  # rank 0's clock decides for all, at steps that all ranks know
            due = progress.batches % 8 == 0 and trainer.strategy.broadcast(due, src=0)
        if due or scored or trainer.should_stop:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves the final state together with its final scores."""
        self.save(trainer, pl_module)

    def save(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Writes last.ckpt and, at a new best score or without any score yet, best.ckpt.

        Raises:
            RunError: weights are not finite, or the file cannot be written.
        """
        with pl_module.progress.paused():
            check_finite(trainer, pl_module)
            last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
            scores = self._scores(trainer)
            is_best = scores is None or scores.best is None or scores.best != self.best
            self.best = scores.best if scores is not None else None
            trainer.save_checkpoint(last, weights_only=False)
            if is_best and trainer.is_global_zero:
                copy(last, last.with_name("best.ckpt"))
            self.saved_at = time.monotonic()

    @staticmethod
    def _scores(trainer: L.Trainer) -> Scoring | None:
        return next((c for c in trainer.callbacks if isinstance(c, Scoring)), None)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """The score of best.ckpt."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues to compare with it."""
        self.best = state_dict["best"]


def copy(source: Path, target: Path) -> None:
    """A checkpoint under a second name, whole or not at all; without a second file where the file system can.

    Raises:
        RunError: the folder does not take it; what had the name is as it was.
    """
    try:
        with atomic.replacing(target) as temporary:
            temporary.unlink(missing_ok=True)
            try:
                os.link(source, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise RunError(
            f"the checkpoint {target} could not be copied from {source.name} ({error.strerror}), the previous "
            f"{target.name} is intact: make room and resume the run"
        ) from error


def check_finite(trainer: L.Trainer, pl_module: Any) -> None:
    """Refuses weights that are not finite.

    Raises:
        RunError: says how far the run had got.
    """
    for record in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(record, Record) and not record.gather(trainer, pl_module.device):
            record.flush(trainer, pl_module)  # which refuses, on all ranks
    norms = torch._foreach_norm([local(p.detach()) for p in pl_module.parameters()])
    finite = torch.isfinite(torch.stack([n.float() for n in norms])).all()
    if pl_module.sharded and trainer.world_size > 1:  # each device sees its own part
        finite = trainer.strategy.reduce(finite.float(), reduce_op="sum") == trainer.world_size
    if not finite:
        raise RunError(
            f"weights became infinite or NaN after {counted(pl_module.progress.images, 'image')}: the last good "
            "checkpoint is kept; try a smaller learning rate, gradient clipping or trainer.precision=32"
        )
