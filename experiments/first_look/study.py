"""Three families on MNIST at equal minutes: trains them, then writes the table, the curves and the grids.

    python experiments/first_look/study.py data.root=<folder with MNIST/raw>     trains (minutes=5) and reports
    python experiments/first_look/study.py --report                              reports the runs there are

Every other argument is handed to `aigc.train`, e.g. budget.minutes=2.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

FAMILIES = ("diffusion", "gan", "vae")
HERE = Path(__file__).resolve().parent
JUDGE = HERE / "judge.json"
RUNS = Path("runs/first_look")
START, END = "<!-- table: written by study.py -->", "<!-- end of table -->"


def train(overrides: list[str]) -> None:
    """Trains each family in a process of its own, one after the other: they share the cores with nobody."""
    for family in FAMILIES:
        command = [sys.executable, "-m", "aigc.train", f"model={family}", "data=mnist", "condition=label"]
        command += ["study=first_look", "budget.minutes=5", "metrics.every_images=100000", *overrides]
        subprocess.run(command, check=True)


def finished() -> dict[str, Path]:
    """Finished runs by `<family> <minutes>`, the newest of each."""
    found: dict[str, Path] = {}
    for summary in sorted(RUNS.glob("*/summary.json")):
        facts = json.loads(summary.read_text())
        if facts["status"] == "finished":
            found[f"{facts['family']} {facts['seconds'] / 60:.0f}"] = summary.parent
    return found


def table(runs: dict[str, Path]) -> str:
    """The results as Markdown, from the runs' own summaries."""
    head = ["family", "minutes", "judge: labels right", "judge: times the floor", "label_accuracy", "fd_classifier",
            "over its floor", "images seen", "images/s", "parameters", "memory MB"]
    rows = []
    verdicts = json.loads(JUDGE.read_text()) if JUDGE.is_file() else {"runs": {}}
    for run in runs.values():
        s = json.loads((run / "summary.json").read_text())
        last, protocol = s["scores"]["last"], s["protocol"]
        judged = verdicts["runs"].get(run.name)
        verdict = [f"{judged['label_accuracy']:.4f}", f"{judged['over_floor']:.2f}"] if judged else ["", ""]
        rows.append([
            s["family"], f"{s['seconds'] / 60:.1f}", *verdict, f"{last['label_accuracy']:.4f}",
            f"{last['fd_classifier']:.3f}",
            f"{last['fd_classifier'] / protocol['floor']:.2f}", f"{s['images']:,}", f"{s['images_per_second']:,.0f}",
            f"{s['parameters']:,}", f"{s['peak_memory_mb']:,.0f}",
        ])
    lines = [" | ".join(row) for row in [head, ["---"] * len(head), *rows]]
    note = (
        f"Protocol: {protocol['metric']}, {protocol['num_samples']:,} samples (balanced labels) against "
        f"{protocol['num_reals']:,} {protocol['split']} images; network `{protocol['network']}` "
        f"(sha256 {protocol['network_sha256'][:12]}); floor {protocol['floor']:.3f}: as many test images. "
        f"Judge: {verdicts.get('accuracy', 0):.2%} of the test images right, see judge.py. "
        f"Machine: {s['machine']}, {s['precision']}, torch {s['versions']['torch']}."
    )
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{note}\n"


def curves(runs: dict[str, Path]) -> None:
    """Losses and Fréchet distance against training minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(runs) + 1, figsize=(3.6 * (len(runs) + 1), 3.2), constrained_layout=True)
    for axis, (name, run) in zip(axes[1:], runs.items(), strict=True):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scored = [line for line in lines if "fd_classifier_over_floor" in line]
        minutes = [line["seconds"] / 60 for line in scored]
        axes[0].plot(minutes, [line["fd_classifier_over_floor"] for line in scored], "o-", label=name)
        for key in sorted({key for line in lines for key in line if key.startswith("loss")}):
            points = [(x["seconds"] / 60, x[key]) for x in lines if key in x]
            axis.plot(*zip(*points, strict=True), lw=0.8, label=key)
        axis.set(title=f"{name} min", xlabel="training minutes")
        axis.legend(fontsize=7)
        if "VAE" in name:
            values = sorted(value for _, value in points)  # without the first steps' thousands of nats
            axis.set_ylim(values[0] - 50, values[int(len(values) * 0.9)] + 50)
    axes[0].set(title="Fréchet distance / floor", xlabel="training minutes", yscale="log")
    axes[0].axhline(1, color="grey", lw=0.8)
    axes[0].legend(fontsize=7)
    figure.savefig(HERE / "curves.png", dpi=110)


def report() -> None:
    """Writes the table into README.md, and the pictures beside it."""
    runs = finished()
    readme = HERE / "README.md"
    text = readme.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    readme.write_text(f"{before}{START}\n{table(runs)}{END}{after}")
    curves(runs)
    for name, run in runs.items():
        newest = sorted(p for p in (run / "samples").glob("*.png") if "_" not in p.stem)[-1]
        shutil.copyfile(newest, HERE / f"samples_{name.replace(' ', '_').lower()}min.png")
        for panel in sorted((run / "samples").glob(f"{newest.stem}_*.png")):
            shutil.copyfile(panel, HERE / f"{panel.stem.split('_', 1)[1]}_{name.replace(' ', '_').lower()}min.png")


if __name__ == "__main__":
    if "--report" not in sys.argv:
        train(sys.argv[1:])
    report()
