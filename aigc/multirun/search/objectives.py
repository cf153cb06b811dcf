"""What a search optimizes: its objectives, and the scores that a run logs and leaves in its summary."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aigc.errors import UserError, choices
from aigc.runs.catalogue import higher_is_better

MONITORED = "monitored"      # the objective that the runs themselves call best


def objectives_of(asked: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Objectives with Optuna's directions; none given: the score that selects best.ckpt.

    Raises:
        UserError: an unknown direction, or nothing is measured.
    """
    known = ("minimize", "maximize")
    for name, direction in (asked or {}).items():
        if direction not in known:
            raise UserError(f"hydra.sweeper.objectives.{name}={direction} is unknown: {choices(direction, known)}")
    if not metrics and (not asked or MONITORED in asked):
        raise UserError("a search needs scores, and metrics=none measures nothing: choose metrics=, or objectives")
    mode = metrics.get("mode") or ("max" if higher_is_better(monitor_of(metrics)) else "min")
    return dict(asked or {MONITORED: "minimize" if mode == "min" else "maximize"})


def entries_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's summary that can be an objective, by name: its last scores, and `sampling.seconds`-like
    paths of other entries; `monitored` is the best value of the score that selects best.ckpt. A score that could not
    be taken is NaN.
    """
    missing = dict.fromkeys(summary.get("scores_missing") or {}, math.nan)
    scores = summary.get("scores") or {}
    last = scores.get("last") or {}
    best = scores.get("best")
    found: dict[str, Any] = {**missing, MONITORED: math.nan if best is None and (last or missing) else best, **last}
    for key, value in summary.items():
        nested = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        found |= {k: v for k, v in nested.items() if k not in found}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def monitored(metrics: Mapping[str, Any], line: Mapping[str, Any]) -> str | None:
    """Which score of a log line selects best.ckpt: the Fréchet distance, of the first direction, unless named."""
    name = monitor_of(metrics)
    return next((key for key in line if key == name or (key.endswith(f"/{name}") and "identity" not in key)), None)


def monitor_of(metrics: Mapping[str, Any]) -> str:
    """The score that selects best.ckpt, without a direction before it where none is named."""
    network = metrics.get("network")
    return str(metrics.get("monitor") or ("fid" if network == "inception" else f"fd_{network}"))


def logged(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log that may still be growing."""
    lines = []
    with contextlib.suppress(OSError):
        for text in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines
