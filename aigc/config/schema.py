"""Configuration: where it is, and the schema of its top level.

Nothing here imports torch, so `--help` and `--cfg job` answer quickly.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from aigc.errors import UserError, choices

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"  # wheel | checkout


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
    condition: str = "auto"
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
class AnimationConfig:
    """`animation` of `aigc.generate`: what happens between two frames."""

    frames: int = 24
    fps: float = 8.0
    zoom: float = 1.03
    rotate: float = 0.0
    translate: list[float] = field(default_factory=lambda: [0.0, 0.0])
    skip: float = 0.5


@dataclass
class GenerateConfig:
    """The top level of `aigc.generate`; conf/generate.yaml explains each key."""

    run: str = "???"
    checkpoint: str = "best"
    recipe: str | None = None
    out: str | None = None
    overwrite: bool = False
    n: int = 64
    seed: int = 0
    label: Any = None
    text: Any = None
    guidance: float | None = None
    truncation: float | None = None
    rerank: str | None = None
    rerank_of: int = 8
    classifier: str | None = None
    classifier_guidance: float | None = None
    clip: str | None = None
    clip_guidance: float | None = None
    secondary: str | None = None
    init: str | None = None
    skip: int | None = None
    symmetry: str | None = None
    video: str | None = None
    animation: AnimationConfig = field(default_factory=AnimationConfig)
    sampler: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    format: str = "png"
    batch_size: int = 64
    device: str = "auto"


@dataclass
class EditConfig:
    """The top level of `aigc.edit`; conf/edit.yaml explains each key."""

    task: dict[str, Any] = field(default_factory=dict)
    run: str = "???"
    checkpoint: str = "best"
    recipe: str | None = None
    images: str = "???"
    out: str | None = None
    overwrite: bool = False
    mask: dict[str, Any] = field(default_factory=dict)
    pad: dict[str, Any] = field(default_factory=dict)
    direction: str = "a2b"
    side: int | None = None
    range: Any = None
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
    second: str | None = "auto"
    second_images: int | None = None
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
    classifier: str | None = None
    classifier_guidance: float | None = None
    methods: Any = None
    lpips: str | None = "auto"
    lpips_weights: str | None = None
    extra: list[str] = field(default_factory=list)
    guidance: float | None = None
    truncation: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    out: str | None = None
    overwrite: bool = False
    batch_size: int = 100
    megapixels: float = 4.0
    device: str = "auto"


@dataclass
class SearchConfig:
    """The top level of `aigc.search`; conf/search.yaml explains each key."""

    clip: str = "???"
    checkpoint: str = "best"
    images: str = "???"
    text: Any = None
    image: str | None = None
    n: int = 12
    out: str | None = None
    overwrite: bool = False
    range: Any = None
    batch_size: int = 64
    device: str = "auto"


@dataclass
class DescribeConfig:
    """The top level of `aigc.describe`; conf/describe.yaml explains each key."""

    run: str = "???"
    checkpoint: str = "best"
    images: str = "???"
    candidates: Any = None
    n: int = 3
    question: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    out: str | None = None
    overwrite: bool = False
    range: Any = None
    batch_size: int = 64
    device: str = "auto"


@dataclass
class LineageConfig:
    """The top level of `aigc.lineage`; conf/lineage.yaml explains each key."""

    images: str = "???"
    out: str | None = None
    overwrite: bool = False


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
    "compare": CompareConfig, "search": SearchConfig, "describe": DescribeConfig,
    "lineage": LineageConfig,
}


def register_schemas() -> None:
    """Registers the schemas with Hydra, as `<entry point>_schema`."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def check_closed(cfg: Any, schema: type, where: str = "") -> None:
    """Refuses keys that the schema lacks, which `+key=value` would add silently.

    Raises:
        UserError: names the nearest known keys.
    """
    known = {field.name: field.type for field in fields(schema)}
    for name in cfg:
        if name not in known:
            near = choices(f"{where}{name}", [where + key for key in known])
            raise UserError(f"there is no option '{where}{name}': {near}")
        if is_dataclass(known[name]):
            check_closed(cfg[name], known[name], f"{where}{name}.")  # type: ignore[arg-type]


def to_plain(cfg: Any, *, resolve: bool = True) -> dict[str, Any]:
    """A configuration as dicts and lists, interpolations resolved unless told otherwise."""
    plain = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
