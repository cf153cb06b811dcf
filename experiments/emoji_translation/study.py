"""Noto emoji drawn as OpenMoji: trains CycleGAN and CUT on two folders of different emoji, scores them on true pairs.

    python experiments/emoji_translation/study.py --root <folder with trainA, trainB, testA, testB>
    python experiments/emoji_translation/study.py --root <folder> --report         reports the runs there are

`--weights` is a file of SqueezeNet weights (torchvision's names, Caffe's input); every further argument is handed to
`aigc.train`, e.g. budget.minutes=10.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.checkpoints import load_family
from aigc.data.pair_folders import UnpairedFolder
from aigc.grids import save_grid
from aigc.models.family import Translator

FAMILIES = ("cyclegan", "cut")
HERE = Path(__file__).resolve().parent
RUNS = Path("runs/emoji_translation")
START, END = "<!-- table: written by study.py -->", "<!-- end of table -->"
SCORES = {  # a column's head, the name of the score, its format, and whether more is better
    "FD squeezenet": ("fd_squeezenet", ".0f", False),
    "KD squeezenet": ("kd_squeezenet", ".0f", False),
    "similarity to the pair": ("similarity_squeezenet", ".3f", True),
    "SSIM": ("ssim", ".3f", True),
    "PSNR, dB": ("psnr", ".2f", True),
}
SHOWN = 12                                                 # emoji in a grid: every seventh of the test images


def train(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains each family in a process of its own, one after the other: they share the cores with nobody."""
    for family in FAMILIES:
        command = [sys.executable, "-m", "aigc.train", f"model={family}", "data=unpaired_folder"]
        command += [f"data.root={args.root}", "data.flip=true", "data.validation=40", "study=emoji_translation"]
        command += ["metrics.network=squeezenet", f"metrics.weights={args.weights}", "metrics.preprocessing=caffe",
                    "budget.minutes=30", *overrides]
        subprocess.run(command, check=True)


def finished() -> dict[str, Path]:
    """Finished runs by `<family>, <minutes> minutes`, the newest of each."""
    found: dict[str, Path] = {}
    for summary in sorted(RUNS.glob("*/summary.json")):
        facts = json.loads(summary.read_text())
        if facts["status"] == "finished":
            found[f"{facts['family']}, {facts['seconds'] / 60:.0f} minutes"] = summary.parent
    return dict(sorted(found.items()))


def table(runs: dict[str, Path]) -> str:
    """Scores on the true pairs as Markdown, a row for doing nothing above the runs' own, for each direction."""
    summaries = {name: json.loads((run / "summary.json").read_text()) for name, run in runs.items()}
    parts = []
    for direction, title in (("a2b", "Noto to OpenMoji"), ("b2a", "OpenMoji to Noto")):
        rows: list[list[str]] = []
        for name, summary in summaries.items():
            last = summary["scores"]["last"]
            if f"test/{direction}/fd_squeezenet" not in last:
                continue
            if not rows:
                rows.append(["doing nothing", *cells(last, f"test/{direction}/identity/"), "", "", ""])
            facts = [f"{summary['images']:,}", f"{summary['images_per_second']:.1f}", f"{summary['parameters']:,}"]
            rows.append([name, *cells(last, f"test/{direction}/"), *facts])
        if rows:
            head = ["", *SCORES, "images seen", "images/s", "parameters"]
            lines = [" | ".join(row) for row in [head, ["---"] * len(head), *rows]]
            parts.append(f"**{title}**\n\n" + "".join(f"| {line} |\n" for line in lines))
    summary = next(iter(summaries.values()))
    protocol = summary["protocol"]
    counts = protocol["splits"]["test"]
    note = (
        f"Protocol: {counts['a']} and {counts['b']} held-out emoji of the same names, {protocol['reference']}; "
        f"network `{protocol['network']}` (sha256 {protocol['network_sha256'][:12]}). Lower is better for FD and KD, "
        f"higher for the rest. Machine: {summary['machine']}, "
        f"{summary['precision']}, torch {summary['versions']['torch']}."
    )
    return "\n".join([*parts, note]) + "\n"


def cells(scores: dict[str, Any], prefix: str) -> list[str]:
    """The scores of one row."""
    return [f"{scores[prefix + name]:{form}}" if prefix + name in scores else "" for name, form, _ in SCORES.values()]


def curves(runs: dict[str, Path]) -> None:
    """Fréchet distance and similarity on the validation images against training minutes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.4), constrained_layout=True)
    for name, run in runs.items():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for direction, style in (("a2b", "o-"), ("b2a", "s--")):
            key, base = f"{direction}/fd_squeezenet", f"{direction}/identity/fd_squeezenet"
            points = [(line["seconds"] / 60, line[key] / line[base]) for line in lines if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), style, ms=3, label=f"{name}, {direction}")
    axis.axhline(1, color="grey", lw=0.8)
    axis.set(xlabel="training minutes", ylabel="FD of validation images / identity's")
    axis.legend(fontsize=7)
    figure.savefig(HERE / "curves.png", dpi=110)


@torch.no_grad()
def grids(runs: dict[str, Path], root: str) -> None:
    """For every direction: test emoji, what each run makes of them, and the true pair, a row each."""
    data = UnpairedFolder(root=root, batch_size=1)
    data.prepare_data()
    data.setup()
    rows = torch.arange(data.count("test"))[:: data.count("test") // SHOWN][:SHOWN]
    sides = data.prepare(data.pair_split("test").batch(rows), torch.device("cpu"))
    for direction in ("a2b", "b2a"):
        source, target = Translator.sides(sides, direction)
        pictures: list[Tensor] = [source]
        for run in runs.values():
            family = load_family(run, "last")
            assert isinstance(family, Translator)
            if direction in family.directions:
                pictures.append(family.translate(source, direction=direction))
        save_grid(torch.cat([*pictures, target]), HERE / f"{direction}.png", columns=len(rows))


def report(root: str) -> None:
    """Writes the table into README.md, and the pictures beside it."""
    runs = finished()
    if not runs:
        sys.exit(f"no finished run in {RUNS}: start without --report")
    readme = HERE / "README.md"
    text = readme.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    readme.write_text(f"{before}{START}\n{table(runs)}{END}{after}")
    curves(runs)
    grids(runs, root)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with trainA, trainB, testA and testB")
    parser.add_argument("--weights", help="SqueezeNet weights (default: weights/squeezenet1_0-imagenet.safetensors "
                        "beside the folder)")
    parser.add_argument("--report", action="store_true", help="train nothing, report the runs there are")
    args, overrides = parser.parse_known_args()
    args.weights = args.weights or Path(args.root).parent / "weights" / "squeezenet1_0-imagenet.safetensors"
    if not args.report:
        train(args, overrides)
    report(args.root)


if __name__ == "__main__":
    main()
