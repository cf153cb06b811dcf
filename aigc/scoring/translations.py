"""The translations that a translator is scored on: every image of a side once, on any number of ranks."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from aigc.data.pairs import PairData
from aigc.images.streams import check_finite_images, items, seeds_of

if TYPE_CHECKING:
    from aigc.models.family import Translator

BACK = {"a2b": "b2a", "b2a": "a2b"}          # the inverse of each direction


def translations(
    family: "Translator", data: PairData, split: str, direction: str, n: int, *, batch_size: int, seed: int,
    rank: int = 0, world: int = 1, identity: bool = False,
    by: Callable[[Tensor, dict[str, Any]], Tensor] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor, dict[str, Tensor]]]:
    """This rank's share of n rows, as (numbers, index, made, targets, measured); images float32 in [-1, 1].

    `index` `(m,)` is an image's position on its side, `made` its translation (with `identity`: the image itself; with
    `by`: what that makes of images in [-1, 1] and the other entries of their batch),
    `targets` the other side of its row. `measured` holds `cycle_l1` `(m,)`, the error of the round trip, for families
    that translate both ways. Repeated images of the shorter side are left out.
    """
    count = data.counts(split)[int(direction == "b2a")]
    for part, batch in items(data, split, n, batch_size=batch_size, rank=rank, world=world):
        fresh = batch["index"] < count                      # the shorter side repeats
        numbers = [number for number, own in zip(part, fresh.tolist(), strict=True) if own]
        if not numbers:
            continue
        given = data.prepare(batch, family.device)
        fresh = fresh.to(family.device)
        images, targets = (side[fresh] for side in family.sides(given, direction))
        made, measured = images, {}
        if by is not None:
            rest = {key: value[fresh] for key, value in given.items() if isinstance(value, Tensor)}
            made = by(images, rest).to(images)
        elif not identity:
            seeds = seeds_of(numbers, seed)
            known = {key: value[fresh] for key, value in family.beside(given).items()}
            made = family.translate(images, direction=direction, seeds=seeds, **known)
            check_finite_images(made, family)
            if BACK[direction] in family.directions:
                again = family.translate(made, direction=BACK[direction], seeds=seeds)
                check_finite_images(again, family)
                measured["cycle_l1"] = (again - images).abs().mean((1, 2, 3))
        yield numbers, batch["index"][fresh.cpu()], made, targets, measured
