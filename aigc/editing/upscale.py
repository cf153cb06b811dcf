"""Pictures made larger."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from aigc.models.family import Family
from aigc.models.requests import one_for_all


def upscale(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, level: float | None = None,
    label: Any = None, text: str | None = None, options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Larger pictures `(n, c, f h, f w)` in [-1, 1] of images `(n, c, h, w)` in [-1, 1], f the family's factor.

    Raises:
        UserError: a label, a text or an option that the family does not know.
    """
    asked = {**(options or {}), **({} if level is None else {"level": level})}
    one = one_for_all(family, {"text": text, "label": label})
    condition = None if one is None else [one] * len(images)
    return cast(Any, family).upscale(images, condition=condition, seeds=list(seeds), **asked)
