"""Labels as users give them: by class name or by number."""

from collections.abc import Sequence
from typing import Any

from aigc.errors import UserError, choices
from aigc.models.family import Family

LISTED = 20                                                # most classes named in an error; beyond, their number


def labels_of(family: Family, wanted: Any, n: int) -> Any:
    """One label per image, `(n,)` int64, cycling through `wanted`; None if the family was trained without labels.

    Args:
        family: the trained family.
        wanted: a class, a list of classes, or `all` or None for every class.
        n: number of images.

    Raises:
        UserError: the family was trained without labels, or has no such class.
    """
    import torch

    if family.condition != "label":
        if wanted is not None:
            instead = "give text=<prompt>" if family.condition == "text" else "leave it out"
            raise UserError(f"label={wanted}, but this {type(family).__name__} takes no labels: {instead}")
        return None
    classes, names = int(family.hparams["classes"]), family.class_names
    if wanted is None or (wanted == "all" and "all" not in (names or [])):
        labels = list(range(classes))
    else:
        labels = [label_of(one, classes, names) for one in (wanted if isinstance(wanted, list) else [wanted])]
    if not labels:
        raise UserError(f"label={wanted} names no class: {known(wanted, classes, names)}")
    return torch.tensor([labels[k % len(labels)] for k in range(n)])


def label_of(wanted: Any, classes: int, names: Sequence[str] | None) -> int:
    """The number of the class that is called `wanted`, or else has this number.

    If a name is itself a number, only names count: of the classes 1 and 7, label=1 is the first, and 0 does not exist.

    Raises:
        UserError: there is no such class.
    """
    word = str(wanted).lower() if isinstance(wanted, bool) else str(wanted)
    if names is not None and word in names:
        return list(names).index(word)
    by_number = names is None or not any(name.isdecimal() for name in names)
    if by_number and word.isdecimal() and int(word) < classes:
        return int(word)
    raise UserError(f"label={wanted} is not a class of this model: {known(wanted, classes, names)}")


def known(wanted: Any, classes: int, names: Sequence[str] | None) -> str:
    """The end of an error message: the known classes."""
    if names is None or list(names) == [str(k) for k in range(classes)]:
        return f"choose from 0 to {classes - 1}"
    said = choices(wanted, names)
    if said.startswith("choose") and len(names) > LISTED:
        return f"choose from {', '.join(names[:LISTED])} and {len(names) - LISTED:,} more"
    return said if said.startswith("did") else f"choose from {', '.join(names)}"


def named(labels: Any, names: Sequence[str] | None) -> list[str] | None:
    """The names of labels `(n,)`; their numbers if the classes have no names; None without labels."""
    return None if labels is None else [names[k] if names is not None else str(k) for k in labels.tolist()]
