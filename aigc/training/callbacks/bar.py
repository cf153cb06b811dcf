"""A progress bar in images: how many were seen, how fast, the losses, and the time left."""

import sys
import time
from typing import Any

import lightning as L
from tqdm import tqdm

from aigc.training.callbacks.record import Record
from aigc.wording import counted


class Bar(L.Callback):
    """One line on a terminal; a plain line every `plain_seconds` where the output is a file."""

    def __init__(
        self,
        *,
        plain_seconds: float = 30,      # between two lines where there is no terminal
    ):
        self.plain_seconds = plain_seconds
        self.bar: tqdm | None = None
        self.shown_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Opens the bar."""
        if trainer.is_global_zero:
            self.shown_at = time.monotonic()
            if sys.stderr.isatty():
                form = "{percentage:3.0f}%|{bar:20}| {postfix}"
                self.bar = tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Shows the run's progress, at most a few times a second."""
        pause = 0.2 if self.bar is not None else self.plain_seconds
        if trainer.is_global_zero and (time.monotonic() - self.shown_at >= pause or trainer.should_stop):
            self.shown_at = time.monotonic()
            self.show(trainer, pl_module)

    def show(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Draws the line."""
        progress = pl_module.progress
        record = next((c for c in trainer.callbacks if isinstance(c, Record)), None)  # type: ignore[attr-defined]
        speed = progress.images / progress.seconds if progress.seconds else 0.0
        parts = [counted(progress.images, "image"), f"{speed:,.0f}/s"]
        latest = record.latest if record is not None else {}
        parts += [f"{name.removeprefix('loss/')} {value:.3g}" for name, value in latest.items() if "loss" in name][:4]
        if progress.fraction > 0:
            left = int(progress.seconds * (1 / progress.fraction - 1))
            parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if left >= 3600 else
                         f"{left // 60}:{left % 60:02} left")
        if self.bar is not None:
            self.bar.n = progress.fraction
            self.bar.set_postfix_str(" | ".join(parts))
        else:
            print(f"{progress.fraction:4.0%} | " + " | ".join(parts), file=sys.stderr, flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Closes the bar."""
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Closes the bar."""
        self.close()

    def close(self) -> None:
        """Leaves the last state standing."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
