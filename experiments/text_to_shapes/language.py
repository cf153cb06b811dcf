"""What a run on the richer language of shapes draws right, by kind of caption: read by the oracle.

    python experiments/text_to_shapes/language.py run=<run> [n=500] [guidance=2] [picture=<png>]

n captions a split: of combinations that training showed, of those that it never did, in sentences that it never used.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from aigc.data.shape_language import KINDS, RichScenes, fulfilled
from aigc.images.grids import grid_png, to_uint8
from aigc.images.streams import seeds_of
from aigc.models.checkpoints import load_family
from aigc.runs.markdown import table
from aigc.scoring.networks.oracle import shapes_oracle
from aigc.training.callbacks.evaluating import evaluating

SPLITS = {"test": "seen combinations", "heldout": "held-out combinations", "templates": "held-out sentences"}
NAMES = ("all", *(f"all_{kind}" for kind in KINDS), "count", "size", "colour", "shape", "relation", "negation")
PROMPTS = ("a big violet star", "left of a small blue circle there is a large red square",
           "a small green cross, a large yellow circle and a small red triangle", "there are three small blue stars",
           "a large circle that is not red", "three objects and no square")


@torch.no_grad()
def read(family: Any, split: str, n: int, options: dict[str, Any]) -> dict[str, float]:
    """The shares of claims that samples of a split's first n captions fulfil."""
    size, places = tuple(family.hparams.size), torch.arange(n)
    oracle, scenes = shapes_oracle(size, language="rich"), RichScenes(0, split, size=size)
    texts, found = scenes.captions(places), []
    with evaluating(family):
        for part in places.split(125):
            told = [texts[k] for k in part]
            made = family.sample(len(part), condition=told, seeds=seeds_of(part.tolist(), 0), **options)
            found.append(oracle.read(to_uint8(made).cpu()))
    return fulfilled(torch.cat(found), scenes.claims(places))


def main() -> None:
    """Prints the table."""
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    family: Any = load_family(typed["run"])
    options = {"guidance": float(typed["guidance"])} if "guidance" in typed else {}
    rows = []
    for split, words in SPLITS.items():
        shares = read(family, split, int(typed.get("n", 500)), options)
        rows.append([words, *(f"{shares[name]:.3f}" for name in NAMES)])
        print(rows[-1], flush=True)
    print(table(["captions of", *(name.replace("all_", "") for name in NAMES)], rows))
    if "picture" in typed:
        texts = [prompt for prompt in PROMPTS for _ in range(8)]
        with evaluating(family), torch.no_grad():
            made = family.sample(len(texts), condition=texts, seeds=seeds_of(range(len(texts)), 1), **options)
        Path(typed["picture"]).write_bytes(grid_png(to_uint8(made), columns=8, captions=list(PROMPTS)))


if __name__ == "__main__":
    main()
