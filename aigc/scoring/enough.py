"""Remarks on too few images for a score: what a record says beside a score, or instead of it."""

from collections.abc import Mapping

from aigc.scoring.scores.inception_score import LEAST, SPLITS
from aigc.scoring.scores.memorisation import LEAST as NEW

ROUNDING = 1e-6        # a Fréchet distance below this is rounding, and nothing can be measured against it


def _be(n: int) -> str:
    return f"is {n:,}" if n == 1 else f"are {n:,}"


def too_few(counts: Mapping[str, int], features: int) -> str | None:
    """A remark on a Fréchet distance between so many images of each kind; None: they are enough.

    n images span at most n - 1 dimensions, so the covariance is singular unless there are more images than features.
    """
    few = [f"{n:,} {what}" for what, n in counts.items() if n <= features]
    if not few:
        return None
    return (f"singular covariance: {' and '.join(few)} for {features:,} features; Fréchet distances are comparable "
            "only at equal numbers")


def smaller_subsets(asked: int, taken: int) -> str | None:
    """A remark on a kernel distance over smaller subsets than asked for; None: they have the size asked for."""
    if taken >= asked:
        return None
    return f"kernel distance over subsets of {taken:,} images, not {asked:,}: one side has no more"


def no_inception_score(n: int, *, classifies: bool) -> str | None:
    """Why n images have no inception score; None: they have one."""
    if not classifies:
        return "the network names no classes"
    if n < SPLITS * LEAST:
        return f"it needs {SPLITS * LEAST:,} images, and there {_be(n)}"
    return None


def no_floor(n: int, held: int | None, floor: float | None = None, *, split: str = "test") -> str | None:
    """Why n images have no floor where `held` are held out (None: no split is); None: they have one.

    `floor`, where it was measured, is the distance of the held-out images; `split` is what they are called.
    """
    if held is None:
        return "no test images are held out of the reference"
    if held < n:
        return f"it needs as many {split} images as samples: {n:,}, and there {_be(held)}"
    if floor is not None and floor <= ROUNDING:
        return f"the {split} images are no further from the reference than rounding"
    return None


def no_neighbours(k: int, *, n: int, reals: int) -> str | None:
    """Why n images have no precision, recall, density and coverage by k neighbours; None: they have them."""
    least = min(n, reals)
    return f"it needs more than {k:,} images on either side, and there {_be(least)}" if least <= k else None


def no_memorised(limit: float | None) -> str | None:
    """Why it is not known which images are memorised, where that has this limit; None: it is known."""
    return f"its limit needs {NEW} real images that are no copies, and there are fewer" if limit is None else None


def no_label_accuracy(condition: str, known: int | None, classes: int | None) -> str | None:
    """Why labels cannot be told to be right, where a network knows so many of the data's classes; None: they can."""
    if condition != "label":
        return "the images are made without labels"
    return None if known is not None and known == classes else "the feature network does not know the data's classes"
