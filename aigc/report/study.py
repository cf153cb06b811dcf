"""What the studies in experiments/ share: their runs are multiruns, and everything they report is read from the runs.

A run is a job of a multirun in `runs/<study>/<part>/`; the same command resumes after an interruption.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aigc.errors import UserError
from aigc.runs.entry import Run
from aigc.runs.markdown import number
from aigc.runs.protocol import Score, alike, describe, scores_of
from aigc.runs.reading import find_runs, read_run

RECORD = "study.json"        # the evaluation that a study makes of each run, in the run's evaluations/


# ---- making ----


def arguments(description: str | None, **folders: str) -> tuple[argparse.Namespace, list[str]]:
    """The command line of a study: its folders of data by name with their help, `--report`, and words for training."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, told in folders.items():
        parser.add_argument(f"--{name}", help=told)
    parser.add_argument("--report", action="store_true", help="train nothing, report the existing runs")
    return parser.parse_known_args()


def train(study: str, part: str, *words: str) -> None:
    """Trains what `words` say, as the multirun `runs/<study>/<part>`; jobs that failed are missing from the report."""
    _python("aigc.train", "-m", *words, f"study={study}", f"hydra.sweep.dir=runs/{study}/{part}")


def run(study: str, folder: Path, *words: str) -> Run:
    """Trains one run in `folder`; goes on with one that is there, and leaves a finished one as it is.

    Exits where the run does not finish.
    """
    begun = (folder / "checkpoints" / "last.ckpt").is_file()
    if not begun or read_run(folder).status != "finished":
        fresh = [*words, f"study={study}", f"hydra.run.dir={folder}"]
        _python("aigc.train", *([f"resume={folder}"] if begun else fresh))
    made = read_run(folder)
    if made.status != "finished":
        sys.exit(f"{folder} is {made.status}: the same command goes on with it")
    return made


def evaluate(runs: Iterable[Run], *words: str) -> None:
    """Scores runs that have not been scored by their study yet, each in a process of its own."""
    for run in runs:
        record = run.folder / "evaluations" / RECORD
        if not record.is_file():
            _python("aigc.evaluate", f"run={run.folder}", *words, f"out={record}")


def _python(module: str, *words: str) -> None:
    print(f"$ python -m {module} {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
    if code not in (0, 1):   # 1: some job failed, which says so itself; 2: a mistake; 130: Ctrl-C
        sys.exit(code)


# ---- reading ----


def finished(study: str) -> list[Run]:
    """The finished runs of a study; none where there are no runs."""
    try:
        folders = find_runs(Path("runs") / study)
    except UserError:
        return []
    return [run for run in map(read_run, folders) if run.status == "finished"]


def grouped(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Runs by what `key` says of them, in the order in which they come."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def measured(runs: Sequence[Run], name: str) -> dict[Path, Score]:
    """Each run's score from the evaluations, by its folder; what was not measured like most is left out, and said."""
    candidates = [[score for score in scores_of(run).get(name, []) if score.evaluation] for run in runs]
    chosen, protocols, _ = alike(name, candidates)
    for run, protocol in zip(runs, protocols, strict=True):
        if protocol != 0:
            why = "has not been evaluated" if protocol < 0 else "was measured differently from most"
            print(f"left out of {name}: {run.folder} {why}", file=sys.stderr)
    found = zip(runs, chosen, protocols, strict=True)
    return {run.folder: score for run, score, protocol in found if score is not None and protocol == 0}


def history(run: Run, name: str) -> list[tuple[float, float]]:
    """Training minutes and values of what a run logged as `name`."""
    return [(line["seconds"] / 60, line[name]) for line in run.history if name in line]


class Spread(NamedTuple):
    """The mean of several runs, and the lowest and the highest of them."""

    mean: float
    low: float
    high: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values there are."""
    known = [value for value in values if value is not None]
    return Spread(sum(known) / len(known), min(known), max(known)) if known else None


def shown(values: Iterable[float | None], form: str | None = None) -> str:
    """The mean of values with the lowest and the highest in brackets, or nothing; in three digits unless told."""
    found = spread(values)
    if found is None:
        return ""
    numbers = [format(value, form) if form else number(value, 3) for value in found]
    return numbers[0] if numbers[1] == numbers[2] else f"{numbers[0]} ({numbers[1]} to {numbers[2]})"


def circumstances(runs: Sequence[Run], scores: Mapping[Path, Score]) -> str:
    """How scores were measured and where runs were made, in a sentence or two."""
    example = next(iter(scores.values()), None)
    said = [f"Measured with: {describe(example.shown)}."] if example is not None else []
    floor = example.evaluation["scores"][example.name].get("floor") if example is not None else None
    if example is not None and floor is not None:
        said.append(f"As many real test images have {example.name} {number(floor, 3)}.")
    machines = {f"{run.summary['machine']}, {run.summary['precision']}, torch {run.summary['versions']['torch']}"
                for run in runs}
    return " ".join([*said, f"Machine: {'; '.join(sorted(machines))}."])


# ---- drawing ----


def axes(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of matplotlib's and its axes `[rows][columns]`, each `width` x `height` inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (width * columns, height * rows)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, constrained_layout=True)


def logarithmic(*scales: Any) -> None:
    """Makes axes (`axis.xaxis`, `axis.yaxis`) logarithmic, with plain numbers at 1, 2 and 5 of every power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for scale in scales:
        scale.axes.set(**{f"{scale.axis_name}scale": "log"})
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_formatter(NullFormatter())


def draw_curves(axis: Any, groups: Mapping[str, Sequence[Run]], name: str) -> None:
    """`name` against training minutes: a line for the mean of each group's runs, a band from lowest to highest."""
    for label, runs in groups.items():
        draw_lines(axis, label, [history(run, name) for run in runs])
    axis.set(xlabel="training minutes")
    axis.legend(fontsize=7)
    logarithmic(axis.yaxis)


def draw_lines(axis: Any, label: str, histories: Iterable[Sequence[Sequence[float]]]) -> None:
    """A line for the mean of curves of (minute, value), a band from lowest to highest; nothing without two points."""
    import numpy as np

    curves = [np.asarray(curve).T for curve in histories if len(curve) > 1]
    if not curves:
        return
    minutes = np.linspace(max(at[0] for at, _ in curves), min(at[-1] for at, _ in curves), 100)
    values = np.stack([np.interp(minutes, at, value) for at, value in curves])
    (line,) = axis.plot(minutes, values.mean(0), label=label)
    axis.fill_between(minutes, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, lw=0)


def draw_spreads(axis: Any, groups: Mapping[str, Iterable[float]]) -> None:
    """The values of each group above its name, with a line at their mean."""
    for place, values in enumerate(map(list, groups.values())):
        axis.plot([place] * len(values), values, "o", alpha=0.7)
        if found := spread(values):
            axis.plot([place - 0.25, place + 0.25], [found.mean] * 2, color="black", lw=1)
    axis.set_xticks(range(len(groups)), list(groups), rotation=20, fontsize=8)


def draw_samples(path: Path, runs: Mapping[str, Run]) -> None:
    """The last sample grid of each run beside those of the others."""
    import matplotlib.image

    columns = min(3, len(runs))
    figure, cells = axes(-(-len(runs) // columns), columns, 3.4, 3.6)
    for cell in cells.flat:
        cell.set_axis_off()
    for cell, (title, run) in zip(cells.flat, runs.items(), strict=False):
        found = run.samples.get("samples", {})
        if found:
            cell.imshow(matplotlib.image.imread(found[max(found)]), cmap="gray", interpolation="nearest")
        cell.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)
