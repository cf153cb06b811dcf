"""The items that a model is scored on: always the same ones, in the same order, whoever draws them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.noise import mix

Batch = dict[str, Any]


def items(
    data: ImageData, split: str, n: int, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[int], Batch]]:
    """This rank's share of items 0 .. n-1 of a split, as (numbers, batch) with images uint8.

    Item k is the k-th image of the split's fixed evaluation order; where n is larger than the split, the order
    starts again. The first m of n items are the m items.
    """
    count = data.count(split)
    for start in range(0, n, count):
        number = start + rank
        for batch in data.eval_dataloader(
            split, limit=min(count, n - start), batch_size=batch_size, rank=rank, world=world
        ):
            size = len(batch["index"])
            yield list(range(number, number + size * world, world)), batch
            number += size * world


def seeds_of(numbers: Sequence[int], seed: int) -> list[int]:
    """The seed of every item: it belongs to the item's number, not to its batch."""
    return [mix(seed, number) for number in numbers]


def balanced_labels(numbers: Sequence[int], classes: int) -> Tensor:
    """Labels `(k,)` int64 that give every class equally many of the items 0 .. n-1, at any n."""
    return torch.tensor([number % classes for number in numbers])
