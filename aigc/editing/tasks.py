"""What `task=` chooses: a function from pictures to pictures, its options, and what it needs of a family."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc import editing
from aigc.config.functions import check_known, chosen, function_named, options_of
from aigc.errors import UserError, choices
from aigc.images.pictures import at_side
from aigc.models.capabilities import require
from aigc.models.family import CAPABILITIES, Family
from aigc.models.requests import check_direction, one_for_all
from aigc.noise import mix

Task = Callable[..., Tensor]   # (family, images, masks, seeds, *, options) -> images, (n, c, h, w) in [-1, 1] as given
Edit = Callable[..., Tensor]   # (images, numbers, masks) -> images
NODE = ("function", "needs", "changes")  # of a task's node; the rest are options of its function
CHANGES = ("all", "mask", "padding")
FRAME = ("tasks", "codes", "again", "redrawing", "classical")  # files of this folder that are no tasks


def tasks() -> dict[str, Task]:
    """The tasks of this package by name."""
    names = [module.name for module in pkgutil.iter_modules(editing.__path__) if module.name not in FRAME]
    return {name: getattr(importlib.import_module(f"{editing.__name__}.{name}"), name) for name in names}


def open_task(
    node: Mapping[str, Any], family: Family, *, name: str, run: object, seed: int, side: int | None
) -> Edit:
    """The task of a configuration as a function of pictures, their numbers and masks, all its options checked.

    Args:
        node: `function`, `needs` (capabilities; `a|b` is either), `changes` (see `changes_of`) and the function's
            options, as in conf/task/translate.yaml.
        family: the trained family.
        name: what `task=` names, for messages.
        run: where the family came from, for messages.
        seed: picture k is edited with the seed mix(seed, k).
        side: shorter side at which the family works; results are scaled back. None: the picture's own.

    Raises:
        UserError: there is no such function or option, or the family lacks what the task needs.
    """
    wanted = f"task={name}"
    function = function_named(node.get("function"), "task", tasks())
    needs, masked = node.get("needs") or [], changes_of(node) != "all"
    for either in [needs] if isinstance(needs, str) else needs:
        for capability in (capabilities := str(either).split("|")):
            if capability not in CAPABILITIES:
                raise UserError(f"task.needs={capability} is unknown: {choices(capability, CAPABILITIES)}")
        require(family, *capabilities, run=run, wanted=wanted)
    options = {str(key): value for key, value in node.items() if key not in NODE}
    check_known(options, options_of(function), f"The task '{name}'")
    if "direction" in options and family.can("translate"):
        check_direction(family, options["direction"], run=run, wanted=wanted)
    if {"text", "label"} & set(options):
        one_for_all(family, options)
    work = partial(function, **chosen(function, options, f"The task '{name}'"))

    def edit(images: Tensor, numbers: Sequence[int], masks: Tensor | None = None) -> Tensor:
        seeds, images = [mix(seed, number) for number in numbers], images.to(family.device)
        if masked:
            assert masks is not None, f"{wanted} was given no masks"
            return work(family, images, masks.to(family.device), seeds)
        return at_side(lambda given: work(family, given, None, seeds), images, side)

    return edit


def changes_of(node: Mapping[str, Any]) -> str:
    """What of a picture a task changes: `all`, what a `mask` says, or the `padding` around it.

    Raises:
        UserError: it says none of these.
    """
    changes = node.get("changes", "all")
    if changes not in CHANGES:
        raise UserError(f"task.changes={changes} is unknown: {choices(changes, CHANGES)}")
    return str(changes)


def among_copies(edit: Edit, place: int, size: int) -> Edit:
    """`edit` of each picture alone, in the `place` of so many copies: sums have the same bits in equal batches."""

    def again(images: Tensor, numbers: Sequence[int], masks: Tensor | None = None) -> Tensor:
        made = [edit(images[k : k + 1].expand(size, -1, -1, -1).contiguous(), [number] * size,
                     None if masks is None else masks[k : k + 1].expand(size, -1, -1, -1).contiguous())[place]
                for k, number in enumerate(numbers)]
        return torch.stack(made)

    return again
