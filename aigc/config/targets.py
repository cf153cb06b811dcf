"""What a `_target_` may name at each place of a configuration, and how it is built.

A configuration can come from a stranger: a run folder, an experiment file, a checkpoint. Importing a module runs it,
and a function may do anything. Therefore a name is checked against the packages of its place before anything is
imported; it must name a class of the place's kind that is defined there; and every node is checked before the first
one is built. docs/own-parts.md lists the places for users.
"""

import importlib
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from omegaconf import MISSING, OmegaConf

from aigc.errors import UserError, choices

ALLOW_VARIABLE = "AIGC_ALLOW_TARGETS"  # a user's packages, comma-separated; never read from a configuration


@dataclass(frozen=True)
class Place:
    """A place in the configuration for a `_target_`."""

    base: str                           # the class that it must name, or a base of it
    what: str                           # the same, in words
    packages: tuple[str, ...] = ()      # packages whose classes are allowed
    names: tuple[str, ...] = ()         # single classes from other packages
    parts: tuple[str, ...] = ()         # further packages for nested nodes
    given: tuple[str, ...] = ()         # options that the program sets and a configuration must not
    bare: bool = False                  # whether `names` use options as paths, which then must be plain names


# Deliberately left out of Lightning's classes: those that take functions (LambdaCallback, WeightAveraging,
# ThroughputMonitor, ModelPruning), write to a configured path (ModelCheckpoint, OnExceptionCheckpoint, prediction
# writers), reload their own files (LRFinder, BatchSizeFinder) or send data and the account's key to a configured URL
# (WandbLogger, MLFlowLogger, ...). The environment variable allows them.
_CALLBACKS = ("DeviceStatsMonitor", "EarlyStopping", "GradientAccumulationScheduler", "LearningRateMonitor",
              "ModelSummary", "RichModelSummary", "StochasticWeightAveraging", "Timer")
PLACES = {
    "model": Place(
        "aigc.models.family.Family", "a family of generators (aigc.models.family.Family)",
        packages=("aigc.models",), parts=("aigc.networks", "torch.nn"),
    ),
    "data": Place(
        "aigc.data.datamodule.ImageData", "a data module (aigc.data.datamodule.ImageData)", packages=("aigc.data",)
    ),
    "callbacks": Place(
        "lightning.pytorch.callbacks.callback.Callback", "a Lightning callback", packages=("aigc.training.callbacks",),
        names=tuple(f"lightning.pytorch.callbacks.{name}" for name in _CALLBACKS),
    ),
    "logger": Place(
        "lightning.pytorch.loggers.logger.Logger", "a Lightning logger", packages=("aigc.training.loggers",),
        names=("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"),
        given=("folder", "save_dir", "run_id", "recipe", "data"), bare=True,
    ),
    "trainer": Place(
        "lightning.pytorch.trainer.trainer.Trainer", "Lightning's Trainer",
        names=("lightning.Trainer", "lightning.pytorch.Trainer"),
        given=("callbacks", "default_root_dir", "logger", "model_registry", "plugins"),
    ),
    "hydra.sweeper.sampler": Place(
        "optuna.samplers.BaseSampler", "an Optuna sampler", packages=("optuna.samplers",)
    ),
    "hydra.sweeper.pruner": Place("optuna.pruners.BasePruner", "an Optuna pruner", packages=("optuna.pruners",)),
}
MOVED = {  # where the modules of older run folders are now
    "aigc.callbacks": "aigc.training.callbacks",
    "aigc.loggers": "aigc.training.loggers",
}
ALIASES = {"metrics": "callbacks"}      # `metrics` is the callback `callbacks.scores`
PLAIN = (bool, bytes, complex, dict, float, frozenset, int, list, object, set, str, tuple, type, type(None))


def place_of(where: str) -> Place:
    """The place of a config key such as `callbacks.x`."""
    where = ALIASES.get(where.split(".")[0], where)
    return next(place for key, place in PLACES.items() if f"{where}.".startswith(f"{key}."))


def own_packages() -> tuple[str, ...]:
    """The packages that the user allows through the environment variable."""
    names = (name.strip().rstrip(".") for name in os.environ.get(ALLOW_VARIABLE, "").split(","))
    return tuple(name for name in names if name)


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `packages`, or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def moved(target: Any) -> Any:
    """The name of today for what an older run folder names."""
    for old, new in MOVED.items():
        if isinstance(target, str) and target.startswith(f"{old}."):
            return target.replace(old, new, 1)
    return target


def locate(target: Any, where: str, *, key: str | None = None) -> type:
    """The class that `_target_` names at the config key `where`.

    Args:
        target: the dotted name.
        where: decides what is allowed.
        key: its name in messages, if it comes from elsewhere, such as a checkpoint.

    Raises:
        UserError: it is not allowed there, does not exist, or is not a class of the right kind.
    """
    place = place_of(where)
    base = imported(place.base)
    key = key or f"{where}._target_"
    found = _locate(moved(target), key, place.packages, place.names, (base,), place.what)
    if inspect.isabstract(found) or (found is base and target not in place.names):
        raise UserError(f"{key}={target} is only the base of such classes: name a class derived from it")
    return found


def _locate(
    target: Any, key: str, packages: tuple[str, ...], names: tuple[str, ...], bases: tuple[type, ...], what: str
) -> type:
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", target):
        raise UserError(f"{key}={target} names no class: give the dotted name of {what}")
    if any(part.startswith("_") for part in target.split(".")):
        raise UserError(f"{key}={target} is private: name a public class")
    own = own_packages()
    if target not in names and not within(target, packages + own):
        allowed = [f"{package}.*" for package in packages] + list(names)
        raise UserError(
            f"{key}={target} is not allowed there: give {what} from {', '.join(allowed) or 'nowhere else'}, or name a "
            f"package that you trust in the environment variable {ALLOW_VARIABLE}"
        )
    found = imported(target, key, bases)
    if not isinstance(found, type):
        raise UserError(f"{key}={target} is not a class: give {what}")
    if target not in names and not within(found.__module__, packages + own):
        raise UserError(f"{key}={target} leads to {found.__module__}.{found.__qualname__}: name {what} where it is "
                        "defined")
    if not issubclass(found, bases):
        raise UserError(f"{key}={target} is not {what}: name another class")
    return found


def imported(name: str, key: str = "", bases: tuple[type, ...] = (object,)) -> Any:
    """The object that a dotted name refers to, in a module already allowed; messages suggest classes of `bases`.

    Raises:
        UserError: there is no such module, or it has no such name.
    """
    module, _, last = name.rpartition(".")
    try:
        content = importlib.import_module(module)
    except Exception as error:          # a user's module may fail in any way
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{key}={name} cannot be imported ({type(error).__name__}: {reason}): give another name or "
                        "fix the module") from error
    if not hasattr(content, last):
        known = [name for name, value in vars(content).items() if isinstance(value, type) and issubclass(value, bases)]
        advice = choices(last, [k for k in known if not k.startswith("_")]) if known else "give another name"
        raise UserError(f"{key}={name} does not exist: {advice}")
    return getattr(content, last)


# ---- building ----


@dataclass
class _Plan:
    """A checked node: its class and options, with nested nodes planned too."""

    factory: type
    where: str
    options: dict[str, Any]


def check_targets(nodes: Mapping[str, Any]) -> None:
    """Refuses nodes (by config key) that could not be built, before the first one is built.

    Raises:
        UserError: see `instantiate`.
    """
    for where, node in nodes.items():
        _plan(node, where)


def instantiate(node: Any, where: str, **given: Any) -> Any:
    """Builds the object of a `_target_` node after checking every target in it and all of its options.

    Args:
        node: a mapping with `_target_`; nested nodes are built too.
        where: the config key of the node, e.g. `model`, which decides what is allowed.
        **given: arguments from the program besides the config's; those that the class does not take are dropped.

    Raises:
        UserError: a target is not allowed there, or an option does not exist or does not fit.
    """
    return _build(_plan(node, where), given)


def _plan(node: Any, where: str) -> _Plan:
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, Mapping) or "_target_" not in plain:
        raise UserError(f"'{where}' names no _target_: say which class to build")
    place = place_of(where)
    factory = locate(plain["_target_"], where)
    taken = [name for name in place.given if name in plain]
    if taken:
        raise UserError(f"'{where}.{taken[0]}' is set by the program: leave it out")
    if place.bare and plain["_target_"] in place.names:
        _check_bare(plain, where)
    return _planned(factory, plain, where, place)


def _check_bare(options: Mapping[str, Any], where: str) -> None:
    """Refuses paths in options of other packages' classes, which would write there.

    Raises:
        UserError: names the option.
    """
    for name, value in options.items():
        if isinstance(value, str) and name != "_target_" and (".." in value or re.search(r"[/\\]", value)):
            raise UserError(f"'{where}.{name}' is '{value}', which is a path: its files belong in the run folder, so "
                            "give a plain name")


def _planned(factory: type, node: Mapping[str, Any], where: str, place: Place) -> _Plan:
    hints = _hints(factory)
    options = {}
    for name, value in node.items():
        if name == "_target_" or value == MISSING:
            continue
        if str(name).startswith("_"):
            raise UserError(f"'{where}.{name}' is not supported: only _target_ is")
        options[str(name)] = _nested(value, f"{where}.{name}", tuple(_classes(hints.get(name))), place)
    return _Plan(factory, where, options)


def _nested(value: Any, where: str, bases: tuple[type, ...], place: Place) -> Any:
    """A value with its nested nodes planned; `bases` are the classes in its parameter's annotation."""
    if isinstance(value, Mapping):
        if "_target_" not in value:
            return {name: _nested(item, f"{where}.{name}", bases, place) for name, item in value.items()}
        if not bases:
            raise UserError(f"'{where}' takes no object, so _target_ is not allowed there: give a plain value")
        what = " or ".join(f"a {base.__name__}" for base in bases)
        factory = _locate(value["_target_"], f"{where}._target_", place.packages + place.parts, (), bases, what)
        return _planned(factory, value, where, place)
    if isinstance(value, list):
        return [_nested(item, f"{where}[{i}]", bases, place) for i, item in enumerate(value)]
    return value


def _hints(factory: type) -> dict[str, Any]:
    try:
        return get_type_hints(factory.__init__)  # type: ignore[misc]
    except (NameError, TypeError):      # names that are imported only for type checkers
        return {}


def _classes(hint: Any) -> Iterator[type]:
    """The classes that an annotation allows, including those in unions and containers."""
    origin = typing.get_origin(hint)
    if origin in (Callable, type):      # a function or a class, which a configuration may not pass
        return
    if origin is not None or isinstance(hint, types.UnionType):
        for part in typing.get_args(hint):
            yield from _classes(part)
    elif isinstance(hint, type) and hint not in PLAIN:
        yield hint


def _build(value: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _build(item, {}) for name, item in value.items()}
    if isinstance(value, list):
        return [_build(item, {}) for item in value]
    if not isinstance(value, _Plan):
        return value
    return _construct(value.factory, value.where, {k: _build(v, {}) for k, v in value.options.items()}, given)


def _construct(factory: type, where: str, options: dict[str, Any], given: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in given.items() if open_ended or name in parameters}
    arguments = {**given, **_checked(factory, where, options, [name for name in given if name not in options])}
    if within(factory.__module__, own_packages()):      # its author needs the traceback
        return factory(**arguments)
    try:
        return factory(**arguments)
    except UserError:
        raise
    except Exception as error:          # constructors raise anything for options they cannot use
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"'{where}' cannot be built with these options ({reason[:300]}): change them") from error


def _checked(factory: Any, where: str, options: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The options of a configuration as the annotations of a constructor want them, checked by pydantic.

    Args:
        factory: the class.
        where: its config key.
        options: as configured.
        given: arguments that the program adds, unchecked.

    Raises:
        UserError: an option does not exist, is missing, or does not fit its annotation.
    """
    from pydantic import ValidationError

    hints = _hints(factory)
    parameters = {
        name: p.replace(kind=p.kind if p.kind is p.VAR_KEYWORD else p.KEYWORD_ONLY, annotation=hints.get(name, Any))
        for name, p in inspect.signature(factory).parameters.items()
        if name not in given and p.kind is not p.VAR_POSITIONAL
    }
    try:
        taken = _accepting(parameters)(**options)
        return {name: taken[name] for name in options}  # without the defaults
    except ValidationError as error:
        wrong = {problem["type"]: problem for problem in reversed(error.errors())}
        problem = next((wrong[kind] for kind in ("unexpected_keyword_argument", "missing_keyword_only_argument")
                        if kind in wrong), error.errors()[0])
        name = str(problem["loc"][0])
        if problem["type"] == "unexpected_keyword_argument":
            known = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
            advice = choices(name, known) if known else f"{factory.__name__} takes none"
            raise UserError(f"'{where}' has no option '{name}': {advice}") from error
        if problem["type"] == "missing_keyword_only_argument":
            raise UserError(f"'{where}' needs the option '{name}': add {where}.{name}=<value>") from error
        hint = hints[name]
        shown = str(hint) if not inspect.isclass(hint) else hint.__name__
        raise UserError(f"'{where}.{name}' is {options[name]!r}, which does not fit {shown}: "
                        f"{problem['msg'].lower()}") from error


def _accepting(parameters: Mapping[str, inspect.Parameter]) -> Callable[..., dict[str, Any]]:
    """A function with these parameters that returns its arguments, as pydantic converts them."""
    from pydantic import ConfigDict, validate_call

    def accept(**arguments: Any) -> dict[str, Any]:
        return arguments

    accept.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    accept.__annotations__ = {name: p.annotation for name, p in parameters.items()}
    try:
        return validate_call(config=ConfigDict(arbitrary_types_allowed=True))(accept)
    except Exception:                   # an annotation that pydantic has no schema for
        return _accepting({name: p.replace(annotation=Any) for name, p in parameters.items()})
