"""Labels and texts as a user asks a trained run for them: classes by name or number, prompts, files of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    if family.condition != "label":
        if wanted is not None:
            instead = "give text=<prompt>" if family.condition == "text" else "leave it out"
            raise UserError(f"label={wanted}, but this {type(family).__name__} takes no labels: {instead}")
        return None
    return labels_among(wanted, int(family.hparams["classes"]), family.class_names, n)


def labels_among(wanted: Any, classes: int, names: Sequence[str] | None, n: int) -> Tensor:
    """One label per image, `(n,)` int64, cycling through `wanted`, as of `labels_of`.

    Raises:
        UserError: there is no such class.
    """
    if wanted is None or (wanted == "all" and "all" not in (names or [])):
        labels = list(range(classes))
    else:
        labels = [label_of(one, classes, names) for one in (wanted if isinstance(wanted, list) else [wanted])]
    if not labels:
        raise UserError(f"label={wanted} names no class: {known(wanted, classes, names)}")
    return torch.tensor([labels[k % len(labels)] for k in range(n)])


def one_for_all(family: Family, typed: Mapping[str, Any]) -> Any:
    """The one condition of all pictures of an editing task: a label, a text, or None where none is given.

    Args:
        family: the trained family.
        typed: the options of a task, of which `text` and `label` are read.

    Raises:
        UserError: it does not fit the family, or there are several.
    """
    text, label = typed.get("text"), typed.get("label")
    for name, value in (("text", text), ("label", label)):
        if value is not None and (isinstance(value, list) or (name == "label" and value == "all")):
            raise UserError(f"task.{name}={value} names several: all pictures have the same one")
    if label is not None:
        labels_of(family, label, 1)                        # says where there are none
        return label_of(label, int(family.hparams["classes"]), family.class_names)
    prompts = None if text is None else prompts_of(family, text, 1)[0]
    return None if prompts is None else prompts[0]


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


def prompts_of(family: Family, wanted: Any, n: int) -> tuple[list[str] | None, list[str]]:
    """One prompt per image, cycling through `wanted`: a prompt, a list, or @<file> with one per line.

    Without a prompt, or with an empty one, images are unconditional; None if the family was not trained on texts. Also
    returns lines to print about truncated prompts and unknown words.

    Raises:
        UserError: the family was not trained on texts, or the file cannot be read or is empty.
    """
    if family.condition != "text":
        if wanted is not None:
            raise UserError(f"text='{wanted}', but this {type(family).__name__} was not trained with condition=text")
        return None, []
    prompts = prompts_listed(wanted)
    return [prompts[k % len(prompts)] for k in range(n)], text_encoder(family).warnings(prompts)


def prompts_listed(wanted: Any, *, option: str = "text") -> list[str]:
    """What an option of texts means: a text, a list, or @<file> with one per line; without a text, an empty one.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    prompts = [str(prompt) for prompt in wanted] if isinstance(wanted, list) else [str(wanted or "")]
    if isinstance(wanted, str) and wanted.startswith("@"):
        path = Path(wanted[1:]).expanduser()
        try:
            prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{option}={wanted}: '{path}' cannot be read ({error}): give a text file") from error
    if not prompts:
        raise UserError(f"{option}={wanted} holds no prompts: give one a line")
    return prompts


def text_encoder(family: Family) -> Any:
    """What reads the texts of a family trained with condition=text."""
    from aigc.conditions.text import Reader

    return next(module for module in family.modules() if isinstance(module, Reader))
