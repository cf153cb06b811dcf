"""The comparison as one HTML page that needs no network: template, libraries, data and pictures in a single file."""

import base64
import html
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Set
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from aigc.errors import UserError
from aigc.files import atomic
from aigc.report.comparison import Column, Comparison, common, facts, flat, known, remarks, told_point
from aigc.report.curves import LEAST, minutes_at, packed
from aigc.report.thumbnails import spread, thumbnails
from aigc.runs.entry import Run
from aigc.runs.protocol import Score, differences
from aigc.wording import counted

LIBRARIES = {  # what the page embeds: package and file in it
    "plotly.js": ("plotly", "package_data/plotly.min.js"),
    "datatables.js": ("itables", "html/dt_bundle.js"),
    "datatables.css": ("itables", "html/dt_bundle.css"),
}
COURSE = (  # of `facts`: key, title, digits after the point
    ("minutes", "minutes", 1), ("images", "images", 0), ("images_per_second", "images/s", 1),
    ("parameters", "parameters", 0), ("memory_mb", "memory MB", 0),
)
_PACKED: WeakKeyDictionary[Run, tuple[int, list[dict[str, Any]]]] = WeakKeyDictionary()
MARKS = (('name="generator" content="aigc compare"',),    # how our own page is told; the second, of earlier versions
         ("connect-src 'self'", '<link rel="icon" href="data:,">'))
SCORES, SETTINGS, CURVES = 3, 6, 6     # how many of each the page shows before anything is chosen
STAGES = 4          # thumbnails of each run that the page shows at first, so that there is something to go through


def check_place(path: Path) -> None:
    """Refuses to replace a file that is not a page of this program.

    Raises:
        UserError: says what is there.
    """
    if path.is_dir():
        raise UserError(f"out='{path}' is a folder: give the name of a page, such as '{path / 'report.html'}'")
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            start = file.read(4096)
    except (FileNotFoundError, NotADirectoryError):        # `write` says what is wrong
        return
    except OSError as error:
        raise UserError(f"out='{path}' cannot be read ({error.strerror}): choose another name") from error
    if start and not any(all(mark in start for mark in marks) for marks in MARKS):
        raise UserError(f"out='{path}' exists and was not written by this program: choose another name")


def check_libraries() -> dict[str, Path]:
    """The files of the libraries that the page embeds.

    Raises:
        UserError: one is not installed.
    """
    found = {}
    for name, (package, file) in LIBRARIES.items():
        spec = find_spec(package)
        path = Path(next(iter(spec.submodule_search_locations or [""]))) / file if spec else Path()
        if not path.is_file():
            raise UserError(f"the page needs the package '{package}': pip install 'aigc[compare]'")
        found[name] = path
    return found


def write(comparison: Comparison, path: Path, **options: Any) -> Path:
    """Writes the page, to a temporary name first; makes the folder. `options` are those of `content`.

    Raises:
        UserError: a library is missing, or the file cannot be written or is another's.
    """
    check_place(path)
    whole = page(content(comparison, **options))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return atomic.write(path, whole)
    except OSError as error:
        raise UserError(f"'{path}' could not be written ({error.strerror}): choose another out=") from error


def page(data: dict[str, Any]) -> str:
    """The whole HTML of the page that shows `data`, see `content`."""
    parts = {name: path.read_text(encoding="utf-8") for name, path in check_libraries().items()}
    here = Path(__file__).parent
    parts |= {name: (here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")}
    module = base64.b64encode(parts["datatables.js"].encode()).decode()
    parts["importmap"] = json.dumps({"imports": {"datatables": f"data:text/javascript;base64,{module}"}})
    parts["title"] = html.escape(data["title"])
    parts["data"] = script_json(data)
    template = (here / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{ ([\w.]+) \}\}", lambda found: parts[found[1]], template)


def script_json(data: Any) -> str:
    """JSON that is safe inside a <script>: no tag in it can end it."""
    try:
        text = json.dumps(data, separators=(",", ":"), default=str, allow_nan=False)
    except ValueError:                              # a browser's JSON knows no NaN: it becomes null
        text = json.dumps(_finite(data), separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def content(
    comparison: Comparison,
    *,
    title: str | None = None,
    grids: int,             # thumbnails, shared by all runs; every run shows its last in any case
    thumbnail: int,         # pixels of their longer side
    points: int,            # of a curve, shared by all runs
    shown: int,             # runs in the charts before any is ticked
) -> dict[str, Any]:
    """What the page shows, as plain values for JSON."""
    runs, root = comparison.runs, common(comparison.runs)
    told = [facts(run) for run in runs]
    columns, cells = _columns(comparison, told)
    first = {runs[k] for k in comparison.order()[:shown]}
    pictures = _pictures(runs, first, grids, thumbnail)
    limit = max(LEAST, points // len(runs))
    curves = [_curves(run, limit) for run in runs]
    counts = Counter(name for groups in curves for group in groups for name in group["y"])
    scores = [column.name for column in comparison.columns]
    names = [name for name in scores if name in counts] + sorted(set(counts) - set(scores))
    losses = [name for name, _ in counts.most_common() if "loss" in name]
    return {
        "title": title or f"{counted(len(runs), 'run')} in {root.name}{told_point(comparison.at)}",
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        "root": str(root),
        "shown": shown,
        "columns": columns,
        "runs": [
            {"label": label, "folder": str(run.folder), "data": fact["data"], "cells": row, "curves": groups,
             "grids": grid}
            for run, label, fact, row, groups, grid
            in zip(runs, comparison.labels, told, cells, curves, pictures, strict=True)
        ],
        "scores": {column.name: _score(comparison, column) for column in comparison.columns},
        "settings": {key: [_plain(value) for value in values] for key, values in comparison.settings.items()},
        "curves": names,
        "charts": list(dict.fromkeys([*[name for name in scores[:1] if name in counts], *losses, *names]))[:CURVES],
        "warnings": [f"{label}: {sentence}" for run, label in zip(runs, comparison.labels, strict=True)
                     for sentence in run.warnings] + remarks(comparison, comparison.columns),
    }


def _columns(comparison: Comparison, told: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """The columns of the table and the cells of each run."""
    columns: list[dict[str, Any]] = [{"key": "run", "title": "run", "shown": True}]
    values: list[list[Any]] = [list(comparison.labels)]

    def add(key: str, entries: list[Any], *, shown: bool = True, **more: Any) -> None:
        if any(entry not in (None, "") for entry in entries):
            numeric = all(isinstance(entry, int | float | None) and not isinstance(entry, bool) for entry in entries)
            columns.append({"key": key, "title": key, "shown": shown, "number": numeric, **more})
            values.append(entries)

    def add_score(column: Column, **more: Any) -> None:
        values = [score.value if score else None for score in column.scores]
        add(column.name, values, score=True, higher=column.higher, **more)

    several = any(len(column.protocols) > 1 for column in comparison.columns)
    for key in ("status", "family", "data"):
        add(key, [fact[key] for fact in told])
    for column in comparison.columns[:1]:
        add_score(column)
        add("protocol", column.letters if several else [], shown=len(column.protocols) > 1)
    for key, name, digits in COURSE:
        add(key, [fact[key] for fact in told], title=name, digits=digits)
    for k, column in enumerate(comparison.columns[1:], start=1):
        add_score(column, shown=k < SCORES)
    typed = {override.lstrip("+~").split("=")[0] for run in comparison.runs for override in run.overrides}
    typed |= {key for run in comparison.runs if run.source == "wandb" for key in flat(run.config)}
    chosen = [key for key in comparison.settings if key in typed][:SETTINGS]
    for key, entries in comparison.settings.items():
        add(key, [_plain(entry) for entry in entries], shown=key in chosen, setting=True)
    return columns, [list(row) for row in zip(*values, strict=True)]


def _plain(value: Any) -> Any:
    """A setting as a cell: a number, or words."""
    if value is None or (isinstance(value, int | float | str) and not isinstance(value, bool)):
        return value
    return json.dumps(value, default=str)


def _score(comparison: Comparison, column: Column) -> dict[str, Any]:
    """A score of all runs: value, interval, protocol and minutes of each, if it says them, the protocol of each curve,
    and every value whose sampling cost is known: its own, or of another score of the recipe's sampler.
    """
    protocols: dict[str, dict[str, Any]] = {}       # facts of each
    for score, letter in zip(column.scores, column.letters, strict=True):
        if score is not None:
            protocols.setdefault(letter, score.facts)
    costs: list[list[Any]] = []
    curves = ["" for _ in comparison.runs]

    def add_cost(k: int, score: Score, sampling: dict[str, Any], letter: str) -> None:
        cost = [sampling.get("evaluations"), sampling.get("seconds_per_image")]
        costs.append([k, *cost, score.value, score.low, score.high, letter])

    for k, found in enumerate(comparison.candidates):
        for score in found.get(column.name, ()):
            sampling = score.evaluation.get("sampling")
            alike = [letter for letter, facts in protocols.items() if not differences(facts, score.facts)]
            if isinstance(sampling, dict) and alike:
                add_cost(k, score, sampling, alike[0])
            if not score.evaluation:
                curves[k] = (alike or ["of its own"])[0]
    measured = {k for k, *_ in costs}
    for k, (run, score) in enumerate(zip(comparison.runs, column.scores, strict=True)):
        if score and math.isfinite(score.value) and k not in measured and (sampling := _own_sampling(run)):
            add_cost(k, score, sampling, column.letters[k])
    return {
        "higher": column.higher,
        "protocols": column.protocols,
        "warnings": column.warnings,
        "values": [[score.value, score.low, score.high, letter, _minutes(score)]
                   if score and math.isfinite(score.value) else None
                   for score, letter in zip(column.scores, column.letters, strict=True)],
        "curves": curves,
        "costs": costs,
    }


def _own_sampling(run: Run) -> dict[str, Any] | None:
    """The sampling cost in the newest evaluation that used the recipe's sampler."""
    found = (record["sampling"] for record in reversed(run.evaluations) if isinstance(record.get("sampling"), dict))
    return next((sampling for sampling in found if not sampling.get("options")), None)


def _minutes(score: Score) -> float | None:
    """Of training, at the checkpoint that was evaluated; None: what the run's own column says."""
    target = score.evaluation.get("target")
    seconds = known(target.get("seconds")) if isinstance(target, dict) else None
    return None if seconds is None else seconds / 60


def _curves(run: Run, limit: int) -> list[dict[str, Any]]:
    """The run's packed curves; made once where a live page shows the run again."""
    if run not in _PACKED or _PACKED[run][0] != limit:
        _PACKED[run] = (limit, packed(run.history, limit))
    return _PACKED[run][1]


def _pictures(
    runs: list[Run], first: Set[Run], grids: int, side: int
) -> list[dict[str, list[tuple[int, float | None, str]]]]:
    """Thumbnails of every run's grids: by key, images seen, minutes and data URI. Where there are not enough for all,
    the `first` runs have several; a broken one is left out with a warning.
    """
    def share(those: Iterable[Run]) -> int:
        return max(1, grids // max(1, sum(len(run.samples) for run in those)))

    least, each = min(STAGES, share(first)), share(runs)
    chosen = []
    for k, run in enumerate(runs):
        for key, found in run.samples.items():
            kept = spread(found, max(each, least if run in first else 1))
            minutes = minutes_at(run.history, list(kept))
            chosen += [(k, key, images, at, path) for (images, path), at in zip(kept.items(), minutes, strict=True)]
    pictures: list[dict[str, list[tuple[int, float | None, str]]]] = [{} for _ in runs]
    made = thumbnails([path for *_, path in chosen], side)
    for (k, key, images, at, path), uri in zip(chosen, made, strict=True):
        if uri is None:
            runs[k].warnings.append(f"the picture {path.name} could not be read")
        else:
            pictures[k].setdefault(key, []).append((images, at, uri))
    return pictures
