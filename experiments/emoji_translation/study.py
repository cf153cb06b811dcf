"""Noto emoji drawn as OpenMoji: trains CycleGAN and CUT on two folders of different emoji, scores them on true pairs.

    python experiments/emoji_translation/study.py --root <folder with trainA, trainB, testA, testB>
    python experiments/emoji_translation/study.py --root <folder> --report         reports the existing runs

`--weights` is a file of SqueezeNet weights (torchvision's names, Caffe's input); every further argument is handed to
`aigc.train`, e.g. budget.minutes=10.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.pair_folders import UnpairedFolder
from aigc.images.grids import save_grid
from aigc.models.checkpoints import load_family
from aigc.models.family import Translator
from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, table

STUDY = "emoji_translation"
FAMILIES = ("cyclegan", "cut")
DIRECTIONS = {"a2b": "Noto to OpenMoji", "b2a": "OpenMoji to Noto"}
HERE = Path(__file__).resolve().parent
SCORES = {  # a column's head, the name of the score and its format
    "FD squeezenet": ("fd_squeezenet", ",.0f"),
    "KD squeezenet": ("kd_squeezenet", ",.0f"),
    "similarity to the pair": ("similarity_squeezenet", ".3f"),
    "SSIM": ("ssim", ".3f"),
    "PSNR, dB": ("psnr", ".2f"),
}
PREPARED = (
    "data.load_size=64", "data.crop_size=48", "data.test_size=64",  # learn from patches, test on whole emoji
    "data.margins=[0.09,0]",                               # Noto fills 62 of 64 pixels, OpenMoji 51 (training images)
)
SHOWN = 12                                                 # emoji in a grid: every seventh of the test images


def train(args: argparse.Namespace, overrides: list[str]) -> None:
    """Trains each family in a process of its own, one after the other: they share the cores with nobody."""
    for family in FAMILIES:
        command = [sys.executable, "-m", "aigc.train", f"model={family}", "data=unpaired_folder"]
        command += [f"data.root={args.root}", "data.flip=true", "data.validation=40", f"study={STUDY}"]
        command += ["metrics.network=squeezenet", f"metrics.weights={args.weights}", "metrics.preprocessing=caffe",
                    "metrics.every_images=5000", "budget.minutes=30", *PREPARED, *overrides]
        subprocess.run(command, check=True)


def finished() -> dict[str, Run]:
    """Finished runs by `<family>, <minutes> minutes`, the newest of each."""
    found = {f"{run.family}, {run.summary['seconds'] / 60:.0f} minutes": run for run in study.finished(STUDY)}
    return dict(sorted(found.items()))


def tables(runs: dict[str, Run]) -> str:
    """Scores on the true pairs as Markdown, a row for doing nothing above the runs' own, for each direction."""
    parts = []
    for direction, title in DIRECTIONS.items():
        rows: list[list[str]] = []
        for name, run in runs.items():
            s = run.summary
            last = s["scores"]["last"]
            if f"test/{direction}/fd_squeezenet" not in last:
                continue
            if not rows:
                rows.append(["doing nothing", *cells(last, f"test/{direction}/identity/"), "", "", ""])
            facts = [f"{s['images']:,}", f"{s['images_per_second']:.1f}", f"{s['parameters']:,}"]
            rows.append([name, *cells(last, f"test/{direction}/"), *facts])
        head = ["", *SCORES, "images seen", "images/s", "parameters"]
        parts.append(f"**{title}**\n\n{table(head, rows)}\n")
    protocol = s["protocol"]
    counts = protocol["splits"]["test"]
    note = (
        f"Protocol: {counts['a']} and {counts['b']} held-out emoji of the same names, {protocol['reference']}; "
        f"network `{protocol['network']}` (sha256 {protocol['network_sha256'][:12]}), {protocol['resizer']}. Lower is "
        f"better for FD and KD, higher for the rest. Machine: {s['machine']}, "
        f"{s['precision']}, torch {s['versions']['torch']}."
    )
    return "\n".join([*parts, note])


def cells(scores: dict[str, Any], prefix: str) -> list[str]:
    """The scores of one row."""
    return [f"{scores[prefix + name]:{form}}" if prefix + name in scores else "" for name, form in SCORES.values()]


def curves(runs: dict[str, Run]) -> None:
    """Fréchet distance of the validation images against training minutes, as a share of the identity's."""
    figure, ((axis,),) = study.axes(1, 1, 6, 3.4)
    for name, run in runs.items():
        for direction, style in zip(DIRECTIONS, ("o-", "s--"), strict=True):
            points = study.history(run, f"{direction}/fd_squeezenet")
            base = run.summary["scores"]["last"].get(f"{direction}/identity/fd_squeezenet")
            if points and base:
                minutes, values = zip(*points, strict=True)
                axis.plot(minutes, [value / base for value in values], style, ms=3, label=f"{name}, {direction}")
    axis.axhline(1, color="grey", lw=0.8)
    axis.set(xlabel="training minutes", ylabel="FD of validation images / identity's")
    axis.legend(fontsize=7)
    figure.savefig(HERE / "curves.png", dpi=110)


@torch.no_grad()
def grids(runs: dict[str, Run], root: str) -> None:
    """For every direction: test emoji, what each run makes of them, and the true pair, a row each."""
    data = UnpairedFolder(root=root, batch_size=1)
    data.prepare_data()
    data.setup()
    rows = torch.arange(data.count("test"))[:: data.count("test") // SHOWN][:SHOWN]
    sides = data.prepare(data.pair_split("test").batch(rows), torch.device("cpu"))
    for direction in DIRECTIONS:
        source, target = Translator.sides(sides, direction)
        pictures: list[Tensor] = [source]
        for run in runs.values():
            family = load_family(run.folder, "last")
            assert isinstance(family, Translator)
            if direction in family.directions:
                pictures.append(family.translate(source, direction=direction))
        save_grid(torch.cat([*pictures, target]), HERE / f"{direction}.png", columns=len(rows))


def report(root: str) -> None:
    """Writes the table into README.md, and the pictures beside it."""
    runs = finished()
    if not runs:
        sys.exit(f"no finished run in runs/{STUDY}: start without --report")
    fill(HERE / "README.md", tables(runs))
    curves(runs)
    grids(runs, root)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder with trainA, trainB, testA and testB")
    parser.add_argument("--weights", help="SqueezeNet weights (default: weights/squeezenet1_0-imagenet.safetensors "
                        "beside the folder)")
    parser.add_argument("--report", action="store_true", help="train nothing, report the existing runs")
    args, overrides = parser.parse_known_args()
    args.weights = args.weights or Path(args.root).parent / "weights" / "squeezenet1_0-imagenet.safetensors"
    if not args.report:
        train(args, overrides)
    report(args.root)


if __name__ == "__main__":
    main()
