"""Are generators equal? Every family that makes images from noise, at equal minutes, three seeds each.

    python experiments/are_generators_equal/study.py --mnist <folder> --cifar <folder>     trains, scores and reports
    python experiments/are_generators_equal/study.py --report                              reports the existing runs

`--mnist` is a folder with MNIST/raw, `--cifar` one of parquet files with CIFAR-10 as JPEG; either may be left out.
Every other argument is handed to `aigc.train`, e.g. budget.minutes=10 or hydra.launcher.max_parallel=2. The same
command resumes after an interruption.
"""

import sys
from pathlib import Path

from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, table

STUDY = "are_generators_equal"
HERE = Path(__file__).resolve().parent
FAMILIES = ("gan", "dcgan", "vae", "diffusion", "edm", "ddpm")
SCORE = "fd_classifier"


def start(mnist: str | None, cifar: str | None, overrides: list[str]) -> None:
    """One multirun for each data set: every family with every seed."""
    sources = {}
    if mnist:
        sources["mnist"] = ["data=mnist", f"data.root={mnist}"]
    if cifar:
        sources["cifar10-jpeg"] = ["data=huggingface", f"data.path={cifar}", "data.flip=true"]
    for name, data in sources.items():
        words = [f"model={','.join(FAMILIES)}", "seed=1,2,3", *data, "condition=label", "budget.minutes=2"]
        study.train(STUDY, name, *words, "metrics.every_images=30000", *overrides)


def by_data(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by data set, then by family in the order of `FAMILIES`."""
    found = {}
    for data, some in study.grouped(runs, lambda run: run.summary["data"]["name"]).items():
        families = study.grouped(some, lambda run: run.summary["recipe"])
        found[data] = {family: families[family] for family in FAMILIES if family in families}
    return found


def results(data: str, families: dict[str, list[Run]]) -> str:
    """The table of one data set, best family first."""
    runs = [run for some in families.values() for run in some]
    fd, right = study.measured(runs, SCORE), study.measured(runs, "label_accuracy")
    rows = []
    for family, some in families.items():
        scores = [fd[run.folder] for run in some if run.folder in fd]
        halves = [(s.high - s.low) / 2 for s in scores if s.low is not None and s.high is not None]
        cost = [s.evaluation.get("sampling", {}) for s in scores]
        minutes = [run.summary["seconds"] / 60 for run in some]
        average = study.spread(s.value for s in scores)
        rows.append((average.mean if average else float("inf"), [
            family, str(len(some)), study.shown(minutes, ".1f"),
            study.shown(s.value for s in scores), study.shown(halves, ".2g"),
            study.shown((right[run.folder].value for run in some if run.folder in right), ".3f"),
            study.shown((run.summary["images"] for run in some), ",.0f"),
            study.shown((run.summary["images_per_second"] for run in some), ",.0f"),
            study.shown((entry.get("evaluations") for entry in cost), ".0f"),
            study.shown((entry["seconds_per_image"] * 1e3 for entry in cost if "seconds_per_image" in entry), ".2g"),
            f"{some[0].summary['parameters']:,}", study.shown((run.summary["peak_memory_mb"] for run in some), ",.0f"),
        ]))
    head = ["family", "runs", "minutes", SCORE, "interval of one run ±", "labels right", "images seen", "images/s",
            "evaluations an image", "ms an image", "parameters", "memory MiB"]
    lines = table(head, [row for _, row in sorted(rows)])
    return f"**{data}**\n\n{lines}\n\n{study.circumstances(runs, fd)}\n\n![samples of each family](samples_{data}.png)"


def figures(found: dict[str, dict[str, list[Run]]]) -> None:
    """Score against minutes, score against sampling cost, and samples of the first seed."""
    figure, cells = study.axes(2, len(found), 4.6, 3.4)
    for (data, families), (curves, cost) in zip(found.items(), cells.T, strict=True):
        study.draw_curves(curves, families, SCORE)
        curves.set(title=data, ylabel=f"{SCORE}, while training")
        for family, some in families.items():
            fd = study.measured(some, SCORE)
            points = [(score.evaluation["sampling"]["seconds_per_image"] * 1e3, score.value) for score in fd.values()]
            if points:
                cost.plot(*zip(*points, strict=True), "o", label=family)
        cost.set(xlabel="milliseconds an image, sampling", ylabel=f"{SCORE}, at the end")
        study.logarithmic(cost.xaxis, cost.yaxis)
        cost.legend(fontsize=7)
        study.draw_samples(HERE / f"samples_{data}.png", {family: some[0] for family, some in families.items()})
    figure.savefig(HERE / "curves.png", dpi=110)


def report() -> None:
    """Writes the tables into README.md and the pictures beside it."""
    found = by_data(study.finished(STUDY))
    if not found:
        sys.exit(f"no finished run in runs/{STUDY}: start without --report")
    parts = [results(data, families) for data, families in found.items()]
    fill(HERE / "README.md", "\n\n".join([*parts, "![score against minutes and against sampling cost](curves.png)"]))
    figures(found)


def main() -> None:
    """The command line."""
    folders = {"mnist": "folder with MNIST/raw", "cifar": "folder of parquet files with CIFAR-10 as JPEG"}
    args, overrides = study.arguments(__doc__, **folders)
    if not args.report:
        start(args.mnist, args.cifar, overrides)
        study.evaluate(study.finished(STUDY), "checkpoint=last", "num_samples=5000")
    report()


if __name__ == "__main__":
    main()
