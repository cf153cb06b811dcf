"""Three families on MNIST at equal minutes: trains them, then writes the table, the curves and the grids.

    python experiments/first_look/study.py data.root=<folder with MNIST/raw>     trains (minutes=5) and reports
    python experiments/first_look/study.py --report                              reports the existing runs

Every other argument is handed to `aigc.train`, e.g. budget.minutes=2.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, table

STUDY = "first_look"
FAMILIES = ("diffusion", "gan", "vae")
HERE = Path(__file__).resolve().parent
JUDGE = HERE / "judge.json"


def train(overrides: list[str]) -> None:
    """Trains each family in a process of its own, one after the other: they share the cores with nobody."""
    for family in FAMILIES:
        command = [sys.executable, "-m", "aigc.train", f"model={family}", "data=mnist", "condition=label"]
        command += ["study=first_look", "budget.minutes=5", "metrics.every_images=100000", *overrides]
        subprocess.run(command, check=True)


def finished() -> dict[str, Run]:
    """Finished runs by `<family> <minutes>`, the newest of each."""
    return {f"{run.family} {run.summary['seconds'] / 60:.0f}": run for run in study.finished(STUDY)}


def results(runs: dict[str, Run]) -> str:
    """The results as Markdown, from the runs' own summaries."""
    head = ["family", "minutes", "judge: labels right", "judge: times the floor", "label_accuracy", "fd_classifier",
            "over its floor", "images seen", "images/s", "parameters", "memory MB"]
    rows = []
    verdicts = json.loads(JUDGE.read_text()) if JUDGE.is_file() else {"runs": {}}
    for run in runs.values():
        s = run.summary
        last, protocol = s["scores"]["last"], s["protocol"]
        judged = verdicts["runs"].get(run.name)
        verdict = [f"{judged['label_accuracy']:.4f}", f"{judged['over_floor']:.2f}"] if judged else ["", ""]
        rows.append([
            s["family"], f"{s['seconds'] / 60:.1f}", *verdict, f"{last['label_accuracy']:.4f}",
            f"{last['fd_classifier']:.3f}",
            f"{last['fd_classifier'] / protocol['floor']:.2f}", f"{s['images']:,}", f"{s['images_per_second']:,.0f}",
            f"{s['parameters']:,}", f"{s['peak_memory_mb']:,.0f}",
        ])
    note = (
        f"Protocol: {protocol['metric']}, {protocol['num_samples']:,} samples (balanced labels) against "
        f"{protocol['num_reals']:,} {protocol['split']} images; network `{protocol['network']}` "
        f"(sha256 {protocol['network_sha256'][:12]}); floor {protocol['floor']:.3f}: as many test images. "
        f"Judge: {verdicts.get('accuracy', 0):.2%} of the test images right, see judge.py. "
        f"Machine: {s['machine']}, {s['precision']}, torch {s['versions']['torch']}."
    )
    return f"{table(head, rows)}\n\n{note}"


def curves(runs: dict[str, Run]) -> None:
    """Losses and Fréchet distance against training minutes."""
    figure, (cells,) = study.axes(1, len(runs) + 1, 3.6, 3.2)
    for axis, (name, run) in zip(cells[1:], runs.items(), strict=True):
        cells[0].plot(*zip(*study.history(run, "fd_classifier_over_floor"), strict=True), "o-", label=name)
        for key in sorted({key for line in run.history for key in line if key.startswith("loss")}):
            points = study.history(run, key)
            axis.plot(*zip(*points, strict=True), lw=0.8, label=key)
        axis.set(title=f"{name} min", xlabel="training minutes")
        axis.legend(fontsize=7)
        if "VAE" in name:
            values = sorted(value for _, value in points)  # without the first steps' thousands of nats
            axis.set_ylim(values[0] - 50, values[int(len(values) * 0.9)] + 50)
    cells[0].set(title="Fréchet distance / floor", xlabel="training minutes", yscale="log")
    cells[0].axhline(1, color="grey", lw=0.8)
    cells[0].legend(fontsize=7)
    figure.savefig(HERE / "curves.png", dpi=110)


def report() -> None:
    """Writes the table into README.md, and the pictures beside it."""
    runs = finished()
    if not runs:
        sys.exit(f"no finished run in runs/{STUDY}: start without --report")
    fill(HERE / "README.md", results(runs))
    curves(runs)
    for name, run in runs.items():
        for key, found in run.samples.items():
            shutil.copyfile(found[max(found)], HERE / f"{key}_{name.replace(' ', '_').lower()}min.png")


if __name__ == "__main__":
    if "--report" not in sys.argv:
        train(sys.argv[1:])
    report()
