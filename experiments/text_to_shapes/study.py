"""Text to shapes: how often an image has all that its caption says, against minutes of training.

    python experiments/text_to_shapes/study.py             trains diffusion 2, 4 and 6 minutes on one object and 6 on
                                                           both, the GAN 6 on one, BigGAN and StyleGAN2 10
    python experiments/text_to_shapes/study.py --report    reads and reports the existing runs

Every other argument is handed to `aigc.train`, e.g. seed=2.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from aigc.data.scenes import Scenes, caption, named
from aigc.images.grids import to_uint8
from aigc.images.streams import seeds_of
from aigc.models.checkpoints import load_family
from aigc.report import study
from aigc.runs.entry import Run
from aigc.runs.markdown import fill, table
from aigc.scoring.networks.oracle import agreement, shapes_oracle
from aigc.training.callbacks.evaluating import evaluating

TRAININGS = (("diffusion", "1", 2), ("diffusion", "1", 4), ("diffusion", "1", 6), ("diffusion", "mixed", 6),
             ("gan", "1", 6), ("biggan", "1", 10), ("stylegan2", "1", 10))     # recipe, objects, minutes
SPLITS = {"test": "seen", "heldout": "held-out"}           # combinations that training showed, and never did
SAMPLES = 500                                              # a split
GUIDANCE = {"diffusion": (2.0, 1.0, 3.0), "gan": (None,), "biggan": (None,), "stylegan2": (None,)}  # read at the first
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
    for name, number, budget in TRAININGS:
        command = [sys.executable, "-m", "aigc.train", f"model={name}", "data=shapes", "condition=text"]
        command += [f"study={STUDY}", f"data.objects={number}", f"budget.minutes={budget}"]
        subprocess.run([*command, "metrics=none", *overrides], check=True)  # read below, at several guidances


def finished() -> list[Run]:
    """Finished runs, the newest of each training, in the order of `TRAININGS`."""
    found = {(recipe(run), objects(run), minutes(run)): run for run in study.finished(STUDY)}
    return [found[training] for training in TRAININGS if training in found]


def recipe(run: Run) -> str:
    """`diffusion`, `gan`, `biggan` or `stylegan2`."""
    return run.family.lower()


def objects(run: Run) -> str:
    """1 or mixed: the objects in an image that it was trained on."""
    return str(run.config["data"]["objects"])


def minutes(run: Run) -> int:
    """Of training."""
    return round(run.summary["seconds"] / 60)


def longest(runs: list[Run]) -> list[Run]:
    """The longest run of each recipe and each number of objects."""
    return list({(recipe(run), objects(run)): run for run in sorted(runs, key=minutes)}.values())


def key_of(split: str, guidance: float | None) -> str:
    """The name of a reading."""
    return split if guidance is None else f"{split} {guidance:g}"


@torch.no_grad()
def read(family: Any, objects: str, split: str, n: int, guidance: float | None) -> dict[str, dict[str, float]]:
    """What the oracle agrees with in samples of the split's first n captions: of single objects, and of pairs."""
    size = tuple(family.hparams.size)
    oracle, scenes = shapes_oracle(size), Scenes(0, split, objects=objects, size=size)
    found, places = [], torch.arange(n)
    asked = named(scenes.attributes(places))
    with evaluating(family):
        for part in places.split(125):
            texts = [caption(row) for row in asked[part]]
            made = family.sample(len(part), condition=texts, seeds=seeds_of(part.tolist(), 0), **guided(guidance))
            found.append(oracle.read(to_uint8(made).cpu()))
    got, pair = torch.cat(found), asked[:, 0] == 2
    return {
        name: {**agreement(got[rows], asked[rows]), "n": int(rows.sum())}
        for name, rows in (("one object", ~pair), ("two objects", pair)) if rows.any()
    }


def guided(guidance: float | None) -> dict[str, float]:
    """The sampling options of that guidance; None: the family knows none."""
    return {} if guidance is None else {"guidance": guidance}


def readings(runs: list[Run]) -> dict[str, Any]:
    """Readings of every run, and at several guidances of the longest; what is known already is not read again."""
    known = json.loads(READ.read_text()) if READ.is_file() else {}
    whole = longest(runs)
    for run in runs:
        entry = known.setdefault(run.name, {})
        family = load_family(run.folder / "checkpoints" / "last.ckpt")
        for guidance in GUIDANCE[recipe(run)][: None if run in whole else 1]:
            for split in SPLITS:
                key = key_of(split, guidance)
                if key not in entry:
                    entry[key] = read(family, objects(run), split, SAMPLES, guidance)
                    print(run.name, key, {kind: round(v["all"], 3) for kind, v in entry[key].items()}, flush=True)
                    READ.write_text(json.dumps(known, indent=1) + "\n")
        if run in whole:
            draw(family, run)
    return known


def tables(runs: list[Run], known: dict[str, Any]) -> str:
    """The results as Markdown: attributes against minutes, and diffusion's everything right against guidance."""
    head = ["family", "trained on", "minutes", "images seen", "images/s", "asked for", "combinations", "samples"]
    rows = []
    for run in runs:
        s = run.summary
        told = [run.family, objects(run).replace("1", "one object"), str(minutes(run)), f"{s['images']:,}",
                f"{s['images_per_second']:,.0f}"]
        for split, word in SPLITS.items():
            for kind, scores in known[run.name][key_of(split, GUIDANCE[recipe(run)][0])].items():
                shares = [f"{scores[name]:.3f}" if name in scores else "" for name in ATTRIBUTES]
                rows.append([*told, kind, word, f"{scores['n']:,}", *shares])
    text = table([*head, *ATTRIBUTES], rows)
    tried, rows = sorted(GUIDANCE["diffusion"]), []
    for run in (run for run in longest(runs) if recipe(run) == "diffusion"):
        for split, word in SPLITS.items():
            readings = [known[run.name][key_of(split, w)] for w in tried]
            for kind in readings[0]:
                shares = [f"{reading[kind]['all']:.3f}" for reading in readings]
                rows.append([objects(run).replace("1", "one object"), kind, word, *shares])
    between = "All that a caption says, against guidance w, of the longest runs of diffusion:"
    head = ["trained on", "asked for", "combinations", *(f"w = {w:g}" for w in tried)]
    sizes = {run.family: run.summary["parameters"] for run in runs}
    machine = f"{s['machine']}, {s['precision']}, torch {s['versions']['torch']}"
    note = f"Machine: {machine}. Parameters: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items()) + "."
    return f"{text}\n\n{between}\n\n{table(head, rows)}\n\n{note}"


def draw(family: Any, run: Run, columns: int = 8) -> None:
    """A row of samples for each prompt, the prompt above it."""
    prompts = PROMPTS[objects(run)]
    texts = [prompt for prompt in prompts for _ in range(columns)]
    options = guided(GUIDANCE[recipe(run)][0])
    with evaluating(family), torch.no_grad():
        made = to_uint8(family.sample(len(texts), condition=texts, seeds=seeds_of(range(len(texts)), 1), **options))
    figure, axes = study.axes(len(prompts), 1, 6.4, 1.02)
    for (axis,), prompt, row in zip(axes, prompts, made.cpu().split(columns), strict=True):
        axis.imshow(torch.cat(list(row.permute(0, 2, 3, 1)), dim=1), interpolation="nearest")
        axis.set_title(prompt, fontsize=8, loc="left", pad=2)
        axis.set_axis_off()
    figure.savefig(HERE / f"prompts_{recipe(run)}_{objects(run)}.png", dpi=100)


def report() -> None:
    """Writes the tables into README.md, and the pictures beside it."""
    runs = finished()
    fill(HERE / "README.md", tables(runs, readings(runs)))


if __name__ == "__main__":
    if "--report" not in sys.argv:
        train(sys.argv[1:])
    report()
