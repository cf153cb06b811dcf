"""What a DALL-E on shapes draws, says and completes: read by the oracle, at several guidances; and pictures of it.

    python experiments/dalle/judge.py run=<run> [n=500] [guidance=1,2] [pictures=<folder>]

Prints tables; with `pictures` also writes prompts.png, completed.png and varied.png.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.scenes import Scenes, caption, named
from aigc.editing.complete import complete
from aigc.editing.vary import vary
from aigc.images.grids import grid_png, to_uint8
from aigc.images.streams import seeds_of
from aigc.models.checkpoints import load_family
from aigc.runs.markdown import table
from aigc.scoring.networks.oracle import agreement, shapes_oracle

SPLITS = {"test": "seen", "heldout": "held-out"}           # combinations that training showed, and never did
SAMPLES = 500                                              # a split
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
ATTRIBUTES = ("count", "size", "colour", "shape", "all")
PROMPTS = ("a small blue circle", "a large yellow star", "a large red triangle", "a small purple cross",
           "a large green cross", "a small orange star")


def scenes_of(family: Any, split: str, n: int) -> tuple[Tensor, list[str], Tensor]:
    """The first n images of a split in [-1, 1], their captions, and what these ask for."""
    scenes, places = Scenes(0, split, size=tuple(family.hparams.size)), torch.arange(n)
    asked = named(scenes.attributes(places))
    return scenes.images(places).float() / 127.5 - 1, [caption(row) for row in asked], asked


def drawn(family: Any, split: str, n: int, w: float) -> dict[str, float]:
    """What the oracle agrees with in samples of the split's first n captions at guidance w."""
    oracle, (_, texts, asked) = shapes_oracle(tuple(family.hparams.size)), scenes_of(family, split, n)
    found = []
    for rows in torch.arange(n).split(125):
        made = family.sample(len(rows), condition=[texts[k] for k in rows], guidance=w,
                             seeds=seeds_of(rows.tolist(), 0))
        found.append(oracle.read(to_uint8(made)))
    return agreement(torch.cat(found), asked)


def said(family: Any, split: str, n: int) -> float:
    """The share of the first n images of a split that are described by their own caption, word for word."""
    images, texts, _ = scenes_of(family, split, n)
    made = [text for part in images.split(125) for text in family.describe(part)]
    return sum(a == b for a, b in zip(made, texts, strict=True)) / n


def pictures(family: Any, folder: Path) -> None:
    """A row of samples for each prompt; upper halves completed four times; pictures varied four times."""
    texts = [prompt for prompt in PROMPTS for _ in range(8)]
    made = family.sample(len(texts), condition=texts, seeds=seeds_of(range(len(texts)), 1))
    (folder / "prompts.png").write_bytes(grid_png(to_uint8(made), columns=8, captions=list(PROMPTS)))
    images, texts, _ = scenes_of(family, "heldout", 8)
    rows = images.repeat_interleave(5, dim=0)
    upper = images.clone()
    upper[:, :, images.shape[2] // 2 :] = 0
    for name, shown, work in (("completed", upper, complete), ("varied", images, vary)):
        made = work(family, rows, None, seeds_of(range(len(rows)), 2))
        made[::5] = shown
        (folder / f"{name}.png").write_bytes(grid_png(to_uint8(made), columns=10))
    print("\n".join(f"- {text!r}: {said!r}" for text, said in zip(texts, family.describe(images), strict=True)))


@torch.no_grad()
def main() -> None:
    """Prints the tables."""
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    family: Any = load_family(typed["run"])
    n, rows = int(typed.get("n", SAMPLES)), []
    for w in map(float, typed.get("guidance", ",".join(map(str, GUIDANCE))).split(",")):
        for split, word in SPLITS.items():
            found = drawn(family, split, n, w)
            rows.append([f"{w:g}", word, *(f"{found[name]:.3f}" for name in ATTRIBUTES)])
            print(rows[-1], flush=True)
    print(table(["guidance", "combinations", *ATTRIBUTES], rows))
    print(table(["pictures of", "described right"], [[word, f"{said(family, split, n):.3f}"]
                                                     for split, word in SPLITS.items()]))
    if "pictures" in typed:
        Path(typed["pictures"]).mkdir(parents=True, exist_ok=True)
        pictures(family, Path(typed["pictures"]))


if __name__ == "__main__":
    main()
