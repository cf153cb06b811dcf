"""Remarks on too few images for a score: what a record says beside a score, or instead of it."""

from collections.abc import Mapping

ROUNDING = 1e-6        # a Fréchet distance below this is rounding, and nothing can be measured against it


def be(n: int) -> str:
    """`is 1` or `are 5`."""
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


def no_floor(n: int, held: int | None, floor: float | None = None, *, split: str = "test") -> str | None:
    """Why n images have no floor where `held` are held out (None: no split is); None: they have one.

    `floor`, where it was measured, is the distance of the held-out images; `split` is what they are called.
    """
    if held is None:
        return "no test images are held out of the reference"
    if held < n:
        return f"it needs as many {split} images as samples: {n:,}, and there {be(held)}"
    if floor is not None and floor <= ROUNDING:
        return f"the {split} images are no further from the reference than rounding"
    return None


def no_label_accuracy(condition: str, known: int | None, classes: int | None) -> str | None:
    """Why labels cannot be told to be right, where a network knows so many of the data's classes; None: they can."""
    if condition != "label":
        return "the images are made without labels"
    return None if known is not None and known == classes else "the feature network does not know the data's classes"
