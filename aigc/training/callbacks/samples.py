"""Draws what a family makes of the same seeds at intervals, so that its progress is visible."""

from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from aigc.errors import RunError, check_count
from aigc.images.grids import save_grid
from aigc.images.streams import Batch, items, seeds_of
from aigc.models.family import Family, Translator
from aigc.training.callbacks.evaluating import evaluating


@dataclass
class Picture:
    """Images and how `grids.grid` lays them out."""

    images: Tensor
    layout: dict[str, Any] = field(default_factory=dict)


class SampleGrid(L.Callback):
    """Writes `<run>/samples/<images>.png` at the start, every `every_images` and at the end, on rank 0.

    Class-conditional families show a class a row, text-conditional ones a caption a row: captions of validation and,
    where the data hold some out, of `heldout`. Translators show a held-out image a row: as it is, translated, back
    again, and its true pair where it has one; of validation, or of test where only those are true pairs; directions
    after the first as `<images>_<direction>.png`. A family's `panels`, of held-out images, are written beside it as
    `<images>_<panel>.png`. Loggers that take images get them too, as `samples` and by the others' names.
    """

    def __init__(
        self,
        *,
        every_images: int,              # seen, between two grids
        n: int = 64,                    # images in a grid; the nearest number below that fills its rows
        seed: int = 0,                  # of the samples; the same for every run, so that runs can be compared
    ):
        check_count("callbacks.samples.every_images", every_images)
        check_count("callbacks.samples.n", n)
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
        """Draws the result of training."""
        if pl_module.progress.images != self.drawn_images and not pl_module.progress.interrupted:
            self.draw(trainer, pl_module)

    def draw(self, trainer: L.Trainer, pl_module: Family) -> list[Path]:
        """Draws now, on rank 0; returns the files.

        Raises:
            RunError: they cannot be written.
        """
        self.drawn_images = pl_module.progress.images
        if not trainer.is_global_zero:
            return []
        folder, stem = Path(trainer.default_root_dir) / "samples", f"{self.drawn_images:09d}"
        with evaluating(pl_module):
            torch.manual_seed(self.seed)  # for panels; samples have seeds of their own
            data = trainer.datamodule  # type: ignore[attr-defined]
            pictures: dict[str, Picture] = {}
            if pl_module.can("translate"):
                pictures = self._translations(data, cast(Translator, pl_module))
            elif pl_module.makes_images():
                pictures = {"samples": self._samples(data, pl_module)}
            held_out = data.prepare(self._items(data, self.n), pl_module.device)
            for name, drawn in pl_module.panels(held_out).items():
                pictures[name] = Picture(*drawn) if isinstance(drawn, tuple) else Picture(drawn)
            files = []
            for name, picture in pictures.items():
                path = folder / (f"{stem}.png" if name == "samples" else f"{stem}_{name}.png")
                try:
                    files.append(save_grid(picture.images, path, **picture.layout))
                except OSError as error:
                    reason = f"could not be written ({error.strerror or error})"
                    raise RunError(f"'{path}' {reason}: make room and resume the run") from error
                for logger in trainer.loggers:
                    if hasattr(logger, "log_image"):
                        logger.log_image(key=name, images=[str(path)], step=pl_module.progress.batches)
        return files

    def _samples(self, data: Any, pl_module: Family) -> Picture:
        """What the family makes of its conditions."""
        condition, side = pl_module.condition, max(1, isqrt(self.n))
        layout: dict[str, Any] = {"columns": side}
        if condition == "text":
            batch, captions = self._captions(data)
            layout = {"columns": max(1, self.n // len(captions)), "captions": captions}
            rows = torch.arange(len(captions)).repeat_interleave(layout["columns"])
            batch = {key: value[rows] if isinstance(value, Tensor) else [value[k] for k in rows.tolist()]
                     for key, value in batch.items()}
        elif condition == "label" and not pl_module.reconstructs:
            classes = data.classes if data.classes <= max(1, self.n // 4) else side
            names = pl_module.class_names or [str(k) for k in range(classes)]
            layout = {"columns": max(1, self.n // classes), "captions": names[:classes]}
            labels = torch.arange(classes).repeat_interleave(layout["columns"])
            batch = {**self._items(data, len(labels)), "label": labels}
        else:
            batch = self._items(data, self.n // side * side)
        batch = data.prepare(batch, pl_module.device)
        seeds = seeds_of(range(len(batch["index"])), self.seed)
        return Picture(pl_module.fakes(batch, seeds=seeds), layout)

    def _captions(self, data: Any) -> tuple[Batch, list[str]]:
        """Different captions, half of them held out where the data have such: a batch of a row each, and the words."""
        rows = max(1, isqrt(self.n))
        seen = shown_split(data)
        splits = {seen: rows - rows // 2, "heldout": rows // 2} if "heldout" in data.splits else {seen: rows}
        parts, words = [], []
        for split, n in splits.items():
            if not n:
                continue
            batch = self._items(data, min(data.count(split), 20 * n), split)     # enough to find n different ones
            first = {text: k for k, text in reversed(list(enumerate(batch["text"])))}
            chosen = sorted(first.values())[:n]
            parts.append({key: value[chosen] if isinstance(value, Tensor) else [value[k] for k in chosen]
                          for key, value in batch.items()})
            words += [batch["text"][k] + " (held out)" * (split == "heldout") for k in chosen]
        return _joined(parts), words

    def _translations(self, data: Any, pl_module: Translator) -> dict[str, Picture]:
        """Held-out images of either side, beside their translations."""
        split = "test" if data.has_pairs("test") and not data.has_pairs("validation") else "validation"
        pictures = {}
        for side, direction in enumerate(pl_module.directions):
            count = data.counts(split)[int(direction == "b2a")]
            rows, parts, found = min(max(1, isqrt(self.n)), count), [], 0
            for _, batch in items(data, split, data.count(split), batch_size=rows):
                fresh = batch["index"] < count           # the shorter side starts again at its end
                parts.append({key: value[fresh] for key, value in batch.items()})
                found += int(fresh.sum())
                if found >= rows:
                    break
            batch = data.prepare({key: value[:rows] for key, value in _joined(parts).items()}, pl_module.device)
            images, wanted = pl_module.sides(batch, direction)
            seeds, back = seeds_of(range(rows), self.seed), direction[::-1]
            made = pl_module.translate(images, direction=direction, seeds=seeds, **pl_module.beside(batch))
            shown = {"input": images, "translated": made}
            if back in pl_module.directions:
                shown["back"] = pl_module.translate(shown["translated"], direction=back, seeds=seeds)
            if data.has_pairs(split):
                shown["true pair"] = wanted
            images = torch.stack([column.to(images) for column in shown.values()], dim=1).flatten(0, 1)
            layout = {"columns": len(shown), "titles": list(shown)}
            pictures["samples" if side == 0 else direction] = Picture(images, layout)
        return pictures

    @staticmethod
    def _items(data: Any, n: int, split: str | None = None) -> Batch:
        """The first n images of a split (`shown_split`), as one batch; fewer images repeat."""
        return _joined([batch for _, batch in items(data, split or shown_split(data), n, batch_size=n)])

    def state_dict(self) -> dict[str, Any]:
        """When the last grid was drawn."""
        return {"drawn_images": self.drawn_images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from there."""
        self.drawn_images = state_dict["drawn_images"]


def shown_split(data: Any) -> str:
    """Whose conditions and images are shown: held-out ones where there are any."""
    return next(split for split in ("validation", "test", "train") if split in data.splits)


def _joined(parts: list[Batch]) -> Batch:
    """Batches one after the other, as one."""
    whole: Batch = {}
    for key, first in parts[0].items():
        values = [part[key] for part in parts]
        whole[key] = torch.cat(values) if isinstance(first, Tensor) else [v for part in values for v in part]
    return whole
