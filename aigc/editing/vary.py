"""Variations of pictures: a share of their codes is drawn anew."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from aigc.editing.codes import redrawn
from aigc.errors import UserError
from aigc.models.family import Family
from aigc.networks.tokens import hidden, uniforms
from aigc.noise import SeededNoise, mix

PLACES = 0xC0DE5                                           # separates which codes are drawn from what is drawn


def vary(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, share: float = 0.25,
    text: str | None = None, label: Any = None, guidance: float | None = None, temperature: float | None = None,
    top_k: int | None = None, top_p: float | None = None,
) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] with a `share` of their codes, in places of each seed's own, drawn anew.

    Raises:
        UserError: an option is out of its range or does not fit the family.
    """
    if not 0 <= share <= 1:
        raise UserError(f"task.share={share} is no share of the codes: give one from 0 to 1")
    rows, columns = cast(Any, family).tokenizer.shape
    numbers = uniforms(SeededNoise([mix(int(seed), PLACES) for seed in seeds]), rows * columns)
    masked = hidden(torch.full((len(images),), round(share * rows * columns)), numbers).view(-1, rows, columns)
    return redrawn(family, images, masked, seeds, text=text, label=label, guidance=guidance,
                   temperature=temperature, top_k=top_k, top_p=top_p)
