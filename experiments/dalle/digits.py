"""What a DALL-E on MNIST with the digits' names as captions draws and says, by the judge of first_look.

    python experiments/dalle/digits.py run=<run> data.root=<folder with MNIST/raw> [n=100] [guidance=2] [picture=<png>]

n pictures of each digit at each guidance; and the names that it gives as many test pictures.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from aigc.data.vision import Vision
from aigc.images.grids import grid_png, to_uint8
from aigc.images.streams import seeds_of
from aigc.models.checkpoints import load_family

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "first_look"))
from judge import look, trained

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@torch.no_grad()
def main() -> None:
    """Prints the shares."""
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    data = Vision("mnist", batch_size=64, root=typed["data.root"], download=False)
    data.setup()
    judge = trained(data.images("train"), data.labels("train"))  # type: ignore[arg-type]
    labels, images = data.labels("test"), data.images("test")
    assert labels is not None
    print("the judge of test pictures", (look(judge, images)[1] == labels).float().mean().item())
    family: Any = load_family(typed["run"])
    n = int(typed.get("n", 100))
    asked = torch.arange(10 * n) % 10
    texts = [NAMES[k] for k in asked]
    for w in map(float, typed.get("guidance", "1,2").split(",")):
        made = torch.cat([
            to_uint8(family.sample(len(part), condition=[texts[k] for k in part], guidance=w,
                                   seeds=seeds_of(part.tolist(), 0))) for part in torch.arange(10 * n).split(250)
        ])
        right = look(judge, made)[1] == asked
        each = ", ".join(f"{name} {right[asked == k].float().mean():.2f}" for k, name in enumerate(NAMES))
        print(f"guidance {w:g}: {right.float().mean():.4f} of {10 * n} right ({each})", flush=True)
        if "picture" in typed:
            rows = torch.arange(100).view(10, 10).T.flatten()                      # ten of each digit, a digit a row
            Path(typed["picture"]).write_bytes(grid_png(made[rows], columns=10))
    said = [text for part in images[: 10 * n].split(250) for text in family.describe(part.float() / 127.5 - 1)]
    named = [text == NAMES[k] for text, k in zip(said, labels.tolist(), strict=False)]
    print(f"described by the right name: {sum(named) / len(named):.4f} of {len(named)} test pictures")


if __name__ == "__main__":
    main()
