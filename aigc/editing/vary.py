"""Variations of pictures: part of the way to noise and back, codes drawn anew, or latents nearby, as a family can."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from aigc.editing.codes import recoded
from aigc.editing.redrawing import redrawn, redraws
from aigc.errors import UserError
from aigc.images.pictures import resize
from aigc.models.family import Family
from aigc.models.requests import one_for_all
from aigc.networks.tokens import hidden, uniforms
from aigc.noise import SeededNoise, mix

PLACES = 0xC0DE5                                           # separates which codes are drawn from what is drawn


def vary(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, strength: float = 0.25,
    text: str | None = None, label: Any = None, options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] like `images`; 0 leaves what the family makes of them, 1 hardly anything.

    Diffusion goes `strength` of the way to noise and back. Of codes, this share is drawn anew, in places of each
    seed's own. Latents become sqrt(1 - s^2) z + s e, with e as likely as they are: from the prior N(0, 1) of a vector,
    or of the mean and the deviation that a grid of them has itself.

    Raises:
        UserError: an option is out of its range or does not fit the family.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"task.strength={strength} is no strength: give one from 0 to 1")
    if redraws(family):
        return redrawn(family, images, seeds, strength=strength, text=text, label=label, options=options)
    if family.can("complete"):
        rows, columns = cast(Any, family).tokenizer.shape
        numbers = uniforms(SeededNoise([mix(int(seed), PLACES) for seed in seeds]), rows * columns)
        masked = hidden(torch.full((len(images),), round(strength * rows * columns)), numbers).view(-1, rows, columns)
        return recoded(family, images, masked, seeds, text=text, label=label, **(options or {}))
    if options:
        raise UserError(f"task.options={dict(options)}, but a {type(family).__name__} draws its neighbours without "
                        "any sampling: leave it out")
    return nearby(family, images, seeds, strength, one_for_all(family, {"text": text, "label": label}))


def nearby(family: Family, images: Tensor, seeds: Sequence[int], strength: float, asked: Any) -> Tensor:
    """Neighbours by the latents of a family that encodes and decodes, at its own size and scaled back."""
    model, size, own = cast(Any, family), (images.shape[2], images.shape[3]), tuple(family.hparams.size)
    if family.encodes_by_search:
        raise UserError(f"a {type(family).__name__} searches for the latents of each picture, for seconds: task=vary "
                        "needs a run that encodes at once, or denoises, or draws codes")
    told = {} if asked is None else {"condition": [asked] * len(images)}
    z = model.encode(images if own == size else resize(images, own), **told)
    fresh = SeededNoise(seeds, z.device)(*z.shape[1:])
    mean, spread = torch.zeros((), device=z.device), torch.ones((), device=z.device)
    if z.dim() > 2:
        spread, mean = torch.std_mean(z.flatten(1), dim=1)
        mean, spread = (one.view(-1, *[1] * (z.dim() - 1)) for one in (mean, spread))
    made = model.decode(mean + (1 - strength**2) ** 0.5 * (z - mean) + strength * spread * fresh, **told)
    return made if own == size else resize(made, size)
