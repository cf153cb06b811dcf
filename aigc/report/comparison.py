"""Runs side by side: their course, scores with protocols, and what differs in their settings."""

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from aigc.errors import UserError, choices
from aigc.runs.catalogue import Entry, higher_is_better, measures
from aigc.runs.entry import Run
from aigc.runs.protocol import (
    Score,
    alike,
    describe,
    differences,
    last_scored,
    missing_of,
    monitored,
    notes_of,
    scores_of,
    why_missing,
)
from aigc.wording import counted, listed

SILENT = 1800.0         # seconds without a new line after which a run that should be running probably is not
OVER = 1.01             # budgets and scores fall due in the midst of a step: so far beyond a point is still at it
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
        warnings: what differs between the first protocol and each other, or is not known, a sentence each.
        higher: whether more is better.
    """

    name: str
    scores: list[Score | None]
    letters: list[str]
    protocols: dict[str, str]
    warnings: list[str]
    higher: bool


class Comparison:
    """Runs beside each other.

    Args:
        runs: in any order; kept.
        score: the score to compare by; None: the one that most runs monitor, else that most runs have.
        at: `("images" or "seconds", point)`: compares the runs as they stood at that point of their training, by what
            training itself scored; None: as they are.

    Attributes:
        columns: every score that a run has, the chosen one first, then by how many runs have it.
        entries: what the runs' records and the catalogue say of these scores, by name.
        labels: each run's folder below the one that all share, or its own name where W&B gave one.
        settings: of the configurations, each dotted key whose value is not the same everywhere, with each run's value;
            None: the run has no such key.

    Raises:
        UserError: no run has the score.
    """

    def __init__(self, runs: Sequence[Run], score: str | None = None, at: tuple[str, float] | None = None):
        self.at = at
        self.runs = [standing(run, *at) for run in runs] if at else list(runs)
        found = [scores_of(stood) if at is None or reached(run, *at) else {}
                 for run, stood in zip(runs, self.runs, strict=True)]
        counts = Counter(name for scores in found for name in scores)
        if score is not None and score not in counts:
            raise UserError(f"no run has a score '{score}': {choices(score, counts or ['none yet'])}")
        monitors = Counter(name for run in self.runs if (name := monitored(run)) in counts)
        self.entries = {score.entry.name: score.entry for scores in found for several in scores.values()
                        for score in several if score.entry is not None}
        likely = sorted(counts, key=lambda name: (not measures(name, self.entries), "loss" not in name, -counts[name]))
        first = score or next((name for name, _ in monitors.most_common(1)), next(iter(likely), None))
        names = sorted(counts, key=lambda name: (name != first, name.startswith("val/"), -counts[name], name))
        self.columns = [self._column(name, [scores.get(name, []) for scores in found]) for name in names]
        self.candidates = found
        self.labels = labels(self.runs)
        self.settings = differing([flat(run.config) for run in self.runs])

    def _column(self, name: str, candidates: list[list[Score]]) -> Column:
        chosen, numbers, protocols = alike(name, candidates)
        named = {letter(k): describe(score.shown) for k, score in enumerate(protocols)}
        warnings = [
            f"{name}: {letter(0)} and {letter(k)} were not measured alike, they differ in "
            + "; ".join(differences(protocols[0].facts, other.facts))
            for k, other in enumerate(protocols[1:], start=1)
        ]
        warnings += [f"{name}: how {letter(k)} was measured is not stated" for k, score in enumerate(protocols)
                     if numbers.count(k) > 1 and not any(score.shown[key] for key in score.shown if key != "data")]
        checkpoints = Counter(score.checkpoint for score in chosen if score is not None)
        if len(checkpoints) > 1 and any(score is not None and score.evaluation for score in chosen):
            told = ", ".join(f"{checkpoint} of {count}" for checkpoint, count in checkpoints.most_common())
            warnings.append(f"{name}: the runs' scores are not of the same checkpoint: {told}")
        letters = [letter(k) if k >= 0 else "" for k in numbers]
        return Column(name, chosen, letters, named, warnings, more_is_better(name, self.runs, self.entries))

    def order(self) -> list[int]:
        """The runs from best to worst by the first column, one protocol after the other; without a score last."""
        if not self.columns:
            return list(range(len(self.runs)))
        column = self.columns[0]
        sign = -1 if column.higher else 1

        def place(k: int) -> tuple[bool, str, float]:
            score = column.scores[k]
            known = score is not None and math.isfinite(score.value)
            return (not known, column.letters[k], sign * score.value if score is not None and known else 0.0)

        return sorted(range(len(self.runs)), key=place)


def remarks(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    """What the runs' records say there is to think of these scores, and why a run lacks one; who says it, and what."""
    said: dict[str, dict[str, None]] = {}           # labels of the runs, by what they say
    for k, (run, label) in enumerate(zip(comparison.runs, comparison.labels, strict=True)):
        missing: dict[str, str] = {}
        for record in (*run.evaluations, run.summary):
            missing |= missing_of(record)
        for name, seconds in run.stages.items():
            said.setdefault(f"{seconds / 60:.1f} of its minutes are its {name}'s", {})[label] = None
        for column in columns:
            score, reason = column.scores[k], why_missing(column.name, missing)
            if score is not None:
                for note in notes_of(score.evaluation or run.summary):
                    said.setdefault(note, {})[label] = None
            elif reason:
                said.setdefault(f"no {column.name}: {reason}", {})[label] = None
    n = len(comparison.runs)
    return [f"{'all runs' if n > 1 and len(who) == n else listed(list(who))}: {what}" for what, who in said.items()]


def more_is_better(name: str, runs: Sequence[Run], known: Mapping[str, Entry]) -> bool:
    """Whether more of a score is better: as most runs say whose best checkpoint goes by it, else by its entry."""
    settings = [run.config.get("metrics") for run in runs if monitored(run) == name]
    modes = Counter(node.get("mode") for node in settings if isinstance(node, dict))
    return modes["max"] > modes["min"] if modes["max"] or modes["min"] else higher_is_better(name, known)


def told_point(at: tuple[str, float] | None) -> str:
    """` at 100,000 images`, ` at 2.5 minutes` or nothing."""
    if at is None:
        return ""
    key, point = at
    if key == "images":
        return f" at {counted(round(point), 'image')}"
    return f" at {point / 60:g} minute" + "s" * (point != 60)


def reached(run: Run, key: str, point: float) -> bool:
    """Whether the run has seen `point` images or seconds of training."""
    return any((known(line.get(key)) or 0) >= point for line in (run.summary, *run.history))


def standing(run: Run, key: str, point: float) -> Run:
    """The run as it stood at `point` images or seconds: what it had logged, drawn and scored, without evaluations."""
    lines = [line for line in run.history if (at := known(line.get(key))) is not None and at <= OVER * point]
    before = replace(run, history=lines, evaluations=[])
    scored = last_scored(before)
    last = scored or next(reversed(lines), {})
    before.summary = {**run.summary, "images": last.get("images"), "seconds": last.get("seconds"),
                      "scores": {"monitor": monitored(run), "last": scored}}
    seen = max((known(line.get("images", line.get("step"))) or 0 for line in lines), default=0)
    before.samples = {name: kept for name, found in run.samples.items()
                      if (kept := {images: path for images, path in found.items() if images <= seen})}
    return before


def known(value: Any) -> float | None:
    """The value if it is a number, else None."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


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
    seconds = known(run.summary.get("seconds")) or known(last.get("seconds"))
    images = known(run.summary.get("images")) or known(last.get("images"))
    speed = images / seconds if images and seconds else None
    found = {
        "status": run.status,
        "family": run.family,
        "data": run.data,
        "minutes": seconds / 60 if seconds else None,
        "images": images,
        "images_per_second": known(run.summary.get("images_per_second")) or speed,
        "parameters": known(run.summary.get("parameters")),
        "memory_mb": known(run.summary.get("peak_memory_mb")),
    }
    if run.status == "running" and (silent := (now or time.time()) - written(run)) > SILENT:
        found["status"] = f"running, silent for {silent / 3600:.1f} h"
    elif run.status in ("stopped", "failed") and run.summary.get("reason"):
        found["status"] = f"{run.status}: {run.summary['reason']}"
    return found


def written(run: Run) -> float:
    """When something was last written into the run's folder itself, in seconds since 1970."""
    times = [0.0]
    for entry in run.folder.glob("*"):
        with suppress(OSError):                     # a temporary file that has got its name meanwhile
            times.append(entry.stat().st_mtime)
    return max(times)


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
