"""What runs have to say beside each other: their course, scores with protocols, and what differs in their settings."""

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from aigc.errors import UserError, choices
from aigc.report.protocol import Score, alike, describe, differences, higher_is_better, monitored, scores_of
from aigc.report.runs import Run

SILENT = 1800.0         # seconds without a new line after which a run that should be running probably is not
ASIDE = ("logger.", "callbacks.", "hydra.", "resume", "study", "log_every")     # settings that change no result
CHOICES = ("model", "data", "study", "experiment")                              # overrides that have columns anyway
ABSENT = object()


@dataclass
class Column:
    """One score of all runs.

    Attributes:
        scores: each run's, or None.
        letters: each run's protocol, `A` for the one that most runs have; empty without a score.
        protocols: letter and description of each.
        warnings: what differs between the first protocol and each other, a sentence each.
    """

    name: str
    scores: list[Score | None]
    letters: list[str]
    protocols: dict[str, str]
    warnings: list[str]

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return higher_is_better(self.name)


class Comparison:
    """Runs beside each other.

    Args:
        runs: in any order; kept.
        score: the score to compare by; None: the one that most runs monitor, else that most runs have.

    Attributes:
        columns: every score that a run has, the chosen one first, then by how many runs have it.
        labels: each run's folder below the one that all share, or its own name where W&B gave one.
        settings: of the configurations, each dotted key whose value is not the same everywhere, with each run's value;
            None: the run has no such key.

    Raises:
        UserError: no run has the score.
    """

    def __init__(self, runs: Sequence[Run], score: str | None = None):
        self.runs = list(runs)
        found = [scores_of(run) for run in self.runs]
        counts = Counter(name for scores in found for name in scores)
        if score is not None and score not in counts:
            raise UserError(f"no run has a score '{score}': {choices(score, counts or ['none yet'])}")
        monitors = Counter(name for run in self.runs if (name := monitored(run)) in counts)
        first = score or next((name for name, _ in (monitors or counts).most_common(1)), None)
        names = sorted(counts, key=lambda name: (name != first, name.startswith("val/"), -counts[name], name))
        self.columns = [self._column(name, [scores.get(name, []) for scores in found]) for name in names]
        self.candidates = found
        self.labels = labels(self.runs)
        self.settings = differing([flat(run.config) for run in self.runs])

    @staticmethod
    def _column(name: str, candidates: list[list[Score]]) -> Column:
        chosen, numbers, protocols = alike(name, candidates)
        named = {letter(k): describe(score.shown) for k, score in enumerate(protocols)}
        warnings = [
            f"{name}: {letter(0)} and {letter(k)} were not measured alike, they differ in "
            + "; ".join(differences(protocols[0].facts, other.facts))
            for k, other in enumerate(protocols[1:], start=1)
        ]
        return Column(name, chosen, [letter(k) if k >= 0 else "" for k in numbers], named, warnings)

    def order(self) -> list[int]:
        """The runs from best to worst by the first column, one protocol after the other; without a score last."""
        if not self.columns:
            return list(range(len(self.runs)))
        column = self.columns[0]
        sign = -1 if column.higher else 1

        def place(k: int) -> tuple[bool, str, float]:
            score = column.scores[k]
            return (score is None, column.letters[k], sign * score.value if score else 0.0)

        return sorted(range(len(self.runs)), key=place)


def letter(number: int) -> str:
    """A, B, ..., Z, then Z27, Z28, ...: the name of a protocol."""
    return ascii_uppercase[number] if number < len(ascii_uppercase) else f"Z{number + 1}"


def labels(runs: Sequence[Run]) -> list[str]:
    """Short names that tell the runs apart."""
    parents = {str(run.folder.parent) for run in runs if run.source == "aigc"}
    shared = common(runs) if len(parents) > 1 else None
    names = [str(run.folder.relative_to(shared)) if shared and run.source == "aigc" else run.name for run in runs]
    twice = Counter(names)
    return [f"{name} ({run.folder.name})" if twice[name] > 1 else name for name, run in zip(names, runs, strict=True)]


def common(runs: Sequence[Run]) -> Path:
    """The deepest folder that holds all runs."""
    return Path(os.path.commonpath([run.folder.parent for run in runs]))


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model.latent": 64, ...}`; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Each key whose value is not the same in all configurations, those that most of them have first."""
    known = [config for config in configs if config]
    keys = dict.fromkeys(key for config in known for key in config if not key.startswith(ASIDE))
    found = {key: [config.get(key) for config in configs] for key in keys
             if not key.endswith("_target_") and len({repr(config.get(key, ABSENT)) for config in known}) > 1}
    return dict(sorted(found.items(), key=lambda item: sum(value is None for value in item[1])))


def facts(run: Run, now: float | None = None) -> dict[str, Any]:
    """What a run says of its course: status, minutes, images, speed, size; None where it does not say."""
    last: dict[str, Any] = next((line for line in reversed(run.history) if line.get("seconds") is not None), {})
    seconds = run.summary.get("seconds") or last.get("seconds")
    images = run.summary.get("images") or last.get("images")
    speed = images / seconds if images and seconds else None
    found = {
        "status": run.status,
        "family": run.family,
        "data": run.data,
        "minutes": seconds / 60 if seconds else None,
        "images": images,
        "images_per_second": run.summary.get("images_per_second") or speed,
        "parameters": run.summary.get("parameters"),
        "memory_mb": run.summary.get("peak_memory_mb"),
    }
    if run.status == "running" and (silent := (now or time.time()) - written(run)) > SILENT:
        found["status"] = f"running, silent for {silent / 3600:.1f} h"
    elif run.status in ("stopped", "failed") and run.summary.get("reason"):
        found["status"] = f"{run.status}: {run.summary['reason']}"
    return found


def written(run: Run) -> float:
    """When something was last written into the run's folder itself, in seconds since 1970."""
    times = [entry.stat().st_mtime for entry in run.folder.iterdir()] if run.folder.is_dir() else []
    return max(times, default=0.0)


def own_settings(runs: Sequence[Run]) -> list[str]:
    """Of each run what was typed for it and not for all; for a W&B run what differs in its configuration."""
    counts = Counter(override for run in runs for override in set(run.overrides))
    differ = differing([flat(run.config) if run.source == "wandb" else {} for run in runs])
    found = []
    for k, run in enumerate(runs):
        typed = [override for override in run.overrides
                 if counts[override] < len(runs) and override.split("=")[0] not in CHOICES]
        kept = [f"{key}={values[k]}" for key, values in differ.items() if values[k] is not None]
        found.append(" ".join(typed if run.source == "aigc" else kept))
    return found
