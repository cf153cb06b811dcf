"""Five adversarial losses at equal minutes, three seeds each, in the manner of Lucic et al. 2018.

    python experiments/gan_losses/study.py --mnist <folder with MNIST/raw>     trains, scores and reports
    python experiments/gan_losses/study.py --report                            reports the existing runs

Every other argument is handed to `aigc.train`; lists are gone through for every loss alike, e.g.
model.generator_rate=2.5e-4,5e-4 for a small search of the same size for each. The same command resumes after an
interruption.
"""

import sys
from pathlib import Path
from statistics import median

from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, number, table

STUDY = "gan_losses"
HERE = Path(__file__).resolve().parent
LOSSES: dict[str, tuple[str, ...]] = {                 # and what a loss is never trained without
    "nonsaturating": (), "least_squares": (), "hinge": (), "relativistic": ("model.r2=1",),
    "wasserstein": ("model.gradient_penalty=10", "model.r1=0", "model.penalty_every=1"),
}
SCORE = "fd_classifier"


def start(mnist: str | None, overrides: list[str]) -> None:
    """A multirun for each loss, with every seed, all else as the recipe has it."""
    words = ["seed=1,2,3", "data=mnist", "condition=label", "budget.minutes=2", "metrics.every_images=30000"]
    words += [f"data.root={mnist}"] if mnist else []
    for loss, needed in LOSSES.items():
        study.train(STUDY, loss, "model=gan", f"model.loss={loss}", *needed, *words, *overrides)


def results(losses: dict[str, list[Run]]) -> str:
    """The table, best mean first: a good loss is good with every seed."""
    runs = [run for some in losses.values() for run in some]
    fd, right = study.measured(runs, SCORE), study.measured(runs, "label_accuracy")
    rows = []
    for loss, some in losses.items():
        values = [fd[run.folder].value for run in some if run.folder in fd]
        found = study.spread(values)
        if found is None:
            continue
        ends = (found.mean, found.low, median(values), found.high)
        rows.append((found.mean, [
            loss, str(len(values)), *(number(value, 3) for value in ends),
            study.shown((right[run.folder].value for run in some if run.folder in right), ".3f"),
            study.shown((run.summary["images"] for run in some), ",.0f"),
            study.shown((run.summary["images_per_second"] for run in some), ",.0f"),
        ]))
    head = ["loss", "runs", f"{SCORE}: mean", "best", "median", "worst", "labels right", "images seen", "images/s"]
    pictures = "![score against minutes, and the runs of each loss](curves.png)\n\n![samples](samples.png)"
    return f"{table(head, [row for _, row in sorted(rows)])}\n\n{study.circumstances(runs, fd)}\n\n{pictures}"


def figures(losses: dict[str, list[Run]]) -> None:
    """Score against minutes, the spread of every loss at the end, and samples of the first seed."""
    figure, ((curves, spreads),) = study.axes(1, 2, 4.6, 3.4)
    study.draw_curves(curves, losses, SCORE)
    curves.set(ylabel=f"{SCORE}, while training")
    fd = study.measured([run for some in losses.values() for run in some], SCORE)
    study.draw_spreads(spreads, {loss: [fd[run.folder].value for run in some if run.folder in fd]
                           for loss, some in losses.items()})
    spreads.set(ylabel=f"{SCORE}, at the end: runs and mean")
    study.logarithmic(spreads.yaxis)
    figure.savefig(HERE / "curves.png", dpi=110)
    study.draw_samples(HERE / "samples.png", {loss: some[0] for loss, some in losses.items()})


def report() -> None:
    """Writes the table into README.md and the pictures beside it."""
    runs = study.grouped(study.finished(STUDY), lambda run: run.config["model"]["loss"])
    if not runs:
        sys.exit(f"no finished run in runs/{STUDY}: start without --report")
    losses = {loss: runs[loss] for loss in LOSSES if loss in runs}
    fill(HERE / "README.md", results(losses))
    figures(losses)


def main() -> None:
    """The command line."""
    args, overrides = study.arguments(__doc__, mnist="folder with MNIST/raw; without, it is downloaded")
    if not args.report:
        start(args.mnist, overrides)
        study.evaluate(study.finished(STUDY), "checkpoint=last", "num_samples=10000")
    report()


if __name__ == "__main__":
    main()
