"""What a search of 20 trials gains: Optuna's TPE on the small GAN, against its recipe as it stands.

    python experiments/hparam_search/study.py --mnist <folder with MNIST/raw>     searches, trains, scores and reports
    python experiments/hparam_search/study.py --report                            reports the existing runs

The best trial is the best of 20 that saw one seed, so it is judged on others: it and the recipe are trained again with
three new seeds each. Every other argument is handed to `aigc.train`. The same command resumes after an
interruption.
"""

import json
import sys
from pathlib import Path
from typing import Any

from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, number, table

STUDY = "hparam_search"
HERE = Path(__file__).resolve().parent
SEARCH = Path("runs") / STUDY / "search"
SCORE = "fd_classifier"
SPACE = {                                                        # what is tried, around the recipe's values
    "model.generator_rate": "tag(log,interval(1e-4,3e-3))",      # 1e-3
    "model.discriminator_rate": "tag(log,interval(1e-4,3e-3))",  # 1e-3
    "model.r1": "tag(log,interval(0.1,10))",                     # 1
    "model.latent": "32,64,128",                                 # 64
    "model.ema_halflife_images": "tag(log,interval(1000,50000))",  # 10000
    "model.decay_from": "interval(0.2,1.0)",                     # 0.5
    "batch_size": "32,64,128",                                   # 64
}


def start(mnist: str | None, overrides: list[str]) -> None:
    """The search, then the best trial and the recipe with seeds that it has not seen."""
    setting = ["data=mnist", "condition=label", "budget.minutes=1", "metrics.every_images=30000"]
    setting += [f"data.root={mnist}"] if mnist else []
    space = [f"{name}={values}" for name, values in SPACE.items()]
    study.train(STUDY, "search", "model=gan", "hparams_search=tpe", *setting, *space, "seed=1", *overrides)
    study.train(STUDY, "recipe", "model=gan", *setting, "seed=11,12,13", *overrides)
    if (SEARCH / "experiment" / "best.yaml").is_file():
        study.train(STUDY, "best", "--config-dir", str(SEARCH), "experiment=best", "seed=11,12,13", *overrides)


def part(run: Run) -> str:
    """search, recipe or best: the multirun that a run belongs to."""
    return run.folder.parent.name


def setting(run: Run, name: str) -> str:
    """The value of an option, in three digits."""
    value: Any = run.config
    for key in name.split("."):
        value = value[key]
    return number(value, 3) if isinstance(value, float) else str(value)


def results(parts: dict[str, list[Run]], trials: list[dict[str, Any]]) -> str:
    """Both on new seeds, and what the search chose."""
    runs = [*parts.get("recipe", []), *parts.get("best", [])]
    fd, right = study.measured(runs, SCORE), study.measured(runs, "label_accuracy")
    rows = []
    for name in ("recipe", "best"):
        some = parts.get(name, [])
        rows.append([
            {"recipe": "the recipe", "best": f"best of {len(trials)} trials"}[name], str(len(some)),
            study.shown(fd[run.folder].value for run in some if run.folder in fd),
            study.shown(run.summary["scores"]["best"] for run in some),
            study.shown((right[run.folder].value for run in some if run.folder in right), ".3f"),
            study.shown((run.summary["images"] for run in some), ",.0f"),
        ])
    head = ["", "runs", f"{SCORE}, new seeds", "best while training", "labels right", "images seen"]
    text = table(head, rows)
    scored = [trial for trial in trials if trial.get("score") is not None]
    if scored and parts.get("best") and parts.get("recipe"):
        best = min(scored, key=lambda trial: trial["score"])
        chosen = [[f"`{name}`", setting(parts["recipe"][0], name), setting(parts["best"][0], name)] for name in SPACE]
        text += f"\n\nThe best trial, number {best['number']}, had {number(best['score'], 3)} with its own seed:\n\n"
        text += table(["option", "the recipe", "the best trial"], chosen)
    return f"{text}\n\n{study.circumstances(runs, fd)}\n\n![trials, and both on new seeds](search.png)"


def figures(parts: dict[str, list[Run]], trials: list[dict[str, Any]]) -> None:
    """The score of every trial with the best so far, and both on new seeds."""
    figure, ((search, judged),) = study.axes(1, 2, 4.6, 3.4)
    scored = [(trial["number"], trial["score"]) for trial in trials if trial.get("score") is not None]
    if scored:
        numbers, values = zip(*scored, strict=True)
        search.plot(numbers, values, "o", label="trial")
        search.step(numbers, [min(values[: k + 1]) for k in range(len(values))], where="post", label="best so far")
        search.legend(fontsize=7)
    search.set(xlabel="trial", ylabel=f"{SCORE}, best of the run")
    search.xaxis.get_major_locator().set_params(integer=True)
    study.logarithmic(search.yaxis)
    fd = study.measured([run for name in ("recipe", "best") for run in parts.get(name, [])], SCORE)
    study.draw_spreads(judged, {name: [fd[run.folder].value for run in parts.get(name, []) if run.folder in fd]
                          for name in ("recipe", "best")})
    judged.set(ylabel=f"{SCORE}, new seeds: runs and mean", xlim=(-0.5, 1.5))
    figure.savefig(HERE / "search.png", dpi=110)


def report() -> None:
    """Writes the table into README.md and the figure beside it."""
    parts = study.grouped(study.finished(STUDY), part)
    if not parts:
        sys.exit(f"no finished run in runs/{STUDY}: start without --report")
    record = SEARCH / "jobs.json"
    trials = json.loads(record.read_text())["jobs"] if record.is_file() else []
    fill(HERE / "README.md", results(parts, trials))
    figures(parts, trials)


def main() -> None:
    """The command line."""
    args, overrides = study.arguments(__doc__, mnist="folder with MNIST/raw; without, it is downloaded")
    if not args.report:
        start(args.mnist, overrides)
        judged = [run for run in study.finished(STUDY) if part(run) != "search"]
        study.evaluate(judged, "checkpoint=last", "num_samples=10000")
    report()


if __name__ == "__main__":
    main()
