"""Text to shapes: how often an image has all that its caption says, against minutes of training.

    python experiments/text_to_shapes/study.py             trains 2, 4 and 6 minutes on one object and 6 on both
    python experiments/text_to_shapes/study.py --report    reads and reports the runs there are

Every other argument is handed to `aigc.train`, e.g. seed=2.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from aigc.callbacks.evaluating import evaluating
from aigc.checkpoints import load_family
from aigc.data.shapes import Scenes, caption
from aigc.metrics.features import to_uint8
from aigc.metrics.items import seeds_of
from aigc.metrics.oracle import agreement, shapes_oracle
from aigc.report import study
from aigc.report.markdown import fill, table
from aigc.report.runs import Run

TRAININGS = (("1", 2), ("1", 4), ("1", 6), ("mixed", 6))   # objects, minutes
SPLITS = {"test": "seen", "heldout": "held-out"}           # combinations that training showed, and never did
SAMPLES = 500                                              # a split
GUIDANCE = (1.0, 2.0, 3.0)
ATTRIBUTES = ("count", "size", "colour", "shape", "relation", "size2", "colour2", "shape2", "all")
PROMPTS = {
    "1": ("a small blue circle", "a large yellow star", "a large red triangle", "a small purple cross",
          "a large green cross", "a small orange star"),
    "mixed": ("a large red circle left of a small blue square", "a small blue square left of a large red circle",
              "a large yellow star above a small green triangle", "a small green triangle above a large yellow star",
              "a large cyan cross left of a large purple circle", "a small orange circle"),
}
HERE = Path(__file__).resolve().parent
STUDY = "text_to_shapes"
READ = HERE / "read.json"                                  # what the oracle saw in each run, by its folder's name


def train(overrides: list[str]) -> None:
    """Trains one run after the other, each in a process of its own: they share the cores with nobody."""
    for objects, minutes in TRAININGS:
        command = [sys.executable, "-m", "aigc.train", "model=diffusion", "data=shapes", "condition=text"]
        command += [f"study={STUDY}", f"data.objects={objects}", f"budget.minutes={minutes}"]
        subprocess.run([*command, "metrics=none", *overrides], check=True)  # read below, at several guidances


def finished() -> list[tuple[str, float, Run]]:
    """Objects, minutes and finished run, the newest of each kind."""
    found = {(str(run.config["data"]["objects"]), round(run.summary["seconds"] / 60)): run
             for run in study.finished(STUDY)}
    return [(objects, minutes, found[objects, minutes]) for objects, minutes in sorted(found)]


@torch.no_grad()
def read(family: Any, objects: str, split: str, n: int, **options: Any) -> dict[str, dict[str, float]]:
    """What the oracle agrees with in samples of the split's first n captions: of single objects, and of pairs."""
    oracle = shapes_oracle(family.shape[1:])
    scenes, found, places = Scenes(0, split, objects=objects, size=family.shape[1:]), [], torch.arange(n)
    asked = scenes.attributes(places)
    with evaluating(family):
        for part in places.split(125):
            texts = [caption(row) for row in asked[part]]
            made = family.sample(len(part), condition=texts, seeds=seeds_of(part.tolist(), 0), **options)
            found.append(oracle.read(to_uint8(made).cpu()))
    got, pair = torch.cat(found), asked[:, 0] == 2
    return {
        name: {**agreement(got[rows], asked[rows]), "n": int(rows.sum())}
        for name, rows in (("one object", ~pair), ("two objects", pair)) if rows.any()
    }


def readings(runs: list[tuple[str, float, Run]]) -> dict[str, Any]:
    """Readings of every run at guidance 2, and at several of the longest; what is known already is not read again."""
    known = json.loads(READ.read_text()) if READ.is_file() else {}
    longest = {objects: run.name for objects, _, run in runs}
    for objects, _, run in runs:
        entry = known.setdefault(run.name, {})
        family = load_family(run.folder / "checkpoints" / "last.ckpt")
        for guidance in GUIDANCE if run.name == longest[objects] else (2.0,):
            for split in SPLITS:
                key = f"{split} {guidance:g}"
                if key not in entry:
                    entry[key] = read(family, objects, split, SAMPLES, guidance=guidance)
                    print(run.name, key, {kind: round(v["all"], 3) for kind, v in entry[key].items()}, flush=True)
                    READ.write_text(json.dumps(known, indent=1) + "\n")
        draw(family, PROMPTS[objects], HERE / f"prompts_{objects}.png")
    return known


def tables(runs: list[tuple[str, float, Run]], known: dict[str, Any]) -> str:
    """The results as Markdown: attributes against minutes, and everything right against guidance."""
    head = ["trained on", "minutes", "images seen", "images/s", "asked for", "combinations", "samples", *ATTRIBUTES]
    rows = []
    for objects, minutes, run in runs:
        s = run.summary
        told = [objects.replace("1", "one object"), str(minutes), f"{s['images']:,}", f"{s['images_per_second']:,.0f}"]
        for split, word in SPLITS.items():
            for kind, scores in known[run.name][f"{split} 2"].items():
                shares = [f"{scores[name]:.3f}" if name in scores else "" for name in ATTRIBUTES]
                rows.append([*told, kind, word, f"{scores['n']:,}", *shares])
    text = table(head, rows)
    head, rows = ["trained on", "asked for", "combinations", *(f"w = {w:g}" for w in GUIDANCE)], []
    for objects, run in {objects: run for objects, _, run in runs}.items():
        entry = known[run.name]
        for split, word in SPLITS.items():
            for kind in entry[f"{split} 2"]:
                shares = [f"{entry[f'{split} {w:g}'][kind]['all']:.3f}" for w in GUIDANCE]
                rows.append([objects.replace("1", "one object"), kind, word, *shares])
    machine = f"{s['machine']}, {s['precision']}, torch {s['versions']['torch']}"
    between = "All that a caption says, against guidance w, of the longest runs:"
    note = f"Machine: {machine}; {s['parameters']:,} parameters."
    return f"{text}\n\n{between}\n\n{table(head, rows)}\n\n{note}"


def draw(family: Any, prompts: tuple[str, ...], path: Path, columns: int = 8) -> None:
    """A row of samples for each prompt, the prompt above it."""
    texts = [prompt for prompt in prompts for _ in range(columns)]
    with evaluating(family), torch.no_grad():
        made = to_uint8(family.sample(len(texts), condition=texts, seeds=seeds_of(range(len(texts)), 1), guidance=2.0))
    figure, axes = study.axes(len(prompts), 1, 6.4, 1.02)
    for (axis,), prompt, row in zip(axes, prompts, made.cpu().split(columns), strict=True):
        axis.imshow(torch.cat(list(row.permute(0, 2, 3, 1)), dim=1), interpolation="nearest")
        axis.set_title(prompt, fontsize=8, loc="left", pad=2)
        axis.set_axis_off()
    figure.savefig(path, dpi=100)


def report() -> None:
    """Writes the tables into README.md, and the pictures beside it."""
    runs = finished()
    fill(HERE / "README.md", tables(runs, readings(runs)))


if __name__ == "__main__":
    if "--report" not in sys.argv:
        train(sys.argv[1:])
    report()
