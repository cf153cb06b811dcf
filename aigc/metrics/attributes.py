"""Whether images show what their captions ask for: attributes read back from samples (condition=text)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aigc.data.shapes import named
from aigc.metrics.items import samples

if TYPE_CHECKING:
    from aigc.models.family import Family

SPLITS = {"seen": "test", "heldout": "heldout"}     # what a score calls the captions of which split


def reads_back(data: Any, family: "Family") -> bool:
    """Whether the family draws captions of data that know their attributes and can read them from an image."""
    known = hasattr(data, "read_back") and hasattr(data, "attributes")
    return known and family.hparams.get("condition", "none") == "text"


def shows_shapes(data: Any, family: "Family") -> bool:
    """Whether the family draws, unasked, single objects of data that can tell whether an image shows one."""
    single = hasattr(data, "clear") and data.objects == "1"
    return single and family.hparams.get("condition", "none") == "none"


def found_clear(
    family: "Family", data: Any, n: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1,
    options: dict[str, Any] | None = None,
) -> tuple[list[int], list[Tensor]]:
    """This rank's share of n samples: their numbers, and rows `(m, 1)`, 1 where one clear known shape is seen."""
    rows, numbers = [], []
    for part, _, made in samples(family, data, "test", n, batch_size=batch_size, seed=seed, rank=rank, world=world,
                                 options=options):
        rows.append(data.clear(made).cpu().float()[:, None])
        numbers += part
    return numbers, rows


def found_and_asked(
    family: "Family", data: Any, split: str, n: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1,
    options: dict[str, Any] | None = None,
) -> tuple[list[int], list[Tensor]]:
    """This rank's share of samples of the first n captions: their numbers, and rows `(m, 2 k)`.

    A row is the k attributes that were read from the sample, then the k that the caption names, -1 where it does not.
    """
    every, rows, numbers = named(data.attributes(split), background=data.caption_background), [], []
    for part, batch, made in samples(family, data, split, n, batch_size=batch_size, seed=seed, rank=rank, world=world,
                                     options=options):
        rows.append(torch.cat([data.read_back(made).cpu(), every[batch["index"]]], 1).float())
        numbers += part
    return numbers, rows


def shares(found: Tensor, asked: Tensor) -> dict[str, float]:
    """How often attributes `(n, k)` int64 are as asked for: each one, and `all`: everything that the caption says.

    Where captions name one object or two, `all_single` and `all_pair` are the shares of either.
    """
    from aigc.metrics.oracle import agreement

    scores = agreement(found, asked)
    pair = asked[:, 0] == 2
    if pair.any() and not pair.all():
        for name, rows in (("all_single", ~pair), ("all_pair", pair)):
            scores[name] = agreement(found[rows], asked[rows])["all"]
    return scores
