"""Counts images and seconds, seeds every step, and logs the means of what the training step returned."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor

from aigc.errors import RunError, check_count
from aigc.noise import mix
from aigc.wording import counted


class Record(L.Callback):
    """The first callback of every run.

    The global random generator is seeded before every step from (seed, rank, number of the batch): a step's draws
    do not depend on anything before it, so a resumed run repeats them exactly whatever was sampled in between.

    Raises:
        RunError: a training loss is not finite.
    """

    def __init__(
        self,
        *,
        seed: int,                # of the run
        log_every: int = 20,      # steps between two log lines; each holds the means over its steps
    ):
        check_count("log_every", log_every)
        self.seed = seed
        self.log_every = log_every
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # an entry need not come with every step (lazy penalties)
        self.everywhere: dict[str, Tensor] = {}  # `sums` of all ranks, `(ranks,)`, as of the last checkpoint
        self.window_start = (0, 0.0)
        self.latest: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Starts the clock."""
        for logger in trainer.loggers:
            logger.progress = pl_module.progress  # type: ignore[attr-defined]
        self.window_start = (pl_module.progress.images, pl_module.progress.seconds)
        for name, totals in self.everywhere.items():  # of the run that this one goes on with
            same = len(totals) == trainer.world_size
            self.sums[name] = totals[trainer.global_rank] if same else totals.mean()
        pl_module.progress.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Seeds this step."""
        seed = mix(self.seed, trainer.global_rank, pl_module.progress.batches)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a traceback for each absent device
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts, and logs at the end of a window."""
        progress = pl_module.progress
        progress.tick()
        progress.batches += 1
        progress.images += batch_size(batch) * trainer.world_size
        for name, value in outputs.items():
            value = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        if progress.batches % self.log_every == 0:
            self.flush(trainer, pl_module)

    def flush(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Logs the means since the last line, over all ranks, and stops the run when one is not finite."""
        if not self.sums:
            return
        self.gather(trainer, pl_module.device)
        progress = pl_module.progress
        means = {name: float(totals.mean()) / self.counts[name] for name, totals in self.everywhere.items()}
        broken = sorted(name for name, value in means.items() if not math.isfinite(value))
        self.sums, self.counts, self.everywhere = {}, {}, {}
        if broken:
            raise RunError(
                f"{', '.join(broken)} became {means[broken[0]]} after {counted(progress.images, 'image')}: the last "
                "good checkpoint is kept; try a smaller learning rate, gradient clipping or trainer.precision=32"
            )
        images, seconds = self.window_start
        if progress.seconds > seconds:
            means["images_per_second"] = (progress.images - images) / (progress.seconds - seconds)
        for i, optimizer in enumerate(trainer.optimizers):
            means["rate" if len(trainer.optimizers) == 1 else f"rate/{i}"] = optimizer.param_groups[0]["lr"]
        self.window_start = (progress.images, progress.seconds)
        self.latest = means
        for logger in trainer.loggers:
            logger.log_metrics(means, step=progress.batches)

    def gather(self, trainer: L.Trainer, device: torch.device) -> bool:
        """Records the open window of all ranks on each of them; returns whether every entry is finite."""
        totals = torch.stack([total.to(device) for total in self.sums.values()]) if self.sums else torch.zeros(0)
        every = totals[None]
        if trainer.world_size > 1 and self.sums:
            every = trainer.strategy.all_gather(totals)
        self.everywhere = dict(zip(self.sums, every.unbind(1), strict=True))
        return bool(torch.isfinite(every).all())

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Logs the last, shorter window; an interrupted run keeps it open for its resumption."""
        if not pl_module.progress.interrupted:
            self.flush(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The open window, so that a resumed run's next line is the mean over all of its steps."""
        return {"sums": self.everywhere, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Reopens the window."""
        self.everywhere = {name: totals.reshape(-1) for name, totals in state_dict["sums"].items()}
        self.counts = dict(state_dict["counts"])


def batch_size(batch: Any) -> int:
    """Images in a batch: the length of its first tensor."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
