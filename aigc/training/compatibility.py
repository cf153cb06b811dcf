"""Which family learns from which data: what does not fit is refused before any work."""

import re
from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig

from aigc.config.schema import CONFIG_DIR
from aigc.config.targets import check_targets, locate
from aigc.errors import UserError, choices
from aigc.models.family import Family

NAMED = 8       # `data=` choices that a refusal names
KINDS_OF = {  # kinds of data that can serve each kind of batch
    "images": ("images", "captioned"),
    "captioned": ("captioned",),
    "unpaired": ("unpaired", "paired"),
    "paired": ("paired",),
}


def check_compatible(cfg: DictConfig) -> type[Family]:
    """The family's class, after checking that it can learn from this kind of data under this condition.

    Raises:
        UserError: names the `data=` choices that fit, or says what is missing or not allowed in the configuration.
    """
    check_targets({**callbacks_of(cfg), **loggers_of(cfg), "trainer": cfg.trainer})
    family: Any = locate(cfg.model.get("_target_"), "model")
    data: Any = locate(cfg.data.get("_target_"), "data")
    kinds = {kind for accepted in family.accepts for kind in KINDS_OF.get(accepted, (accepted,))}
    if data.kind not in kinds:
        fitting = data_of_kinds(kinds)
        more = f", or one of {len(fitting) - NAMED:,} more (--help lists all data)" if len(fitting) > NAMED else ""
        raise UserError(
            f"{family.__name__} learns from {' or '.join(sorted(kinds))} data, {data.__name__} gives {data.kind}: "
            f"choose data={'|'.join(fitting[:NAMED])}{more}"
        )
    if cfg.condition not in ("auto", *family.conditions):
        raise UserError(
            f"{family.__name__} has no condition '{cfg.condition}': {choices(cfg.condition, family.conditions)}"
        )
    family.check_parts(cfg.model)
    if (cfg.callbacks.get("scores") or {}).get("network") is not None and not family.makes_images():
        raise UserError(
            f"{family.__name__} makes no images for the feature network of "
            f"metrics={cfg.callbacks.scores.network} to look at: choose metrics=losses, its own on held-out images"
        )
    return family


def data_of_kinds(kinds: Collection[str]) -> list[str]:
    """The `data=` choices that give one of these kinds of batch: those that need no download first."""
    fits: dict[str, bool] = {}      # by class
    found = []
    for path in sorted((CONFIG_DIR / "data").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if target := re.search(r"^_target_: (\S+)", text, re.MULTILINE):
            if target[1] not in fits:
                fits[target[1]] = locate(target[1], "data").kind in kinds  # type: ignore[attr-defined]
            found += [("\ndownload: true" in text, path.stem)] * fits[target[1]]
    return [name for _, name in sorted(found)]


def callbacks_of(cfg: DictConfig) -> dict[str, Any]:
    """The configured callbacks by key, in order; null or {} means none."""
    nodes = {"metrics" if name == "scores" else f"callbacks.{name}": node for name, node in cfg.callbacks.items()}
    return {where: node for where, node in nodes.items() if node is not None and node != {}}


def loggers_of(cfg: DictConfig) -> dict[str, Any]:
    """The configured loggers by key; null means none."""
    return {f"logger.{name}": node for name, node in cfg.logger.items() if node is not None}
