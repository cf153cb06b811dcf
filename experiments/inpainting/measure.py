"""Held-out digits with a box cut out, filled by a diffusion run and by scikit-image: errors, and labels read.

    python experiments/inpainting/measure.py run=<run on MNIST> data.root=<folder with MNIST/raw> [digits=500]
        ["rows=posterior;replace, 4 times"] [known=true]

The box of 12 x 12 pixels is where each digit's own seed says, from 4 to 12 pixels from the left and from the top. Each
row is a setting of `task=inpaint`; `known=true` tells a model with labels the digit's own. The judge is the
independent one of experiments/first_look. Writes results.json and filled.png.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "first_look"))
from judge import look, trained

from aigc.data.vision import Vision
from aigc.editing.inpaint import inpaint
from aigc.images.grids import grid_png, to_uint8
from aigc.models.checkpoints import load_family
from aigc.noise import mix

HERE, SIDE, BOX = Path(__file__).parent, 28, 12
ROWS: dict[str, dict] = {
    "replace, once": {"method": "replace", "options": {"steps": 16, "sampler": "ancestral"}},
    "replace, 4 times": {"method": "replace", "resample": 4, "options": {"steps": 16, "sampler": "ancestral"}},
    "posterior": {"method": "posterior", "options": {"steps": 24, "sampler": "euler"}},
    "posterior, mean of 5": {"method": "posterior", "options": {"steps": 24, "sampler": "euler"}, "of": 5},
}


def boxes(n: int) -> Tensor:
    """Masks `(n, 1, 28, 28)` bool."""
    masks = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.bool)
    for k in range(n):
        top, left = mix(0, k) % 9 + 4, mix(1, k) % 9 + 4
        masks[k, :, top : top + BOX, left : left + BOX] = True
    return masks


def biharmonic(images: Tensor, masks: Tensor) -> Tensor:
    """scikit-image's, of images in [-1, 1]."""
    from skimage.restoration import inpaint_biharmonic

    return torch.stack([torch.from_numpy(inpaint_biharmonic(image[0].numpy(), mask[0].numpy()))[None].float()
                        for image, mask in zip(images.masked_fill(masks, 0.0), masks, strict=True)]).clamp(-1, 1)


def filled(family, images: Tensor, masks: Tensor, labels: Tensor, *, known: bool, of: int = 1, **options) -> Tensor:
    """Fills by a row's setting, pasted into the images; the mean of `of` fills."""
    made = torch.zeros_like(images)
    for attempt in range(of):
        for part in torch.arange(len(images)).split(100):
            seeds = [mix(mix(2, attempt), int(k)) for k in part]
            if known:
                for label in range(10):
                    chosen = part[labels[part] == label]
                    seeds = [mix(mix(2, attempt), int(k)) for k in chosen]
                    made[chosen] += inpaint(family, images[chosen], masks[chosen], seeds, label=label, **options) / of
            else:
                made[part] += inpaint(family, images[part], masks[part], seeds, **options) / of
    return torch.where(masks, made, images)


def main() -> None:
    """The table and the picture."""
    torch.set_num_threads(1)
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    n, known = int(typed.get("digits", 500)), typed.get("known") == "true"
    family = load_family(typed["run"], "last")
    data = Vision("mnist", batch_size=64, root=typed["data.root"])
    data.prepare_data()
    data.setup()
    judge = trained(data.images("train"), data.labels("train"))
    images, labels = data.images("test")[:n].float() / 127.5 - 1, data.labels("test")[:n]
    masks = boxes(n)
    results, shown = {}, [images[:12], images.masked_fill(masks, 0.0)[:12]]

    def enter(name: str, made: Tensor, seconds: float) -> None:
        error = ((made - images) / 2).square()[masks].mean()        # in units of [0, 1]
        read = (look(judge, to_uint8(made))[1] == labels).double().mean()
        results[name] = {"mean_squared_error": round(float(error), 4), "labels_read": round(float(read), 4),
                         "seconds": round(seconds, 1)}
        shown.append(made[:12])
        print(name, results[name], flush=True)

    enter("as they are", images, 0.0)
    shown.pop()
    wanted = typed["rows"].split(";") if "rows" in typed else list(ROWS)
    for name, row in {"biharmonic": None, **{name: ROWS[name] for name in wanted}}.items():
        start = time.perf_counter()
        made = torch.where(masks, biharmonic(images, masks), images) if row is None else \
            filled(family, images, masks, labels, known=known, **row)
        enter(name, made, time.perf_counter() - start)
    facts = {"digits": n, "label": "known" if known else "unknown", "results": results}
    (HERE / f"results{'_known' if known else ''}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (HERE / f"filled{'_known' if known else ''}.png").write_bytes(
        grid_png(torch.cat([row.clamp(-1, 1) for row in shown]), columns=12, scale=2))


if __name__ == "__main__":
    main()
