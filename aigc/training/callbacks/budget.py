"""Ends a run: by its budget, or by a signal, always after a whole step and with a checkpoint."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch.distributed

from aigc.errors import check_count
from aigc.runs.progress import Progress
from aigc.training.launch import REQUEUE_SIGNAL, ending_signals


class Budget(L.Callback):
    """Stops at the first step that has spent `images` or `minutes`, or that follows SIGINT, SIGTERM or, in a SLURM
    job, SIGUSR1.

    With several processes rank 0 decides for all, every `check_every` steps for the clock and signals and at once for
    images, which all ranks count alike. A signal that comes between two steps, while something is scored or drawn, and
    a second signal end the process at once: the last checkpoint is intact.
    """

    def __init__(
        self,
        *,
        minutes: float | None = None,   # of training
        images: int | None = None,      # seen, all devices together
        check_every: int = 8,           # steps between two agreements when there are several processes
    ):
        check_count("callbacks.budget.check_every", check_every)
        self.minutes = minutes
        self.images = images
        self.check_every = check_every
        self.received: str | None = None
        self.progress: Progress | None = None
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Tells the family its budget, which the learning rates follow."""
        pl_module.progress.budget_images = self.images
        pl_module.progress.budget_seconds = self.minutes * 60 if self.minutes is not None else None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Listens for signals; ends at once a run whose budget was spent before it was resumed."""
        self.progress = pl_module.progress if trainer.world_size == 1 else None
        if threading.current_thread() is threading.main_thread():
            for number in ending_signals():
                self._handlers[number] = signal.signal(number, self._on_signal)
        if self._spent(pl_module.progress):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decides whether this step was the last."""
        progress = pl_module.progress
        images_spent = self.images is not None and progress.images >= self.images
        received, clock_spent = self.received, self._spent(progress)
        if trainer.world_size > 1:
            received, clock_spent = None, False
            if progress.batches % self.check_every == 0:
                verdict: list[Any] = [(self.received, self._spent(progress), progress.seconds)]
                torch.distributed.broadcast_object_list(verdict, src=0)
                received, clock_spent, progress.seconds = verdict[0]
        if received:
            progress.interrupted = received
        if received or clock_spent or images_spent:
            trainer.should_stop = True

    def _spent(self, progress: Progress) -> bool:
        images = self.images is not None and progress.images >= self.images
        clock = self.minutes is not None and progress.seconds >= self.minutes * 60
        return images or clock

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == REQUEUE_SIGNAL == self.received:  # SLURM and the launcher may both tell
            return
        again, self.received = self.received is not None, name
        if again or (self.progress is not None and not self.progress.running):
            if self.progress is not None:
                self.progress.interrupted = self.received
            self._restore()
            raise KeyboardInterrupt
        print(f"\n{self.received}: stopping after this step and saving; once more to stop at once", file=sys.stderr)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._handlers = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """From here on a signal ends the process at once: everything that took compute is saved."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Gives the signals back."""
        self._restore()
