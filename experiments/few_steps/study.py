"""Score against network evaluations of a teacher, its samplers and its few-step students, on MNIST.

    python experiments/few_steps/study.py data.root=<folder with MNIST/raw> [<name of a run> ...]
    python experiments/few_steps/study.py --report

The runs, runs/few_steps/teacher and runs/few_steps/<method>, are trained as README.md says. Scores are those of the
judge of ../first_look, which no run has seen: 2,000 images, 200 a class. An evaluation is a pass of one image through
the network: a guided step takes two. What is in results.json is not measured again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from aigc.images.grids import save_grid, to_uint8
from aigc.models.checkpoints import load_family
from aigc.noise import mix
from aigc.report import study
from aigc.runs.markdown import fill, table
from aigc.runs.summary import read_summary

HERE = Path(__file__).resolve().parent
RUNS, RESULTS = Path("runs") / "few_steps", HERE / "results.json"
TEACHER = {"guidance": 1.7}              # its best of 1.5, 1.7, 1.9, 2.1 with the recipe's sampler
SOLVERS = {"euler": (1, 2, 4, 8, 16, 32), "heun": (1, 2, 4, 8, 16), "dpmpp_2m": (1, 2, 4, 8, 16, 32)}
STEPS = {"shortcut": (1, 2, 4, 8, 16, 32, 64), "consistency": (1, 2, 4, 8), "meanflow": (1, 2, 4, 8, 16)}
SAMPLES, AT_ONCE = 2000, 250


def measure(root: str, names: list[str]) -> None:
    """Adds what is missing to results.json: for every run, sampler and number of steps a row."""
    sys.path.insert(0, str(HERE.parent / "first_look"))
    import judge as first_look

    from aigc.data.vision import Vision
    from aigc.scoring.scores.frechet import frechet_distance

    data = Vision("mnist", batch_size=64, root=root)
    data.prepare_data()
    data.setup()
    judge = first_look.trained(data.images("train"), data.labels("train"))
    reference = first_look.moments(first_look.look(judge, data.images("train"))[0])
    chosen = torch.cat([(data.labels("test") == k).nonzero()[: SAMPLES // 10, 0] for k in range(10)])
    real = first_look.look(judge, data.images("test")[chosen])[0]
    floor = float(frechet_distance(*first_look.moments(real), *reference))
    labels, rows = torch.arange(SAMPLES) % 10, read()
    for name, sampler, options in cases(names):
        if any((row["run"], row["sampler"], row["steps"]) == (name, sampler, options["steps"]) for row in rows):
            continue
        family: Any = load_family(RUNS / name, "last")
        passes: list[int] = []
        hook = family.ema.network.register_forward_hook(lambda _, given, made, seen=passes: seen.append(len(made)))
        made = torch.cat([
            to_uint8(family.sample(len(part), condition=labels[part], sampler=sampler, **options,
                                   seeds=[mix(first_look.SEED, int(k)) for k in part]))
            for part in torch.arange(SAMPLES).split(AT_ONCE)
        ])
        hook.remove()
        features, seen = first_look.look(judge, made)
        row = {"run": name, "sampler": sampler, "steps": options["steps"], "evaluations": sum(passes) / SAMPLES,
               "labels": (seen == labels).double().mean().item(),
               "over_floor": float(frechet_distance(*first_look.moments(features), *reference)) / floor}
        rows.append(row)
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(one) for one in rows) + "\n]\n")
        print(row, flush=True)
    grids(names)


def cases(names: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(run, sampler, further options) of every row, cheapest first."""
    solvers = [("teacher", sampler, {**TEACHER, "steps": n}) for sampler, counts in SOLVERS.items() for n in counts]
    students = [(name, "euler", {"steps": n}) for name, counts in STEPS.items() for n in counts]
    return sorted((case for case in solvers + students if case[0] in names), key=lambda case: case[2]["steps"])


def read() -> list[dict[str, Any]]:
    """The rows so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else []


def grids(names: list[str]) -> None:
    """The same ten digits and seeds by every run in 1, 2 and 4 steps: a row for each number."""
    for name in names:
        options = {"sampler": "euler", **(TEACHER if name == "teacher" else {})}
        family = load_family(RUNS / name, "last")
        made = [family.sample(20, condition=[k // 2 for k in range(20)], seeds=range(20), steps=n, **options)
                for n in (1, 2, 4)]
        save_grid(torch.cat(made), HERE / f"samples_{name}.png", columns=20)


def report() -> None:
    """The table and the figure."""
    rows = sorted(read(), key=lambda row: (row["run"] != "teacher", row["run"], row["sampler"], row["steps"]))
    head = ["model", "sampler", "steps", "evaluations", "labels right", "times the floor"]
    cells = [[row["run"], row["sampler"], str(row["steps"]), f"{row['evaluations']:.1f}", f"{row['labels']:.4f}",
              f"{row['over_floor']:.2f}"] for row in rows]
    summaries = {name: read_summary(RUNS / name) for name in dict.fromkeys(row["run"] for row in rows)}
    facts = [[name, f"{s['images']:,}", f"{s['seconds'] / 60:.1f}", f"{s['parameters']:,}", s["machine"],
              s["precision"]] for name, s in summaries.items()]
    runs = table(["model", "images seen", "minutes", "parameters", "machine", "precision"], facts)
    fill(HERE / "README.md", f"{runs}\n\n{table(head, cells)}")
    figure, ((axis,),) = study.axes(1, 1, 6, 4)
    for name, sampler in dict.fromkeys((row["run"], row["sampler"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["sampler"]) == (name, sampler)]
        line = [(row["evaluations"], row["over_floor"]) for row in mine]
        axis.plot(*zip(*line, strict=True), "o-" if name == "teacher" else "s--", ms=4,
                  label=f"teacher, {sampler}" if name == "teacher" else name)
    axis.set(xlabel="network evaluations an image", ylabel="Fréchet distance / floor", xscale="log", yscale="log")
    axis.legend(fontsize=8)
    figure.savefig(HERE / "curves.png")


def main() -> None:
    """Measures the runs that are named, or all; reports."""
    words = sys.argv[1:]
    root = next((word.split("=", 1)[1] for word in words if word.startswith("data.root=")), "data_cache")
    named = [word for word in words if word == "teacher" or word in STEPS]
    if "--report" not in words:
        measure(root, named or [name for name in ("teacher", *STEPS) if (RUNS / name).is_dir()])
    report()


if __name__ == "__main__":
    main()
