"""Draws what a family makes of the same seeds, again and again, so that its progress is visible."""

from math import isqrt
from pathlib import Path
from typing import Any

import lightning as L
import torch

from aigc.callbacks.evaluating import evaluating
from aigc.errors import RunError
from aigc.grids import save_grid
from aigc.metrics.items import Batch, items, seeds_of
from aigc.models.family import Family


class SampleGrid(L.Callback):
    """Writes `<run>/samples/<images>.png` at the start, every `every_images` and at the end, on rank 0.

    Class-conditional families show a class a row. A family's `panels`, of held-out images, are written beside it as
    `<images>_<panel>.png`. Loggers that take images get them too, as `samples` and by the panels' names.
    """

    def __init__(
        self,
        *,
        every_images: int,              # seen, between two grids
        n: int = 64,                    # images in a grid; the nearest number below that fills its rows
        seed: int = 0,                  # of the samples; the same for every run, so that runs can be compared
    ):
        self.every_images = every_images
        self.n = n
        self.seed = seed
        self.drawn_images = -1          # images seen at the last grid

    def on_train_start(self, trainer: L.Trainer, pl_module: Family) -> None:  # type: ignore[override]
        """Draws what an untrained family makes."""
        if pl_module.progress.images == 0:
            self.draw(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Family, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws when another `every_images` have been seen; the last step's grid is drawn at the end."""
        crossed = pl_module.progress.images // self.every_images > max(0, self.drawn_images) // self.every_images
        if crossed and not trainer.should_stop:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Family) -> None:  # type: ignore[override]
        """Draws what training has come to."""
        if pl_module.progress.images != self.drawn_images and not pl_module.progress.interrupted:
            self.draw(trainer, pl_module)

    def draw(self, trainer: L.Trainer, pl_module: Family) -> list[Path]:
        """Draws now, on rank 0; returns the files.

        Raises:
            RunError: the disk does not take them.
        """
        self.drawn_images = pl_module.progress.images
        if not trainer.is_global_zero:
            return []
        folder, stem = Path(trainer.default_root_dir) / "samples", f"{self.drawn_images:09d}"
        with evaluating(pl_module):
            torch.manual_seed(self.seed)  # for panels; samples have seeds of their own
            batch, columns = self._batch(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
            n = len(pl_module.reals(batch))
            pictures = {"samples": pl_module.fakes(batch, seeds=seeds_of(range(n), self.seed))}
            held_out = trainer.datamodule.prepare(self._items(trainer.datamodule, n), pl_module.device)  # type: ignore[attr-defined]
            pictures.update(pl_module.panels(held_out))
            files = []
            for name, images in pictures.items():
                path = folder / (f"{stem}.png" if name == "samples" else f"{stem}_{name}.png")
                try:
                    files.append(save_grid(images, path, columns=columns if name == "samples" else None))
                except OSError as error:
                    reason = f"could not be written ({error.strerror or error})"
                    raise RunError(f"'{path}' {reason}: make room and resume the run") from error
                for logger in trainer.loggers:
                    if hasattr(logger, "log_image"):
                        logger.log_image(key=name, images=[str(path)], step=pl_module.progress.batches)
        return files

    def _batch(self, data: Any, pl_module: Family) -> tuple[Batch, int]:
        """What the grid is drawn for, and its number of columns."""
        if pl_module.hparams.get("condition", "none") != "label":
            columns = max(1, isqrt(self.n))
            return data.prepare(self._items(data, self.n // columns * columns), pl_module.device), columns
        rows = data.classes if data.classes <= max(1, self.n // 4) else max(1, isqrt(self.n))
        columns = max(1, self.n // rows)
        batch = data.prepare(self._items(data, rows * columns), pl_module.device)
        return {**batch, "label": torch.arange(rows, device=pl_module.device).repeat_interleave(columns)}, columns

    @staticmethod
    def _items(data: Any, n: int) -> Batch:
        """The first n held-out images, as one batch; fewer images come round again."""
        parts = [batch for _, batch in items(data, "validation", n, batch_size=n)]
        whole: Batch = {}
        for key, first in parts[0].items():
            values = [part[key] for part in parts]
            whole[key] = torch.cat(values) if isinstance(first, torch.Tensor) else [v for part in values for v in part]
        return whole

    def state_dict(self) -> dict[str, Any]:
        """When the last grid was drawn."""
        return {"drawn_images": self.drawn_images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from there."""
        self.drawn_images = state_dict["drawn_images"]
