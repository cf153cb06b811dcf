"""Are generators equal? Every family that makes images from noise, at equal minutes, its first stage's included.

    python experiments/are_generators_equal/study.py --mnist <folder> --cifar <folder> --clipart <folder> \
        --weights <file>                                                               trains, scores and reports
    python experiments/are_generators_equal/study.py --report                          reports the existing runs

`--mnist` is a folder with MNIST/raw, `--cifar` one of parquet files with CIFAR-10 as JPEG, `--clipart` one of parquet
files of openclipart, scored by SqueezeNet with `--weights`; each may be left out. Every other argument is handed to
all trainings, e.g. seed=1,2,3. The same command resumes after an interruption.
"""

import sys
from pathlib import Path

from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, table

STUDY = "are_generators_equal"
STAGES = f"{STUDY}_stages"                       # runs that others stand on
HERE = Path(__file__).resolve().parent
ALONE = ("gan", "r3gan", "biggan", "stylegan2", "vae", "diffusion", "dit")
STAGED = {"latent_diffusion": ("first_stage", "autoencoder"), "prior": ("tokenizer", "vqvae"),
          "few_step": ("teacher", "diffusion")}  # option and recipe of what each stands on
FAMILIES = (*ALONE, "projected_gan", *STAGED)
MINUTES = {"autoencoder": 2.0, "vqvae": 2.0, "diffusion": 2.5}          # of five, for what others stand on


def start(
    mnist: str | None, cifar: str | None, clipart: str | None, weights: str | None, overrides: list[str]
) -> None:
    """The multiruns of each data set: families that stand alone, first stages, families that stand on these."""
    labelled = ["condition=label", "metrics.every_images=60000", "metrics.second=null"]
    if mnist:
        part("mnist", ALONE, tuple(STAGED), 5.0, [f"data.root={mnist}", "data=mnist"], labelled, overrides)
    if cifar:
        words = ["data=huggingface", f"data.path={cifar}", "data.flip=true"]
        part("cifar10-jpeg", (*ALONE, "projected_gan"), tuple(STAGED), 5.0, words, labelled, overrides)
    if clipart:
        words = ["data=huggingface", f"data.path={clipart}", "data.size=64", "data.flip=true"]
        scored = ["condition=none", "metrics=squeezenet", f"metrics.weights={weights}", "metrics.every_images=60000"]
        part("openclipart", ("projected_gan", "diffusion"), ("latent_diffusion",), 15.0, words, scored, overrides)
        study.train(STUDY, "openclipart-ada", "model=stylegan2", "model.augment_target=0.6", "budget.minutes=15",
                    *words, *scored, *overrides)


def part(
    name: str, alone: tuple[str, ...], staged: tuple[str, ...], minutes: float, data: list[str], scored: list[str],
    overrides: list[str],
) -> None:
    """One data set: every family for so many minutes, with those of what it stands on."""
    study.train(STUDY, name, f"model={','.join(alone)}", f"budget.minutes={minutes}", *data, *scored, *overrides)
    for family in staged:
        option, recipe = STAGED[family]
        spent = MINUTES[recipe] * minutes / 5
        condition = scored[:1] if recipe == "diffusion" else ["condition=none"]
        study.train(STAGES, f"{name}-{recipe}", f"model={recipe}", f"budget.minutes={spent}", "metrics=losses", *data,
                    *condition)
        (stage,) = study.finished(f"{STAGES}/{name}-{recipe}")
        study.train(STUDY, f"{name}-{family}", f"model={family}", f"model.{option}={stage.folder}",
                    f"budget.minutes={minutes - spent}", *data, *scored, *overrides)


def score_of(data: str) -> str:
    """The distance by which runs on a data set are compared."""
    return "fd_squeezenet" if data == "openclipart" else "fd_classifier"


def by_data(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """Runs by data set, then by family in the order of `FAMILIES`."""
    found = {}
    for data, some in study.grouped(runs, lambda run: run.summary["data"]["name"]).items():
        families = study.grouped(some, lambda run: run.summary["recipe"])
        found[data] = {family: families[family] for family in FAMILIES if family in families}
    return found


def results(data: str, families: dict[str, list[Run]]) -> str:
    """The table of one data set, best family first."""
    runs, name = [run for some in families.values() for run in some], score_of(data)
    fd, right = study.measured(runs, name), study.measured(runs, "label_accuracy")
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
    head = ["family", "runs", "minutes", name, "interval of one run ±", "labels right", "images seen", "images/s",
            "evaluations an image", "ms an image", "parameters", "memory MiB"]
    lines = table(head, [row for _, row in sorted(rows)])
    return f"**{data}**\n\n{lines}\n\n{study.circumstances(runs, fd)}\n\n![samples of each family](samples_{data}.png)"


def figures(found: dict[str, dict[str, list[Run]]]) -> None:
    """Score against minutes, score against sampling cost, and samples of the first seed."""
    figure, cells = study.axes(2, len(found), 4.6, 3.4)
    for (data, families), (curves, cost) in zip(found.items(), cells.T, strict=True):
        name = score_of(data)
        study.draw_curves(curves, families, name)
        curves.set(title=data, ylabel=f"{name}, while training")
        for family, some in families.items():
            fd = study.measured(some, name)
            points = [(score.evaluation["sampling"]["seconds_per_image"] * 1e3, score.value) for score in fd.values()]
            if points:
                cost.plot(*zip(*points, strict=True), "o", label=family)
        cost.set(xlabel="milliseconds an image, sampling", ylabel=f"{name}, at the end")
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
    folders = {"mnist": "folder with MNIST/raw", "cifar": "folder of parquet files with CIFAR-10 as JPEG",
               "clipart": "folder of parquet files of openclipart", "weights": "SqueezeNet's weights, for --clipart"}
    args, overrides = study.arguments(__doc__, **folders)
    if args.clipart and not args.weights:
        sys.exit("--clipart needs --weights=<file>, SqueezeNet 1.0's")
    if not args.report:
        start(args.mnist, args.cifar, args.clipart, args.weights, overrides)
        study.evaluate(study.finished(STUDY), "checkpoint=last", "num_samples=2000", "second=null")
    report()


if __name__ == "__main__":
    main()
