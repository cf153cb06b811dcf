"""Parts of pictures drawn anew, in view of the rest: by any diffusion run, or by a run over codes."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.diffusion.guides import listed
from aigc.diffusion.known import known_pixels, measured
from aigc.editing.codes import recoded
from aigc.errors import UserError, choices
from aigc.models.family import Family
from aigc.models.requests import one_for_all

METHODS = ("replace", "posterior")


def inpaint(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, method: str = "replace",
    resample: int = 1, jump: int = 1, strength: float = 1.0, noise: float = 0.05, text: str | None = None,
    label: Any = None, options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1], at the family's own size, drawn anew where `masks` `(n, 1, h, w)` are True.

    Elsewhere they are near the given ones, and whoever calls puts those back.

    Args:
        family: one that denoises and samples, or one with `complete` over codes.
        images: at the family's size.
        masks: what is drawn.
        seeds: one an image.
        method: how a diffusion run knows the rest: `replace` (`diffusion.known.known_pixels`) or `posterior`
            (`diffusion.known.measured`, through the decoder in latents).
        resample: times that each stretch of the path is gone (`diffusion.resampling`).
        jump: steps of a stretch.
        strength: of `posterior`.
        noise: of the known pixels, for `posterior`, in [-1, 1].
        text: what all of them show, with condition=text; None, here and for the label: nothing is said.
        label: what all of them show, with condition=label.
        options: further options of sampling.

    Raises:
        UserError: an option is unknown, out of its range, or does not fit the family.
    """
    assert masks is not None
    if method not in METHODS:
        raise UserError(f"task.method={method} is unknown: {choices(method, METHODS)}")
    further = dict(options or {})
    unknown = images.masked_fill(masks, 0.0)               # what was there before must not be seen
    if not family.can("denoise"):
        return over_codes(family, unknown, masks, seeds, text=text, label=label, **further)
    asked = one_for_all(family, {"text": text, "label": label})
    if asked is None and family.condition != "none":
        further = {"guidance": 0.0, "guidance_interval": None, **further}    # no label is drawn in place of one
    model: Any = family
    guides = listed(further.pop("guide", model.hparams.sampler.get("guide")))
    guide = replacing(model, unknown, masks) if method == "replace" else \
        observing(model, unknown, masks, strength=strength, noise=noise)
    return model.sample(len(images), condition=None if asked is None else [asked] * len(images), seeds=list(seeds),
                        guide=[*guides, guide], resample=resample, jump=jump, **further)


def replacing(model: Any, images: Tensor, masks: Tensor) -> Any:
    """The guide that replaces what is known, in pixels or in latents.

    Raises:
        UserError: latents are a vector, no place of which belongs to pixels.
    """
    if (stage := model.first_stage) is None:
        return partial(known_pixels, image=images, mask=masks)
    if stage.shape[1:] == (1, 1):
        raise UserError("task.method=replace needs latents with a place for each part of the picture, and this run's "
                        "are vectors: give task.method=posterior")
    latents = stage.encode(images)
    places = F.adaptive_max_pool2d(masks.float(), latents.shape[2:]) > 0
    return partial(known_pixels, image=latents, mask=places)


def observing(model: Any, images: Tensor, masks: Tensor, *, strength: float, noise: float) -> Any:
    """The guide that observes what is known, in latents through their decoder.

    Raises:
        UserError: a number is out of its range.
    """
    if not (strength > 0 and noise > 0):
        raise UserError(f"task.strength={strength} and task.noise={noise} must be above 0")
    kept = (~masks).float()
    stage = model.first_stage

    def measure(x0: Tensor) -> Tensor:
        return kept * (x0 if stage is None else stage.decode(x0))

    spread = float(model.sigma_data()) if stage is None else 1.0
    return partial(measured, measure=measure, y=kept * images, spread=spread, measurement_noise=noise,
                   strength=strength)


def over_codes(
    family: Family, images: Tensor, masks: Tensor, seeds: Sequence[int], *, text: str | None, label: Any,
    **options: Any,
) -> Tensor:
    """Those codes drawn anew whose places hold a pixel of the mask."""
    places = F.adaptive_max_pool2d(masks.float(), cast(Any, family).tokenizer.shape)[:, 0] > 0
    known = (images * ~masks).sum((1, 2, 3), keepdim=True) / (~masks).expand_as(images).sum((1, 2, 3), keepdim=True)
    filled = torch.where(masks, known.nan_to_num(), images)
    return recoded(family, filled, places, seeds, text=text, label=label, **options)
