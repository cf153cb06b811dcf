"""Pictures drawn anew from part of the way to noise (SDEdit, Meng et al. 2022): what `vary` and `translate` share."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from aigc.errors import UserError
from aigc.images.pictures import resize
from aigc.models.family import Family
from aigc.models.requests import one_for_all


def redrawn(
    family: Family, images: Tensor, seeds: Sequence[int], *, strength: float, text: str | None, label: Any,
    options: Mapping[str, Any] | None,
) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] like `images`, by a family that can, at its own size and scaled back.

    The last int(steps * strength) steps of the sampler's path are gone; none of them leaves the images as they are.

    Args:
        family: see `redraws`.
        images: in [-1, 1], of any size.
        seeds: one an image.
        strength: share of the way to noise, from 0 to 1.
        text: what all of them show, with condition=text; None, here and for the label: nothing is said.
        label: what all of them show, with condition=label.
        options: further options of sampling.

    Raises:
        UserError: text, label, strength or an option does not fit the family.
    """
    size, own = (images.shape[2], images.shape[3]), tuple(family.hparams.size)
    asked, n, further = one_for_all(family, {"text": text, "label": label}), len(images), dict(options or {})
    if asked is None and family.condition != "none":
        further = {"guidance": 0.0, "guidance_interval": None, **further}    # no label is drawn in place of one
    if not 0 <= strength <= 1:
        raise UserError(f"task.strength={strength} is no share of the way to noise: give one from 0 to 1")
    model = cast(Any, family)
    steps = len(model.points(model.settings(further))) - 1
    left = int(steps * strength)
    if left == 0:
        return images
    if left < steps:                                       # else nothing would be left of the images
        further |= {"init": images if own == size else resize(images, own), "skip": steps - left}
    made = family.sample(n, condition=None if asked is None else [asked] * n, seeds=list(seeds), **further)
    return made if own == size else resize(made, size)


def redraws(family: Family) -> bool:
    """Whether a family can: one that denoises, and samples from noise alone."""
    return family.can("denoise") and family.can("sample")
