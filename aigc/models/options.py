"""Options of a family, in typed groups: described once here or beside the family, typed flat by users.

A configuration names options flat (`model.ema_ramp=0.1`), and so do `hparams` and checkpoints. A constructor marked
`@grouped` reads them in groups: a parameter that is annotated with a `@group` is put together from the flat options,
each called by the group's prefix and the field's name.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from functools import wraps
from types import FrameType
from typing import Any, TypeVar, dataclass_transform, get_type_hints

from lightning.pytorch.utilities.parsing import get_init_args
from torch import nn

from aigc.conditions import build_encoder

T = TypeVar("T")
_PREFIX, _NAME = "__option_prefix__", "option"


def option(name: str, **more: Any) -> Any:
    """A field whose flat name is `name` and not the prefix and its own; `default=` as of a dataclass."""
    return field(metadata={_NAME: name}, **more)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, option))
def group(prefix: str = "") -> Callable[[type[T]], type[T]]:
    """Makes a class of annotated fields a group: a frozen dataclass, its flat names beginning with `prefix`."""

    def make(cls: type[T]) -> type[T]:
        made = dataclass(frozen=True, kw_only=True)(cls)
        setattr(made, _PREFIX, prefix)
        return made

    return make


def grouped(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor of a family, taking flat options; its parameters that are groups are put together from them.

    Its signature and its annotations are the flat ones, and `save_hyperparameters()` in it keeps the flat options.
    """
    return _grouped(init, [])


def grouped_over(parent: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`grouped` for a constructor that hands its `**rest` on to that of `parent`: the options of both are its own."""
    return lambda init: _grouped(init, list(inspect.signature(parent.__init__).parameters.values())[1:])


def _grouped(init: Callable[..., None], inherited: list[inspect.Parameter]) -> Callable[..., None]:
    hints, parameters = get_type_hints(init), inspect.signature(init).parameters
    groups = {name: hints[name] for name in parameters if hasattr(hints.get(name), _PREFIX)}
    flat: list[inspect.Parameter] = []
    for name, parameter in parameters.items():
        if name not in groups:
            flat.append(parameter.replace(annotation=hints.get(name, parameter.annotation)))
            continue
        types = get_type_hints(groups[name])
        for f in fields(groups[name]):
            default = parameter.empty if f.default is MISSING else f.default
            flat.append(inspect.Parameter(
                _flat(groups[name], f), parameter.KEYWORD_ONLY, default=default, annotation=types[f.name]
            ))
    rest = next((p.name for p in flat if p.kind is p.VAR_KEYWORD), "")
    if inherited:
        own = {p.name for p in flat}
        flat = [p for p in flat if p.kind is not p.VAR_KEYWORD] + [p for p in inherited if p.name not in own]
        rest = ""
    flat.sort(key=lambda p: p.kind)                        # **rest stays last
    signature = inspect.Signature(flat)                    # a name in two groups is an error here

    @wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        options = dict(list(given.arguments.items())[1:])
        options |= options.pop(rest, {})
        known, outermost = vars(self), _OPTIONS not in vars(self)
        if outermost:
            known[_OPTIONS] = options | _of_subclasses(self, inspect.currentframe())
        parts = {
            name: kind(**{f.name: options.pop(_flat(kind, f)) for f in fields(kind)}) for name, kind in groups.items()
        }
        init(self, **options, **parts)
        if outermost:
            del known[_OPTIONS]

    construct.__signature__ = signature                    # type: ignore[attr-defined]
    construct.__annotations__ = {p.name: p.annotation for p in flat[1:]} | {"return": None}
    return construct


_OPTIONS = "_flat_options"                                 # of a family under construction


def flat_options(family: Any) -> dict[str, Any] | None:
    """What a family under construction was called with; None if none of its constructors is marked `@grouped`."""
    return vars(family).get(_OPTIONS)


def names_in(*kinds: Any) -> list[str]:
    """The flat names of all options of groups."""
    return [_flat(kind, f) for kind in kinds for f in fields(kind)]


def _flat(kind: Any, f: Any) -> str:
    return f.metadata.get(_NAME, getattr(kind, _PREFIX) + f.name)


def _of_subclasses(family: Any, construct: FrameType | None) -> dict[str, Any]:
    """The arguments of the constructors of `family` that called this one, as Lightning collects them."""
    found: dict[str, Any] = {}
    frame = construct.f_back if construct is not None else None
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, _, values = inspect.getargvalues(frame)
        if not names or values[names[0]] is not family:
            break
        found |= get_init_args(frame)
        frame = frame.f_back
    return found


# ---- groups that several families have ----


@group(prefix="ema_")
class Average:
    """Of the averaged copy (`networks.ema.EMA`), which samples come from."""

    halflife_images: float                                 # horizon of the average
    ramp: float                                            # halflife is at most this share of the images seen


@group()
class Schedule:
    """Of all learning rates (`Family.rate_factor`)."""

    warmup_images: float                                   # linear rise from 0, 0: none
    decay_from: float                                      # share of the budget after which the rates fall to 0


@group()
class Reading:
    """Of conditions, by a family that reads one as a vector."""

    classes: int | None = None
    vocabulary: list[str] | None = None                    # of the training captions, for condition=text
    condition: str = "none"                                # none, label or text
    text: dict[str, Any] | None = None                     # arguments of `conditions.text.TextEncoder`
    text_drop: float = 0.0                                 # share of training texts dropped, for empty prompts
    text_rate: float = 1.0                                 # multiplier of the learning rate of what reads them

    def reader(self, width: int) -> nn.Module | None:
        """What turns a condition into a vector of length `width`; None without one."""
        return build_encoder(
            self.condition, classes=self.classes, width=width, vocabulary=self.vocabulary, text=self.text
        )


@group()
class ResNet:
    """Of a `networks.resnet.ResNetGenerator`."""

    width: int                                             # feature maps of the first layer
    blocks: int                                            # residual blocks
    halvings: int                                          # of its grid
    kernel: int                                            # first and last convolution
    upsample: str                                          # resize: no checkerboards; transposed: as published
    residual: bool                                         # predict a change to the image, not a new image


@group(prefix="discriminator_")
class Patches:
    """Of a discriminator of patches (`networks.patchgan.PatchGAN`)."""

    width: int                                             # feature maps of its first layer
    layers: int                                            # strided; patches of 16, 34, 70 px for 1, 2, 3
    norm: str                                              # instance, spectral or none


@group()
class R1:
    """Of R1 on real images (`losses.adversarial.patch_r1`)."""

    gamma: float = option("r1")                            # on the mean logit of an image, 0: none
    every: int = option("r1_every")                        # steps between penalties, weighted up to match


@group()
class Adam:
    """Of a family with one optimizer."""

    rate: float
    betas: list[float]
    clip: float                                            # largest gradient norm, 0: no limit
