"""Pictures of one side as pictures of the other."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from aigc.models.family import Family


def translate(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, direction: str = "a2b"
) -> Tensor:
    """Translations `(n, c, h, w)` in [-1, 1] of images `(n, c, h, w)` in [-1, 1].

    Raises:
        UserError: the family was not trained for this direction.
    """
    return cast(Any, family).translate(images, direction=direction, seeds=list(seeds))
