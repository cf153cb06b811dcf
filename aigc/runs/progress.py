"""The progress of a run: images seen, training seconds, and the spent share of its budget."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass
class Progress:
    """Images seen (by all devices) and seconds of training; `fraction` is the spent share of the budget.

    The clock counts only training: scoring, drawing and saving happen inside `paused()`.
    """

    images: int = 0
    seconds: float = 0.0
    batches: int = 0
    interrupted: str | None = None       # the signal that ended the run before its budget
    budget_images: int | None = None
    budget_seconds: float | None = None
    _mark: float | None = field(default=None, repr=False)

    @property
    def fraction(self) -> float:
        """The spent share of the budget, in [0, 1]; 0 without a budget."""
        shares = [0.0]
        if self.budget_images:
            shares.append(self.images / self.budget_images)
        if self.budget_seconds:
            shares.append(self.seconds / self.budget_seconds)
        return min(1.0, max(shares))

    @property
    def running(self) -> bool:
        """Whether the clock runs: not before training, and not while it is paused."""
        return self._mark is not None

    def start(self) -> None:
        """Starts or restarts the clock."""
        self._mark = time.perf_counter()

    def tick(self) -> None:
        """Adds the time since the last mark to `seconds`."""
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds += now - self._mark
        self._mark = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside."""
        running = self.running
        if running:
            self.tick()
        self._mark = None
        try:
            yield
        finally:
            if running:
                self.start()

    def state_dict(self) -> dict:
        """The state for a checkpoint, as plain numbers."""
        return {k: v for k, v in asdict(self).items() if k in ("images", "seconds", "batches")}

    def load_state_dict(self, state: dict) -> None:
        """Continues from a checkpoint's numbers."""
        self.images, self.seconds, self.batches = state["images"], state["seconds"], state["batches"]
