"""Several weighted texts for one image: "a cat:2 | blue:-0.5"."""

import re
from typing import Any

from aigc.errors import UserError
from aigc.models.conditions_asked import prompts_listed

Joint = tuple[tuple[str, float], ...]                      # texts with their weights
WEIGHTED = re.compile(r"(.*?):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*", re.DOTALL)
LEAST = 1e-3                                               # size of a sum of weights


def joint_prompts(wanted: Any) -> list[Joint]:
    """What an option of texts means to a CLIP that guides: the texts of each image, to be taken in turn.

    A text may have a weight, `a cat:2`, negative ones lead away; several are joined by `|`. In a list, texts are taken
    in turn, but a list of texts with weights is one for all images.

    Raises:
        UserError: a text is empty, or the weights of an image cancel.
    """
    listed = prompts_listed(wanted)
    together = any(WEIGHTED.fullmatch(one) for one in listed) and not any("|" in one for one in listed)
    if isinstance(wanted, list) and together:
        listed = [" | ".join(listed)]
    return [joint_of(one) for one in listed]


def joint_of(text: str) -> Joint:
    """The texts of one image, and their weights.

    Raises:
        UserError: there is none, or the weights cancel.
    """
    found = []
    for part in text.split("|"):
        match = WEIGHTED.fullmatch(part.strip())
        said, weight = (match[1].strip(), float(match[2])) if match else (part.strip(), 1.0)
        if said:
            found.append((said, weight))
    if not found:
        raise UserError(f"text='{text}' says nothing for clip= to guide to: give a prompt")
    if abs(sum(weight for _, weight in found)) < LEAST:
        raise UserError(f"text='{text}': the weights cancel, so that nothing is asked for: change one of them")
    return tuple(found)


def written(joint: Joint) -> str:
    """A text that means these texts and weights, also in a list: for recipes and people."""
    parts = [said if weight == 1 else f"{said}:{weight:g}" for said, weight in joint]
    alone = len(joint) == 1 and joint[0][1] != 1
    return " | ".join(parts) + " |" * alone
