"""What `task=` chooses: a function from pictures to pictures, its options, and what it needs of a family."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

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
FRAME = ("tasks", "codes")     # files of this folder that are no tasks


def tasks() -> dict[str, Task]:
    """The tasks of this package by name."""
    names = [module.name for module in pkgutil.iter_modules(editing.__path__) if module.name not in FRAME]
    return {name: getattr(importlib.import_module(f"{editing.__name__}.{name}"), name) for name in names}


def open_task(
    node: Mapping[str, Any], family: Family, *, name: str, run: object, seed: int, side: int | None
) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """The task of a configuration as a function of pictures and their numbers, all its options checked.

    Args:
        node: `function`, `needs` (capabilities) and the function's options, as in conf/task/translate.yaml.
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
    needs = node.get("needs") or []
    for capability in [needs] if isinstance(needs, str) else needs:
        if capability not in CAPABILITIES:
            raise UserError(f"task.needs={capability} is unknown: {choices(capability, CAPABILITIES)}")
        require(family, capability, run=run, wanted=wanted)
    options = {str(key): value for key, value in node.items() if key not in ("function", "needs")}
    check_known(options, options_of(function), f"The task '{name}'")
    if "direction" in options and "translate" in needs:
        check_direction(family, options["direction"], run=run, wanted=wanted)
    if {"text", "label"} & set(options):
        one_for_all(family, options)
    work = partial(function, **chosen(function, options, f"The task '{name}'"))

    def edit(images: Tensor, numbers: Sequence[int]) -> Tensor:
        seeds = [mix(seed, number) for number in numbers]
        return at_side(lambda given: work(family, given, None, seeds), images.to(family.device), side)

    return edit
