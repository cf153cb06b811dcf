"""Whether images show what their captions describe: attributes read back from samples (condition=text)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aigc.data.shapes import named
from aigc.images.streams import samples
from aigc.scoring.networks.oracle import agreement, clear, oracle_of, read_back

if TYPE_CHECKING:
    from aigc.models.family import Family

SPLITS = {"seen": "test", "heldout": "heldout"}     # name in a score: split that gives the captions


def reads_back(data: Any, family: "Family") -> bool:
    """Whether the family draws captions, from data that know their attributes and can read them from an image."""
    known = hasattr(data, "attributes")
    return known and family.hparams.get("condition", "none") == "text"


def shows_shapes(data: Any, family: "Family") -> bool:
    """Whether the family draws single objects without a condition, on data that can check that an image shows one."""
    single = hasattr(data, "attributes") and data.objects == "1"
    return single and family.hparams.get("condition", "none") == "none"


def found_clear(
    family: "Family", data: Any, n: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1,
    options: dict[str, Any] | None = None,
) -> tuple[list[int], list[Tensor]]:
    """This rank's share of n samples: their numbers, and rows `(m, 1)`, 1 where they show one clear known shape."""
    rows, numbers = [], []
    for part, _, made in samples(family, data, "test", n, batch_size=batch_size, seed=seed, rank=rank, world=world,
                                 options=options):
        rows.append(clear(oracle_of(data).to(made.device), made).cpu().float()[:, None])
        numbers += part
    return numbers, rows


def found_and_asked(
    family: "Family", data: Any, split: str, n: int, *, batch_size: int, seed: int, rank: int = 0, world: int = 1,
    options: dict[str, Any] | None = None,
) -> tuple[list[int], list[Tensor]]:
    """This rank's share of samples of the first n captions: their numbers, and rows `(m, 2 k)`.

    A row holds the k attributes read from the sample, then the k named in the caption, -1 where it names none.
    """
    every, rows, numbers = named(data.attributes(split), background=data.caption_background), [], []
    for part, batch, made in samples(family, data, split, n, batch_size=batch_size, seed=seed, rank=rank, world=world,
                                     options=options):
        rows.append(torch.cat([read_back(data, made).cpu(), every[batch["index"]]], 1).float())
        numbers += part
    return numbers, rows


def shares(found: Tensor, asked: Tensor) -> dict[str, float]:
    """The share of correct attributes `(n, k)` int64: each one, and `all`: everything that the caption says.

    If captions name one or two objects, `all_single` and `all_pair` are the shares for either kind.
    """
    scores = agreement(found, asked)
    pair = asked[:, 0] == 2
    if pair.any() and not pair.all():
        for name, rows in (("all_single", ~pair), ("all_pair", pair)):
            scores[name] = agreement(found[rows], asked[rows])["all"]
    return scores
