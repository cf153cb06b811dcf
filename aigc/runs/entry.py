"""One run as it was recorded, whoever recorded it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(eq=False)
class Run:
    """One run: a run folder of `aigc.train`, or an offline W&B run of any program.

    Attributes:
        folder: where it is.
        name: its folder's name; of a multirun's job `<sweep>/<job>`, of a W&B run the name it was given.
        family: the class that was trained, e.g. `GAN`; a W&B run has none.
        status: running, finished, stopped or failed; `unknown` if nothing says so.
        config: as composed, interpolations unresolved, so that a value used twice is there once.
        overrides: as typed.
        history: the lines of metrics.jsonl: step, images (seen), seconds (of training) and scalars.
        stages: seconds in which the trained runs were made that it stands on, e.g. `{"tokenizer": 120.0}`; they are
            counted in all its seconds, in the history, the summary and the evaluations.
        samples: pictures by key (`samples`, or the name of a panel or direction) and images seen.
        evaluations: the records of `aigc.evaluate`, oldest first.
        warnings: what could not be read, a sentence each.
        source: `aigc` or `wandb`.
    """

    folder: Path
    name: str
    study: str = ""
    family: str = ""
    data: str = ""
    status: str = "unknown"
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, dict[int, Path]] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    source: str = "aigc"


def wandb_file(folder: Path) -> Path | None:
    """W&B's log of a run in its own folder (`offline-run-<time>_<id>/run-<id>.wandb`), or None."""
    if not re.match(r"(offline-)?run-", folder.name):
        return None
    return next(iter(sorted(folder.glob("run-*.wandb"))), None)
