"""What a user may ask of a trained run, read and checked in one place: generate, edit and evaluate call it.

Labels by class name or number, prompts, trained runs that guide, and the options of `sample`: the same mistake gets
the same sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from aigc.models.capabilities import require
from aigc.models.conditions_asked import (
    label_of,
    labels_of,
    named,
    one_for_all,
    prompts_listed,
    prompts_of,
    text_encoder,
)
from aigc.models.family import Family, Translator
from aigc.models.guidance import Guidance, guidance_asked

__all__ = ["Request", "check_direction", "images_asked", "label_of", "labels_of", "named", "one_for_all",
           "prompts_listed", "prompts_of", "sampling_options", "text_encoder"]


@dataclass(frozen=True)
class Request:
    """Images from noise, as asked for and checked."""

    condition: Any                                         # labels (n,) int64, n prompts, or None
    options: dict[str, Any]                                # further options of `sample`; empty: those of the recipe
    words: list[dict[str, str]] | None                     # `label` or `text` of each image, for people
    notes: list[str]                                       # about what was asked for, for people
    guidance: Guidance = field(default_factory=Guidance)   # by trained runs beside this one


def images_asked(family: Family, typed: Mapping[str, Any], n: int, *, run: object) -> Request:
    """What is asked of a family that makes images from noise.

    Args:
        family: the trained family.
        typed: the options `label`, `text`, `sampler`, `guidance`, `truncation` and `options`, and those of
            `models.guidance`, if there are any.
        n: number of images.
        run: where the family came from, for messages.

    Raises:
        UserError: the family makes no images from noise, or a label or text does not fit it.
    """
    require(family, "sample", run=run, wanted="generate")
    guidance = guidance_asked(family, typed, n, run=run)
    label, text = guidance.left(family, typed)
    labels = labels_of(family, label, n)
    prompts, notes = prompts_of(family, text, n)
    words = [{"text": prompt} for prompt in prompts] if prompts is not None else None
    if labels is not None:
        words = [{"label": name} for name in named(labels, family.class_names) or []]
    if guidance.words is not None:
        words = [{**mine, **its} for mine, its in zip(words or [{}] * n, guidance.words, strict=True)]
    return Request(labels if prompts is None else prompts, sampling_options(typed), words,
                   [*notes, *guidance.notes], guidance)


def sampling_options(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `sample` besides conditions and seeds: of `sampler`, `guidance`, `truncation` and `options`.

    Those that are None are left to the recipe.
    """
    sampler = dict(typed["sampler"])
    options = {"sampler": sampler.pop("name", None), **sampler, "guidance": typed["guidance"],
               "truncation": typed["truncation"], **typed["options"]}
    return {name: value for name, value in options.items() if value is not None}


def check_direction(family: Family, direction: Any, *, run: object, wanted: str) -> None:
    """Refuses a direction that a family does not translate in.

    Args:
        family: the trained family.
        direction: as typed.
        run: where the family came from, for messages.
        wanted: what needs the direction, for messages.

    Raises:
        UserError: the family does not translate, or not in this direction.
    """
    require(family, "translate", run=run, wanted=wanted)
    cast(Translator, family).check_direction(direction)
