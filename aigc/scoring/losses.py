"""A family's own losses on held-out images: its scores, where it makes no images."""

from typing import Any

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.models.family import Family
from aigc.noise import mix
from aigc.scoring.devices import ALONE, Devices


def held_out_losses(
    family: Family, data: ImageData, split: str, n: int | None, *, batch_size: int, seed: int, devices: Devices = ALONE
) -> dict[str, float]:
    """What `validation_step` returns for the first n of a split (None: all), as `val/<loss>`.

    Means over images, of scalars and of vectors; the family's `held_out` turns these into scalars.

    Every batch has its own random numbers, so that the devices that share the batches change nothing.
    """
    mine: list[tuple[int, int, dict[str, Any]]] = []
    for k, batch in enumerate(data.eval_dataloader(split, limit=n, batch_size=batch_size)):
        if k % devices.world == devices.rank:
            torch.manual_seed(mix(seed, k))
            losses: Any = family.validation_step(data.prepare(batch, family.device), k) or {}
            mine.append((k, len(batch["index"]), {name: _plain(value) for name, value in losses.items()}))
    batches = sorted((part for rank in devices.gather(mine) for part in rank), key=lambda part: part[0])
    total = sum(size for _, size, _ in batches)
    names = batches[0][2] if batches else {}
    means = {name: sum(size * losses[name] for _, size, losses in batches) / total for name in names}
    return {f"val/{name}": value for name, value in family.held_out(means).items()} if means else {}


def _plain(value: Any) -> Any:
    """A number, or a vector float64 on the CPU."""
    return value.double().cpu() if isinstance(value, Tensor) and value.ndim else float(value)
