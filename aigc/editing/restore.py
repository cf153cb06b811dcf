"""Degraded pictures restored: by a run that learned it, by a diffusion run told what was measured, or classically."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aigc.data.degradation import Degradations, degradations_named
from aigc.data.degraded import degrade as degraded_by
from aigc.data.operators import Chain
from aigc.diffusion.known import measured
from aigc.editing.classical import METHODS, solve
from aigc.errors import UserError, check_count, choices
from aigc.images.grids import to_uint8
from aigc.images.pictures import resize
from aigc.models.capabilities import require
from aigc.models.family import Family

GUIDED = ("ddnm", "dps")                                   # by a diffusion run
SOLVERS = ("run", *GUIDED, *METHODS)


def restore(
    family: Family, images: Tensor, masks: Tensor | None, seeds: Sequence[int], *, solver: str = "run",
    scale: int = 1, degrade: Any = None, operator: Any = None, sigma: float | None = None, blur: float | None = None,
    strength: float = 1.0, options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Restored pictures `(n, c, scale h, scale w)` in [-1, 1] of degraded ones `(n, c, h, w)`.

    Args:
        family: one that restores, for `solver=run`; one that denoises and samples, for `ddnm` and `dps`.
        images: the degraded pictures.
        masks: none: what is to be filled is `task=inpaint`.
        seeds: one a picture.
        solver: `run`, `ddnm` or `dps`, or a name of `classical.METHODS`.
        scale: how much larger the results are.
        degrade: degradations to try, which the pictures get first; None: they are taken as they are.
        operator: for `ddnm` and `dps`: the degradations that the pictures have, with their numbers.
        sigma: for classical solvers: the noise, in units of [0, 1]; None: estimated.
        blur: for `richardson_lucy`: standard deviation of the blur in pixels.
        strength: of `dps`.
        options: further ones, of the run's sampling or of the classical solver.

    Raises:
        UserError: an option is unknown, out of its range, or does not fit the family or the pictures.
    """
    check_count("task.scale", scale)
    if solver not in SOLVERS:
        raise UserError(f"task.solver={solver} is unknown: {choices(solver, SOLVERS)}")
    holes, further = None, dict(options or {})
    if degrade is not None:
        tried = degradations_named(degrade, option="task.degrade")
        made = degraded_by(to_uint8(images), tried, torch.tensor(list(seeds), dtype=torch.int64))
        images, holes = made["image"].float() / 127.5 - 1, made.get("mask")
    if solver == "run":
        return by_run(family, images, holes, seeds, scale, further)
    if solver in GUIDED:
        return by_diffusion(family, images, seeds, solver, scale, operator, strength, further)
    own = {name: value for name, value in (("sigma", sigma), ("blur", blur)) if value is not None}
    return solve(solver, (images + 1) / 2, own | further, masks=holes, scale=scale) * 2 - 1


def by_run(
    family: Family, images: Tensor, holes: Tensor | None, seeds: Sequence[int], scale: int, options: dict[str, Any]
) -> Tensor:
    """What a restorer makes of pictures, enlarged bicubically before, as in its training."""
    require(family, "restore", run="run=", wanted="task.solver=run")
    model: Any = family
    if scale > 1:
        images = resize(images, (scale * images.shape[2], scale * images.shape[3]))
    told = {}
    if model.hparams.masks:
        told["masks"] = torch.zeros_like(images[:, :1]) if holes is None else holes
    return model.restore(images, seeds=list(seeds), **told, **options)


def by_diffusion(
    family: Family, images: Tensor, seeds: Sequence[int], solver: str, scale: int, operator: Any, strength: float,
    options: dict[str, Any],
) -> Tensor:
    """What an unconditional diffusion run draws in view of measurements y = A x + r n, the pictures.

    `ddnm`: the expected image, its range space replaced by that of the measurement (Wang et al. 2023, equation 13),
    less so below the noise r (equation 17). `dps`: posterior sampling (`diffusion.known.measured`).
    """
    require(family, "denoise", run="run=", wanted=f"task.solver={solver}")
    model: Any = family
    degradations = measured_by(operator, scale)
    (c, h, w), n = model.shape, len(images)
    if model.first_stage is not None:
        raise UserError(f"task.solver={solver} measures pixels, and this run samples latents: take a run without a "
                        "first stage")
    known: Chain = degradations.draw(torch.zeros(n, dtype=torch.int64, device=images.device), (c, h, w))
    if not known.linear:
        known.inverse(images)                              # says why
    shape = known.apply(torch.zeros(n, c, h, w, device=images.device)).shape
    if shape != images.shape:
        raise UserError(f"task.solver={solver} makes pictures of this run's own size, {w} x {h}, out of {shape[3]} x "
                        f"{shape[2]} pixels, and one has {images.shape[3]} x {images.shape[2]}: cut it, or give "
                        "solver=run with a restorer, which takes any size")
    noise = float(known.level(n).max())

    def measure(x0: Tensor) -> Tensor:
        return known.apply((x0 + 1) / 2) * 2 - 1

    if solver == "ddnm":
        guide: Any = partial(range_space, known=known, measure=measure, y=images, spread=2 * noise)
    else:
        guide = partial(measured, measure=measure, y=images, spread=float(model.sigma_data()),
                        measurement_noise=max(2 * noise, 0.02), strength=strength)
    return model.sample(n, seeds=list(seeds), guide=[guide], **options)


def measured_by(operator: Any, scale: int) -> Degradations:
    """The degradations that pictures have, with fixed numbers; `scale` above 1 adds down-scaling by it.

    Raises:
        UserError: there are none, or one has a range.
    """
    names = [operator] if isinstance(operator, str) else list(operator or ())
    named: dict[str, Any] = {str(name): operator[name] if isinstance(operator, Mapping) else {} for name in names}
    if holes := {"boxes", "strokes"} & set(named):
        raise UserError(f"task.operator names {min(holes)}, whose places only a mask says: take task=inpaint")
    if scale > 1 and "downscale" not in named:
        named = {"downscale": {"factor": scale}, **named}
    found = degradations_named(named, option="task.operator")
    for function, values in found.steps:
        for name, value in values.items():
            if isinstance(value, tuple):
                raise UserError(f"task.operator: {function.__name__}.{name} of these pictures is one number, not "
                                f"{list(value)}: give it")
    return found


def range_space(
    x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, known: Chain, measure: Any, y: Tensor, spread: float
) -> Tensor:
    """DDNM's guide: x0 + l A^+ (y - A x0), l = min(1, (sigma / alpha) / r) for noise of deviation r (`spread`)."""
    share = 1.0 if spread == 0 else min(1.0, float(sigma) / max(float(alpha), 1e-6) / spread)
    return x0 + share * known.inverse(y - measure(x0))
