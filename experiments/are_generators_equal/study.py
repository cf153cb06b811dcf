"""Are generators equal? Every family that makes images from noise, at equal minutes, stages included.

    python experiments/are_generators_equal/study.py --mnist <folder> --cifar <folder> \
        --clipart <folder> --squeezenet <file>
    python experiments/are_generators_equal/study.py --report

`--mnist` is a folder with MNIST/raw, `--cifar` one of parquet files with CIFAR-10 as JPEG, `--clipart` one of parquet
files with drawings of Open Clip Art, which `--squeezenet`, weights of SqueezeNet, judges; each may be left out.
`--only gan,prior` trains some families, `--seeds 1,2,3` several runs of each. Every other argument is handed to
`aigc.train`. The same command resumes after an interruption; what is in results.json is not measured again.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, table
from aigc.runs.reading import read_run

STUDY = "are_generators_equal"
HERE = Path(__file__).resolve().parent
RESULTS, SAMPLES = HERE / "results.json", HERE / "samples"


class Part(NamedTuple):
    """One data set, with the minutes that each family has on it."""

    data: tuple[str, ...]                 # words that choose the data; {} is the folder
    condition: str
    minutes: float
    families: dict[str, tuple[str, ...]]  # words besides model=<family>
    score: str = "fd_classifier"


class Stage(NamedTuple):
    """A run that another stands on."""

    option: str                           # of the later run: where it finds this one
    words: tuple[str, ...]
    share: float                          # of the minutes


LABELLED: dict[str, tuple[str, ...]] = dict.fromkeys((
    "gan", "r3gan", "dcgan", "biggan", "stylegan2", "vae", "diffusion", "edm", "ddpm", "dit", "latent_diffusion",
    "prior", "few_step"), ())
PARTS = {
    "mnist": Part(("data=mnist", "data.root={}"), "label", 5, LABELLED),
    "cifar10-jpeg": Part(("data=huggingface", "data.path={}", "data.flip=true"), "label", 5,
                         LABELLED | {"projected_gan": ()}),
    "openclipart": Part(("data=huggingface", "data.path={}", "data.flip=true", "data.size=64"), "none", 15,
                        {"projected_gan": (), "stylegan2": ("model.augment_target=0.6",), "diffusion": (),
                         "latent_diffusion": ()}, "fd_squeezenet"),
}
STAGES = {
    "latent_diffusion": Stage("model.first_stage", ("model=autoencoder", "condition=none"), 0.4),
    "prior": Stage("model.tokenizer", ("model=vqvae", "condition=none"), 0.4),
    "few_step": Stage("model.teacher", ("model=diffusion", "condition=label"), 0.5),
}


# ---- making ----


def start(folders: dict[str, str], squeezenet: str | None, only: list[str], seeds: list[int],
          words: list[str]) -> None:
    """Trains and scores what has no row yet, one run after the other."""
    for name, folder in folders.items():
        part = PARTS[name]
        data = [*(word.format(folder) for word in part.data), *words]
        metrics = ["metrics.num_samples=1000", "metrics.every_images=50000"]
        if part.score == "fd_squeezenet":
            metrics = ["metrics=squeezenet", f"metrics.weights={squeezenet}", *metrics]
        else:
            metrics.append("metrics.second=null")
        for seed in seeds:
            for family, further in part.families.items():
                if (not only or family in only) and not any(
                        (row["data"], row["family"], row["seed"]) == (name, family, seed) for row in read()):
                    made = train(name, family, seed, [*data, *further], metrics)
                    study.evaluate([made], "checkpoint=last", "num_samples=2000", "second=null", "memorisation=false")
                    keep(name, family, seed, read_run(made.folder))


def train(name: str, family: str, seed: int, words: list[str], metrics: list[str]) -> Run:
    """One run, and before it the run that it stands on, which takes its share of the minutes."""
    part, folder = PARTS[name], Path("runs") / STUDY / name / f"{family}_{seed}"
    minutes, stage = part.minutes, STAGES.get(family)
    if stage is not None:
        below = folder.with_name(f"{folder.name}_stage")
        study.run(STUDY, below, *stage.words, *words, f"seed={seed}", f"budget.minutes={part.minutes * stage.share:g}",
                  "metrics=losses")
        words, minutes = [*words, f"{stage.option}={below}"], part.minutes * (1 - stage.share)
    return study.run(STUDY, folder, f"model={family}", *words, f"condition={part.condition}", f"seed={seed}",
                     f"budget.minutes={minutes:g}", *metrics)


def keep(name: str, family: str, seed: int, run: Run) -> None:
    """Adds a run's row to results.json, and its last samples to the pictures."""
    part, summary = PARTS[name], run.summary
    score, right = (study.measured([run], one).get(run.folder) for one in (part.score, "label_accuracy"))
    if score is None:
        return
    sampling = score.evaluation.get("sampling", {})
    rows = [*read(), {
        "data": name, "family": family, "seed": seed, "minutes": summary["seconds"] / 60,
        "stages": {stage: seconds / 60 for stage, seconds in run.stages.items()},
        "value": score.value, "low": score.low, "high": score.high, "right": None if right is None else right.value,
        "images": summary["images"], "images_per_second": summary["images_per_second"],
        "parameters": summary["parameters"], "memory": summary["peak_memory_mb"],
        "evaluations": sampling.get("evaluations"), "ms": sampling["seconds_per_image"] * 1e3,
        "circumstances": study.circumstances([run], {run.folder: score}),
        "curve": [[round(minute, 3), value] for minute, value in study.history(run, part.score)],
    }]
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    drawn = run.samples.get("samples", {})
    if drawn and seed == min(row["seed"] for row in rows if (row["data"], row["family"]) == (name, family)):
        SAMPLES.mkdir(exist_ok=True)
        (SAMPLES / f"{name}_{family}.png").write_bytes(drawn[max(drawn)].read_bytes())


def read() -> list[dict[str, Any]]:
    """The rows so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else []


# ---- reporting ----


def results(name: str, rows: list[dict[str, Any]]) -> str:
    """The table of one data set, best family first, and its samples."""
    lines, families = [], study.grouped(rows, lambda row: row["family"])
    for family, some in families.items():
        halves = [(row["high"] - row["low"]) / 2 for row in some if row["low"] is not None]
        average = study.spread(row["value"] for row in some)
        stages = [sum(row["stages"].values()) for row in some]
        lines.append((average.mean if average else float("inf"), family, [
            family, str(len(some)), study.shown((row["minutes"] for row in some), ".1f"),
            study.shown(stages, ".1f") if any(stages) else "",
            study.shown(row["value"] for row in some), study.shown(halves, ".2g"),
            study.shown((row["right"] for row in some), ".3f"),
            study.shown((row["images"] for row in some), ",.0f"),
            study.shown((row["images_per_second"] for row in some), ",.0f"),
            study.shown((row["evaluations"] for row in some), ".0f"), study.shown((row["ms"] for row in some), ".2g"),
            f"{some[0]['parameters']:,}", study.shown((row["memory"] for row in some), ",.0f"),
        ]))
    head = ["family", "runs", "minutes", "of them its stage's", PARTS[name].score, "interval of one run ±",
            "labels right", "images seen", "images/s", "evaluations an image", "ms an image", "parameters",
            "memory MiB"]
    order = sorted(lines)
    pictures = [family for _, family, _ in order if (SAMPLES / f"{name}_{family}.png").is_file()]
    shown = []
    for k in range(0, len(pictures), 4):
        some = pictures[k:k + 4]
        shown.append(table(some, [[f"![{family}](samples/{name}_{family}.png)" for family in some]]))
    said = "\n\n".join(dict.fromkeys(row["circumstances"] for row in rows))
    return "\n\n".join([f"**{name}**", table(head, [cells for _, _, cells in order]), said, *shown])


def figure(found: dict[str, list[dict[str, Any]]]) -> None:
    """Score against minutes, and score against sampling cost."""
    drawing, cells = study.axes(2, len(found), 4.6, 3.4)
    for (name, rows), (curves, cost) in zip(found.items(), cells.T, strict=True):
        for family, some in study.grouped(rows, lambda row: row["family"]).items():
            study.draw_lines(curves, family, [row["curve"] for row in some])
            cost.plot([row["ms"] for row in some], [row["value"] for row in some], "o", label=family)
        curves.set(title=name, xlabel="training minutes", ylabel=f"{PARTS[name].score}, while training")
        cost.set(xlabel="milliseconds an image, sampling", ylabel=f"{PARTS[name].score}, at the end")
        study.logarithmic(curves.yaxis, cost.xaxis, cost.yaxis)
        for axis in (curves, cost):
            axis.legend(fontsize=6)
    drawing.savefig(HERE / "curves.png", dpi=110)


def report() -> None:
    """Writes the tables into README.md and the picture beside it."""
    rows = read()
    if not rows:
        sys.exit(f"{RESULTS.name} holds no run: start without --report")
    found = study.grouped(sorted(rows, key=lambda row: list(PARTS).index(row["data"])), lambda row: row["data"])
    parts = [results(name, some) for name, some in found.items()]
    fill(HERE / "README.md", "\n\n".join([*parts, "![score against minutes and against sampling cost](curves.png)"]))
    figure(found)


def main() -> None:
    """The command line."""
    args, words = study.arguments(
        __doc__, mnist="folder with MNIST/raw", cifar="folder of parquet files with CIFAR-10 as JPEG",
        clipart="folder of parquet files with Open Clip Art", squeezenet="weights of SqueezeNet, .safetensors",
        only="families, e.g. gan,prior", seeds="seeds, by default 1")
    folders = {"mnist": args.mnist, "cifar10-jpeg": args.cifar, "openclipart": args.clipart}
    if args.clipart and not args.squeezenet:
        sys.exit("--clipart needs --squeezenet: give the weights of SqueezeNet")
    if not args.report:
        start({name: folder for name, folder in folders.items() if folder}, args.squeezenet,
              args.only.split(",") if args.only else [], [int(seed) for seed in (args.seeds or "1").split(",")], words)
    report()


if __name__ == "__main__":
    main()
