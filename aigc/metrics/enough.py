"""Remarks on too few images for a score: what a record says beside a score, or instead of it."""

from collections.abc import Mapping

from aigc.metrics.inception_score import LEAST, SPLITS


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
        return f"it needs {SPLITS * LEAST:,} images, and there are {n:,}"
    return None


def no_floor(n: int, held: int | None) -> str | None:
    """Why n images have no floor where `held` are held out (None: no split is); None: they have one."""
    if held is None:
        return "no test images are held out of the reference"
    return f"it needs as many test images as samples: {n:,}, and there are {held:,}" if held < n else None
