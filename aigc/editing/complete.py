"""Pictures of which the upper part is given: the rest is drawn."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from aigc.editing.codes import recoded
from aigc.errors import UserError
from aigc.models.family import Family


def complete(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, keep: float = 0.5,
    text: str | None = None, label: Any = None, guidance: float | None = None, temperature: float | None = None,
    top_k: int | None = None, top_p: float | None = None, paste: bool = True,
) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] below whose upper part, a share `keep` of the height, the rest is drawn.

    The codes of the upper part, whole rows of them, are kept as they are. With `paste` so are its pixels; without, the
    picture is all decoded from codes, without a seam.

    Raises:
        UserError: an option is out of its range or does not fit the family.
    """
    if not 0 <= keep <= 1:
        raise UserError(f"task.keep={keep} is no share of the height: give one from 0 to 1")
    rows, columns = cast(Any, family).tokenizer.shape
    given = round(keep * rows)
    masked = torch.zeros(len(images), rows, columns, dtype=torch.bool)
    masked[:, given:] = True
    made = recoded(family, images, masked, seeds, text=text, label=label, guidance=guidance,
                   temperature=temperature, top_k=top_k, top_p=top_p)
    edge = round(images.shape[2] * given / rows) if paste else 0
    return torch.cat([images[:, :, :edge], made[:, :, edge:]], dim=2)
