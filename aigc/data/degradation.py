"""Degradations: one operator each, which makes training data and is what an inverse problem is solved with.

Notable:
- Images are float32 in [0, 1], and noise is in the same units: sigma 25 of 255 is 0.098.
- `degradations_named` opens them by name; opened, `draw(seeds, shape)` draws each image's parameters from its own seed
  and gives an `Operator` for the batch: y = operator(x). A parameter is a number, or a range to draw from.
- A linear operator (`data/operators.py`) has `apply` (A x, without noise), `adjoint` (A^T y) and `inverse` (the
  pseudo-inverse A^+ y); one that is not says so.
- Random numbers come from a counter (splitmix64 of seed, purpose and place), in tensors on the images' own device: the
  same for an image in any batch, at any number of workers or devices.

Shape suffixes: N batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aigc.config.functions import check_known, options_of
from aigc.data.operators import (
    Blur,
    Chain,
    Downscale,
    Grey,
    Jpeg,
    Mask,
    Noise,
    Operator,
    Separable,
    gaussian_matrix,
    resize_matrix,
)
from aigc.errors import UserError, choices
from aigc.noise import uniform

Shape = tuple[int, int, int]                               # channels, height, width
Range = float | Sequence[float]                            # a number, or the ends of what is drawn from
SEGMENTS = 4                                               # of a stroke


Degradation = Callable[..., Operator]                      # (seeds, purpose, shape, *, options) -> operator
DEGRADATIONS: dict[str, Degradation] = {}


def degradation(function: Degradation) -> Degradation:
    """Registers a degradation under its name; its keyword parameters are its options."""
    DEGRADATIONS[function.__name__] = function
    return function


def drawn(seeds_N: Tensor, purpose: int, value: Range) -> Tensor:
    """A number for each image `(N,)`: the same for all, or evenly from between two."""
    if isinstance(value, int | float):
        return torch.full((len(seeds_N),), float(value), device=seeds_N.device)
    low, high = value
    return low + (high - low) * uniform(seeds_N, purpose, 1)[:, 0]


@degradation
def noise(seeds: Tensor, purpose: int, shape: Shape, *, sigma: Range = (0.0, 0.216)) -> Noise:
    """White Gaussian noise of standard deviation `sigma`, in units of [0, 1]."""
    return Noise(drawn(seeds, purpose, sigma), seeds, purpose + 1)


@degradation
def blur(seeds: Tensor, purpose: int, shape: Shape, *, sigma: Range = (0.5, 2.0)) -> Blur:
    """A Gaussian of standard deviation `sigma` in pixels; images are mirrored at their edges."""
    value = drawn(seeds, purpose, sigma)
    return Blur(gaussian_matrix(value, shape[1], most=_largest(sigma)),
                gaussian_matrix(value, shape[2], most=_largest(sigma)))


@degradation
def downscale(seeds: Tensor, purpose: int, shape: Shape, *, factor: int = 2) -> Downscale:
    """Smaller by a whole `factor`, rounded up."""
    return Downscale(*(resize_matrix(side, -(-side // factor), seeds.device)[None] for side in shape[1:]))


@degradation
def jpeg(seeds: Tensor, purpose: int, shape: Shape, *, quality: Range = (10, 80)) -> Jpeg:
    """A JPEG file of `quality` 1 to 100, a whole number, with chroma of half the size."""
    return Jpeg(drawn(seeds, purpose, quality).round())


@degradation
def boxes(
    seeds: Tensor, purpose: int, shape: Shape, *, number: Range = (1, 3), share: Range = (0.15, 0.45)
) -> Mask:
    """Black rectangles: their `number`, a whole one, and the `share` of the image's sides that each side has."""
    (_, h, w), most = shape, math.ceil(_largest(number))
    count = _whole(seeds, purpose, number)
    places = uniform(seeds, purpose + 1, 4 * most).view(-1, most, 4)
    low, high = _ends(share)
    tall, wide = ((low + (high - low) * places[..., k, None]) * side for k, side in ((0, h), (1, w)))
    y, x = (torch.arange(side, device=seeds.device) + 0.5 for side in (h, w))
    top, left = places[..., 2, None] * (h - tall), places[..., 3, None] * (w - wide)
    inside = ((y >= top) & (y < top + tall))[..., :, None] & ((x >= left) & (x < left + wide))[..., None, :]
    there = torch.arange(most, device=seeds.device) < count[:, None]
    return Mask(1 - (inside & there[:, :, None, None]).any(1, keepdim=True).float())


@degradation
def strokes(
    seeds: Tensor, purpose: int, shape: Shape, *, number: Range = (1, 4), width: Range = (0.05, 0.15)
) -> Mask:
    """Black strokes of a brush, bent three times: their `number`, and the `width` as a share of the shorter side."""
    (_, h, w), most, unit = shape, math.ceil(_largest(number)), min(shape[1:])
    count = _whole(seeds, purpose, number)
    places = uniform(seeds, purpose + 1, most * (3 + 2 * SEGMENTS)).view(-1, most, 3 + 2 * SEGMENTS)
    low, high = _ends(width)
    radius = (low + (high - low) * places[..., 0]) * unit / 2
    point = torch.stack([places[..., 1] * h, places[..., 2] * w], dim=-1)
    y = (torch.arange(h, device=seeds.device) + 0.5)[:, None].expand(h, w)
    x = (torch.arange(w, device=seeds.device) + 0.5)[None, :].expand(h, w)
    grid, keep = torch.stack([y, x], dim=-1), torch.ones(len(seeds), 1, h, w, device=seeds.device)
    angle = torch.zeros_like(radius)
    for k in range(SEGMENTS):
        angle = angle + (places[..., 3 + 2 * k] - 0.5) * (2 * math.pi if k == 0 else math.pi)
        step = (0.15 + 0.25 * places[..., 4 + 2 * k]) * unit
        along = torch.stack([angle.sin(), angle.cos()], dim=-1) * step[..., None]
        for stroke in range(most):
            there = (stroke < count) & (radius[:, stroke] > 0)
            away = grid - point[:, stroke, None, None]
            reach = (away * along[:, stroke, None, None]).sum(-1) / step[:, stroke, None, None] ** 2
            distance = (away - reach.clamp(0, 1)[..., None] * along[:, stroke, None, None]).norm(dim=-1)
            keep[(distance < radius[:, stroke, None, None])[:, None] & there[:, None, None, None]] = 0
        point = point + along
    return Mask(keep)


@degradation
def grey(seeds: Tensor, purpose: int, shape: Shape) -> Grey:
    """Without colour."""
    return Grey(shape[0])


def _ends(value: Range) -> tuple[float, float]:
    return (float(value), float(value)) if isinstance(value, int | float) else (float(value[0]), float(value[1]))


def _largest(value: Range) -> float:
    return max(_ends(value))


def _whole(seeds_N: Tensor, purpose: int, value: Range) -> Tensor:
    """A whole number for each image `(N,)`, each of the range's equally often."""
    low, high = _ends(value)
    return (low + ((high - low + 1) * uniform(seeds_N, purpose, 1)[:, 0]).floor()).long()


# ---- from a configuration ----


@dataclass
class Degradations:
    """Degradations in their order, opened: options are checked."""

    steps: list[tuple[Degradation, dict[str, Any]]]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [function.__name__ for function, _ in self.steps]

    def draw(self, seeds: Tensor, shape: Shape) -> Chain:
        """The operator for a batch of images of this shape, with parameters from every image's seed `(N,)` int64."""
        operators: list[Operator] = []
        for number, (function, options) in enumerate(self.steps):
            one = function(seeds, 16 * (number + 1), shape, **options)
            if isinstance(one, Separable):
                shape = (shape[0], one.rows.shape[1], one.columns.shape[1])
            operators.append(one)
        return Chain(operators)

    def described(self) -> list[dict[str, Any]]:
        """Names and options as plain values, for records."""
        return [{"name": function.__name__, **{name: list(value) if isinstance(value, tuple) else value
                                               for name, value in options.items()}}
                for function, options in self.steps]


LIMITS = {"noise.sigma": (0, 10), "blur.sigma": (0, 100), "downscale.factor": (2, 64), "jpeg.quality": (1, 100),
          "boxes.number": (0, 64), "boxes.share": (0, 1), "strokes.number": (0, 64), "strokes.width": (0, 1)}


def degradations_named(
    names: Any, options: Mapping[str, Any] | None = None, *, option: str = "data.degradations"
) -> Degradations:
    """The degradations that names stand for, in this order.

    Args:
        names: a list of names, or a mapping of names to their options.
        options: of each by its name, where `names` is a list; what is left out has the function's own value.
        option: where the names come from, for messages.

    Raises:
        UserError: there is no such degradation or option, a value is out of its range, or one comes twice.
    """
    if isinstance(names, Mapping):
        options, names = {**names}, list(names)
    names = [names] if isinstance(names, str) else list(names or [])
    if not names:
        raise UserError(f"{option} names no degradation: {choices('', DEGRADATIONS)}")
    steps = []
    for name in names:
        if name not in DEGRADATIONS:
            raise UserError(f"{option} names '{name}', which is no degradation: {choices(name, DEGRADATIONS)}")
        if names.count(name) > 1:
            raise UserError(f"{option} names '{name}' twice: name it once")
        own = {str(key): value for key, value in ((options or {}).get(name) or {}).items()}
        parameters = options_of(DEGRADATIONS[name])
        check_known(own, parameters, f"The degradation '{name}'")
        whole = {key: own.get(key, parameter.default) for key, parameter in parameters.items()}
        steps.append((DEGRADATIONS[name], {key: checked(f"{name}.{key}", value) for key, value in whole.items()}))
    return Degradations(steps)


def checked(name: str, value: Any) -> Any:
    """A number of a degradation, or a range as a tuple.

    Raises:
        UserError: it is neither, or out of bounds.
    """
    low, high = LIMITS[name]
    ends = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    one = name == "downscale.factor"
    if len(ends) > 2 or not ends or (one and not isinstance(value, int)) or any(
            isinstance(end, bool) or not isinstance(end, int | float) or not low <= end <= high for end in ends):
        what = "a whole number" if one else "a number, or [lowest, highest]"
        raise UserError(f"{name}={value} does not fit: give {what} from {low} to {high}")
    if len(ends) == 2 and ends[0] > ends[1]:
        raise UserError(f"{name}={list(ends)} runs downwards: give [lowest, highest]")
    return tuple(ends) if isinstance(value, Sequence) and len(ends) == 2 else ends[0]
