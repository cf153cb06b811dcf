"""Pictures of one side as pictures of the other; by a diffusion run, pictures as what a label or a text says."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from aigc.editing.redrawing import redrawn
from aigc.errors import UserError
from aigc.models.family import Family


def translate(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, direction: str = "a2b",
    strength: float = 0.6, text: str | None = None, label: Any = None, options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Translations `(n, c, h, w)` in [-1, 1] of images `(n, c, h, w)` in [-1, 1].

    A family with `translate` goes in a direction; one that denoises goes `strength` of the way to noise and comes back
    as the label or text says (SDEdit, Meng et al. 2022).

    Raises:
        UserError: the family was not trained for this direction, or an option does not fit it.
    """
    if not family.can("translate"):
        if text is None and label is None:
            raise UserError(f"a {type(family).__name__} translates by what is said: give task.label= or task.text=, "
                            "or task=vary")
        return redrawn(family, images, seeds, strength=strength, text=text, label=label, options=options)
    if text is not None or label is not None or options:
        raise UserError(f"a {type(family).__name__} goes in a direction: leave task.text, task.label and task.options "
                        "out")
    return cast(Any, family).translate(images, direction=direction, seeds=list(seeds))
