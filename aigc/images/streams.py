"""The items that a model is scored on, and its samples for them: always the same, on any number of ranks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.errors import RunError
from aigc.images.grids import to_uint8
from aigc.noise import mix
from aigc.wording import counted

if TYPE_CHECKING:
    from aigc.models.family import Family
    from aigc.models.guidance import Guidance

Batch = dict[str, Any]


def items(
    data: ImageData, split: str, n: int, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[int], Batch]]:
    """This rank's share of items 0 to n-1 of a split, as (numbers, batch) with images uint8.

    Item k is the k-th image in the split's fixed evaluation order, which repeats if n is larger than the split. The
    first m items are the same for every n of at least m.
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
    """The seed of every item: it depends on the item's number, not on its batch."""
    return [mix(seed, number) for number in numbers]


def balanced_labels(numbers: Sequence[int], classes: int) -> Tensor:
    """Labels `(k,)` int64 that spread items 0 to n-1 evenly over the classes, for any n."""
    return torch.tensor([number % classes for number in numbers])


def samples(
    family: "Family", data: ImageData, split: str, n: int, *, batch_size: int, seed: int, balanced: bool = True,
    rank: int = 0, world: int = 1, options: dict[str, Any] | None = None, guidance: "Guidance | None" = None,
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """This rank's share of n samples, as (numbers, batch that gave the conditions, images uint8).

    Sample k has the condition of item k of the split and the seed mix(seed, k). If labels are `balanced`, all classes
    occur equally often, otherwise as in the data. `options` are passed to the family's `sample`. Of a family that
    reconstructs, sample k is made of image k, under its own label, and the options are those of `fakes`. `guidance` by
    other runs is for the n samples; where it is to labels, they are the samples'.
    """
    labelled = family.condition == "label" and not family.reconstructs
    for numbers, batch in items(data, split, n, batch_size=batch_size, rank=rank, world=world):
        if labelled and balanced:
            assert data.classes is not None
            batch = {**batch, "label": balanced_labels(numbers, data.classes)}
        if guidance is not None and guidance.labels is not None:
            batch = {**batch, "label": guidance.labels[numbers]}
        given, seeds = data.prepare(batch, family.device), seeds_of(numbers, seed)
        if (options or guidance) and not family.reconstructs:
            how = guidance.of(numbers, options or {}) if guidance is not None else options or {}
            made = family.sample(len(numbers), condition=family.condition_of(given), seeds=seeds, **how)
        else:
            made = family.fakes(given, seeds=seeds, **(options or {}))
        check_finite_images(made, family)
        yield numbers, batch, to_uint8(made)


@contextmanager
def counting(family: "Family", counter: Any) -> Iterator[None]:
    """Counts in `counter.rows` the images that pass through the sampling networks; nested calls count once."""
    def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        counter.rows += len(inputs[0])

    hooks = [network.register_forward_hook(count) for network in family.sampling_networks()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_finite_images(made: Tensor, family: "Family") -> None:
    """Refuses images that are not finite.

    Raises:
        RunError: says how far the run had got.
    """
    if not torch.isfinite(made).all():
        raise RunError(
            f"samples became infinite or NaN after {counted(family.progress.images, 'image')}: the last good "
            "checkpoint is kept; try a smaller learning rate or trainer.precision=32"
        )
