"""Keeps the averaged copies of a family's networks up to date."""

from typing import Any

import lightning as L

from aigc.training.callbacks.record import batch_size


class AverageWeights(L.Callback):
    """Updates every pair of `family.averages()` after each step, its horizon counted in images (networks/ema.py)."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Looks up which average follows which network."""
        self.moves = [average.follow(source) for average, source in pl_module.averages()]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the averages of the networks that have just learned."""
        images = batch_size(batch) * trainer.world_size
        for move, seen in zip(self.moves, pl_module.learned_images(), strict=True):
            if seen is not None:
                move(seen, images)
