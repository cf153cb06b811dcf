"""What captions say: names of classes where there are no others, and in training the same in other words each time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc.conditions.rewording import Rewording
from aigc.errors import UserError, choices
from aigc.noise import mix
from aigc.wording import counted, shown

LABEL = "{label}"                                          # of the class's name in a caption
NOTHING: dict[str, Any] = {"synonyms": {}, "replace": 0.0, "templates": [], "template": 0.0, "separator": None,
                           "drop": 0.0, "shuffle": False, "first": True}


def rewording_of(options: Mapping[str, Any] | None) -> Rewording | None:
    """How training captions are reworded, by options of `Rewording` that are all off by default; None: not at all.

    Raises:
        UserError: there is no such option, or its value does not fit.
    """
    if not options:
        return None
    for name in options:
        if name not in NOTHING:
            raise UserError(f"data.rewording has no option '{name}': {choices(name, NOTHING)}")
    for lists, share in (("synonyms", "replace"), ("templates", "template")):
        if bool(options.get(lists)) != bool(options.get(share)):
            raise UserError(f"data.rewording has {lists if options.get(lists) else share} alone: give both "
                            f"{lists}, and {share}, the share that uses them")
    if (options.get("drop") or options.get("shuffle")) and not options.get("separator"):
        raise UserError("data.rewording drops or shuffles keywords without a separator: say what is between them, "
                        'separator: ", "')
    return Rewording(**{**NOTHING, **options}, option="data.rewording")


def reworded(rewording: Rewording, texts: Sequence[str], seed: int, places: Sequence[int]) -> list[str]:
    """Each text said anew, by its own number in the stream of training images."""
    generator = torch.Generator()
    return [rewording([text], generator.manual_seed(mix(seed, place)))[0]
            for text, place in zip(texts, places, strict=True)]


def check_caption(caption: str | None) -> str | None:
    """The sentence that is made of a class's name, as it was given.

    Raises:
        UserError: the name has no place in it.
    """
    if caption is not None and LABEL not in caption:
        raise UserError(f"data.caption='{caption}' has no {LABEL}: put it where the name of the class goes")
    return caption


def captions_of(
    caption: str, labels: Tensor | None, names: Sequence[str] | None, classes: int | None, *, data: str
) -> list[str]:
    """Captions of images with these labels `(n,)`: the sentence `caption` with the name of the class in it.

    Raises:
        UserError: the data have no classes, or another number of them.
    """
    if labels is None or names is None or classes is None:
        raise UserError(f"data.caption='{caption}' needs classes, and {shown(data)} has none: leave it out")
    if len(names) != classes:
        raise UserError(f"data.names are {counted(len(names), 'name')} for {counted(classes, 'class')}: give one for "
                        "each, in the order of the classes")
    said = [caption.replace(LABEL, str(name)) for name in names]
    return [said[k] for k in labels.tolist()]
