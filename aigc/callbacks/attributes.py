"""Whether images show what their captions ask for: attributes read back from samples (condition=text)."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from aigc.callbacks.scoring import check_finite_images, collect, place
from aigc.metrics.features import to_uint8
from aigc.metrics.items import items, seeds_of
from aigc.models.family import Family

SPLITS = {"seen": "test", "heldout": "heldout"}     # what a score calls the captions of which split


def reads_back(trainer: L.Trainer, pl_module: Family) -> bool:
    """Whether the family draws captions of data that know their attributes and can read them from an image."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    known = hasattr(data, "read_back") and hasattr(data, "attributes")
    return known and pl_module.hparams.get("condition", "none") == "text"


def attribute_scores(
    trainer: L.Trainer, pl_module: Family, *, n: int, batch_size: int, seed: int
) -> dict[str, float]:
    """How often attributes are as asked for, in n samples of the captions of either split; complete on rank 0.

    `attributes/<seen or heldout>/<attribute>` for each, and `all`: everything that the caption says. Where captions
    name one object or two, `all_single` and `all_pair` are the shares of either.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not trainer.is_global_zero:   # rank 0 makes what reads, the others find it in the cache
        trainer.strategy.barrier()
    data.read_back(torch.zeros(1, data.channels, *data.size, dtype=torch.uint8, device=pl_module.device))
    if trainer.is_global_zero:
        trainer.strategy.barrier()
    scores: dict[str, float] = {}
    for name, split in SPLITS.items():
        if split in data.splits:
            found, asked = _found_and_asked(trainer, pl_module, split, n, batch_size, seed)
            if trainer.is_global_zero:
                scores |= {f"attributes/{name}/{key}": value for key, value in _shares(found, asked).items()}
    return scores


def _found_and_asked(
    trainer: L.Trainer, pl_module: Family, split: str, n: int, batch_size: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Attributes `(n, k)` int64 of samples of the first n captions, and those that the captions name."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    every, rows, numbers = data.attributes(split), [], []
    for part, batch in items(data, split, n, batch_size=batch_size, **place(trainer)):
        made = pl_module.fakes(data.prepare(batch, pl_module.device), seeds=seeds_of(part, seed))
        check_finite_images(made, pl_module)
        found = data.read_back(to_uint8(made)).cpu()
        rows.append(torch.cat([found, every[batch["index"]]], 1).float())
        numbers += part
    table = collect(trainer, pl_module.device, numbers, rows, n).long()
    return table.tensor_split(2, dim=1)  # type: ignore[return-value]


def _shares(found: Tensor, asked: Tensor) -> dict[str, float]:
    from aigc.metrics.oracle import agreement

    scores = agreement(found, asked)
    pair = asked[:, 0] == 2
    if pair.any() and not pair.all():
        for name, rows in (("all_single", ~pair), ("all_pair", pair)):
            scores[name] = agreement(found[rows], asked[rows])["all"]
    return scores
