"""Of several images for the same caption, the one that fits it best, as a CLIP sees it (Ramesh et al. 2021)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from aigc.errors import UserError
from aigc.images.grids import to_uint8
from aigc.models.family import Family
from aigc.models.guidance import Guidance
from aigc.noise import mix
from aigc.wording import Report, silent

Judge = Callable[[Tensor, Sequence[str]], Tensor]          # images uint8 (n, c, h, w), n texts: how well they fit (n,)


def check_reranking(family: Family, prompts: Sequence[str] | None, of: int) -> None:
    """Refuses a request without captions to fit, or without a choice.

    Raises:
        UserError: says which.
    """
    if family.condition != "text":
        raise UserError(f"rerank= chooses images by their captions, but this {type(family).__name__} was not trained "
                        "with condition=text: leave it out")
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("rerank= chooses images by their captions, and not all have one: give text=<prompt>")
    if of < 2:
        raise UserError(f"rerank_of={of} leaves no choice: give at least 2")


class Reranked:
    """Images `(h, w, c)` uint8, the k-th the best of its candidates.

    Candidate 0 of image k is the image that there would be without reranking; the others have seeds of their own. So
    image k depends on the seed, on k, its caption and the options alone. The k-th of those made has the number
    `first` + k.
    """

    def __init__(
        self, family: Family, judge: Judge, prompts: Sequence[str], *, of: int, seed: int, first: int = 0
    ):
        self.family, self.judge, self.prompts = family, judge, list(prompts)
        self.of, self.seed, self.first = of, seed, first   # candidates for an image; of the candidates' seeds
        self.chosen: list[tuple[int, float]] = []          # candidate and its fit, of the images made so far

    def made(
        self, *, batch_size: int, progress: Report = silent, guides: Guidance | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """Makes the images, `batch_size` candidates at once; `options` are those of the family's `sample`.

        `guides`: guidance by other runs, for the images.

        All candidates of an image are made together with those of the same others, or, if they are more, alone.
        """
        n = len(self.prompts)
        every = [(k, j) for k in range(n) for j in range(self.of)]
        best: tuple[float, int, Tensor] | None = None
        progress(0, n, "")
        whole = self.of * self.together(batch_size)
        starts = (start + part for start in range(0, len(every), whole) for part in range(0, whole, batch_size))
        for start in starts:
            rows = every[start : min(start + batch_size, start // whole * whole + whole)]
            texts = [self.prompts[k] for k, _ in rows]
            seeds = [self.seed_of(self.first + k, j) for k, j in rows]
            how = guides.of([k for k, _ in rows], options) if guides is not None else options
            pixels = to_uint8(self.family.sample(len(rows), condition=texts, seeds=seeds, **how))
            for (k, j), image, fit in zip(rows, pixels, self.judge(pixels, texts).tolist(), strict=True):
                if best is None or fit > best[0]:
                    best = (fit, j, image)
                if j == self.of - 1:
                    self.chosen.append((best[1], best[0]))
                    progress(k + 1, n, "")
                    yield best[2].permute(1, 2, 0).cpu().numpy()
                    best = None

    def together(self, batch_size: int) -> int:
        """How many images' candidates are made together; one image's are, however many there are."""
        return max(1, batch_size // self.of)

    def seed_of(self, k: int, candidate: int) -> int:
        """The seed of a candidate for image k."""
        return mix(mix(self.seed, k), candidate) if candidate else mix(self.seed, k)

    def facts(self, k: int) -> dict[str, Any]:
        """Which candidate the k-th image is, and how well it fits."""
        candidate, fit = self.chosen[k]
        return {"candidate": candidate, "fit": round(fit, 3)}
