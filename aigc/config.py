"""Configuration: where it lives, the closed top level, and safe instantiation of `_target_` nodes.

Nothing here imports torch: `--help` and `--cfg job` answer before it could have been.
"""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from aigc.errors import UserError, choices

_PACKAGE = Path(__file__).resolve().parent
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"  # wheel | checkout
ALLOWED_TARGETS = (
    "aigc.", "lightning.", "optuna.pruners.", "optuna.samplers.", "torch.nn.", "torch.optim.", "torchmetrics.",
    "torchvision.",
)
ALLOW_VARIABLE = "AIGC_ALLOW_TARGETS"  # a user's own packages, comma-separated; never read from a config


@dataclass
class BudgetConfig:
    """When a run ends."""

    minutes: float | None = None
    images: int | None = None


@dataclass
class TrainConfig:
    """The top level of a training configuration; conf/train.yaml explains each key."""

    study: str = "default"
    seed: int = 1
    condition: str = "none"
    batch_size: int = 64
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    log_every: int = 20
    resume: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class GenerateConfig:
    """The top level of `aigc.generate`; conf/generate.yaml explains each key."""

    run: str = "???"
    checkpoint: str = "best"
    out: str | None = None
    n: int = 64
    seed: int = 0
    label: Any = None
    text: Any = None
    guidance: float | None = None
    truncation: float | None = None
    sampler: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    format: str = "png"
    batch_size: int = 64
    device: str = "auto"


@dataclass
class EditConfig:
    """The top level of `aigc.edit`; conf/edit.yaml explains each key."""

    task: str = "translate"
    run: str = "???"
    checkpoint: str = "best"
    images: str = "???"
    out: str | None = None
    direction: str = "a2b"
    side: int | None = None
    seed: int = 0
    format: str = "keep"
    batch_size: int = 16
    megapixels: float = 4.0
    device: str = "auto"


@dataclass
class EvaluateConfig:
    """The top level of `aigc.evaluate`; conf/evaluate.yaml explains each key."""

    run: str = "???"
    checkpoint: str = "best"
    against: str | None = None
    networks: Any = None
    weights: dict[str, str | None] = field(default_factory=dict)
    preprocessing: dict[str, str | None] = field(default_factory=dict)
    num_samples: int | None = None
    num_reals: int | None = None
    split: str = "train"
    test: str = "test"
    balanced: bool = True
    seed: int = 0
    resamples: int = 100
    neighbours: int = 5
    memorisation: bool = True
    kd_subsets: int = 20
    kd_subset_size: int = 1000
    attribute_samples: int = 500
    clip: str | None = None
    lpips: str | None = "auto"
    lpips_weights: str | None = None
    guidance: float | None = None
    truncation: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    out: str | None = None
    batch_size: int = 100
    megapixels: float = 4.0
    device: str = "auto"


@dataclass
class CompareConfig:
    """The top level of `aigc.compare`; conf/compare.yaml explains each key."""

    runs: Any = "runs"
    out: str | None = None
    score: str | None = None
    at_images: int | None = None
    at_minutes: float | None = None
    title: str | None = None
    serve: bool = False
    port: int | None = None
    refresh_seconds: float = 5
    shown: int = 12
    grids: int = 300
    thumbnail: int = 280
    points: int = 40000


SCHEMAS: dict[str, type] = {
    "train": TrainConfig, "generate": GenerateConfig, "edit": EditConfig, "evaluate": EvaluateConfig,
    "compare": CompareConfig,
}


def register_schemas() -> None:
    """Makes the schemas known to Hydra, as `<entry point>_schema`."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def check_closed(cfg: Any, schema: type, where: str = "") -> None:
    """Refuses keys that the schema does not have, which `+key=value` would add in silence.

    Raises:
        UserError: names the nearest keys there are.
    """
    known = {field.name: field.type for field in fields(schema)}
    for name in cfg:
        if name not in known:
            near = choices(f"{where}{name}", [where + key for key in known])
            raise UserError(f"there is no option '{where}{name}': {near}")
        if is_dataclass(known[name]):
            check_closed(cfg[name], known[name], f"{where}{name}.")  # type: ignore[arg-type]


def allowed(path: str) -> bool:
    """Whether a dotted name stands under an allowed package."""
    own = [name.strip().rstrip(".") for name in os.environ.get(ALLOW_VARIABLE, "").split(",")]
    return path.startswith(ALLOWED_TARGETS + tuple(f"{name}." for name in own if name))


def locate(target: str) -> Any:
    """The class or function that `_target_` names.

    Raises:
        UserError: it is outside the allowed packages, also by a detour through an allowed module, or does not exist.
    """
    refusal = (
        f"_target_ '{target}' is not in an allowed package ({', '.join(p + '*' for p in ALLOWED_TARGETS)}): "
        f"name your own package in the environment variable {ALLOW_VARIABLE}"
    )
    if not allowed(target):
        raise UserError(refusal)
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:
        raise UserError(f"_target_ '{target}' does not exist: {error}") from error
    if not allowed(f"{getattr(found, '__module__', '')}."):
        raise UserError(refusal)
    return found


def instantiate(node: Any, where: str, **given: Any) -> Any:
    """Builds the object of a `_target_` node after checking every target in it and every option of its own.

    Args:
        node: a mapping with `_target_`; nested nodes are built as well.
        where: the config key of the node, for messages, e.g. `model`.
        **given: arguments that the program gives besides the config's.

    Raises:
        UserError: a target that is not allowed, an option that does not exist or has the wrong type.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else dict(node)
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(f"'{where}' names no _target_: say which class to build")
    options = {str(name): value for name, value in plain.items() if name != "_target_" and value != MISSING}
    built = {name: _build_nested(value, f"{where}.{name}") for name, value in options.items()}
    return _construct(plain["_target_"], where, built, given)


def _build_nested(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return instantiate(value, where)
        return {name: _build_nested(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_build_nested(item, f"{where}[{i}]") for i, item in enumerate(value)]
    return value


def _construct(target: str, where: str, options: dict[str, Any], given: dict[str, Any]) -> Any:
    factory = locate(target)
    for name in options:
        if name.startswith("_"):
            raise UserError(f"'{where}.{name}' is not supported: only _target_ is")
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {name: value for name, value in given.items() if open_ended or name in parameters}
    for name in options:
        if name not in parameters and not open_ended:
            known = [p for p in parameters if p != "self" and p not in given]
            raise UserError(f"'{where}' has no option '{name}': {choices(name, known)}")
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and name not in options and name not in given
    ]
    if missing:
        raise UserError(f"'{where}' needs the option '{missing[0]}': add {where}.{missing[0]}=<value>")
    return factory(**_typed(factory, where, options), **{k: v for k, v in given.items() if k not in options})


def _typed(factory: Any, where: str, options: dict[str, Any]) -> dict[str, Any]:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):
        return options
    result = {}
    for name, value in options.items():
        result[name] = value
        hint = hints.get(name)
        if hint is None or hint is Any:
            continue
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        except Exception:  # a hint that pydantic has no schema for, or that carries its own config
            continue
        try:
            result[name] = adapter.validate_python(value)
        except ValidationError as error:
            shown = str(hint) if not inspect.isclass(hint) else hint.__name__
            reason = error.errors()[0]["msg"].lower()
            raise UserError(f"'{where}.{name}' is {value!r}, which does not fit {shown}: {reason}") from error
    return result


def to_plain(cfg: Any, *, resolve: bool = True) -> dict[str, Any]:
    """A configuration as dicts and lists, interpolations resolved unless told otherwise."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
