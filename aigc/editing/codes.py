"""Pictures as codes, some of which are drawn anew: what the tasks `complete` and `vary` share."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from aigc.images.pictures import resize
from aigc.models.family import Family
from aigc.models.requests import one_for_all


def recoded(
    family: Family, images: Tensor, masked: Tensor, seeds: Sequence[int], *, text: str | None, label: Any,
    **options: Any,
) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] whose codes are drawn anew where `masked` `(n, rows, columns)` is True.

    The family works at its own size; the result is scaled back.

    Args:
        family: one with `complete`, over the codes of its `tokenizer`.
        images: in [-1, 1], of any size.
        masked: which codes are drawn; all others stay as they are.
        seeds: one an image.
        text: what all of them show, with condition=text; None, here and for the label: nothing is said.
        label: what all of them show, with condition=label.
        **options: of the family's sampling; None: the recipe's.

    Raises:
        UserError: text, label or an option does not fit the family.
    """
    model, size, own = cast(Any, family), images.shape[2:], tuple(family.hparams.size)
    asked, n = one_for_all(family, {"text": text, "label": label}), len(images)
    options = {name: value for name, value in options.items() if value is not None}
    if asked is None and family.condition != "none":
        options = {"guidance": 0.0, **options}             # no label is drawn in place of one
    codes = model.tokenizer.tokenize(images if own == size else resize(images, own))
    made = model.complete(codes, masked.flatten(1), condition=None if asked is None else [asked] * n,
                          seeds=list(seeds), **options)
    made = model.tokenizer.decode(made)
    return made if own == size else resize(made, (size[0], size[1]))
