"""Images of a trained family, one after the other, and files of them."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from aigc.errors import UserError
from aigc.grids import TONE, save_grid
from aigc.metrics.features import to_uint8
from aigc.models.family import Family
from aigc.noise import mix

GRID = 64  # images shown in grid.png


def sample_uint8(
    family: Family, n: int, *, seed: int, condition: Any = None, batch_size: int = 64, **options: Any
) -> Iterator[np.ndarray]:
    """Yields images `(h, w, c)` uint8, the k-th from seed mix(seed, k)."""
    with tqdm(total=n, unit=" images", disable=None) as bar:
        for start in range(0, n, batch_size):
            stop = min(n, start + batch_size)
            given = None if condition is None else condition[start:stop]
            seeds = [mix(seed, k) for k in range(start, stop)]
            made = family.sample(stop - start, condition=given, seeds=seeds, **options)
            bar.update(stop - start)
            yield from to_uint8(made).permute(0, 2, 3, 1).cpu().numpy()


def write(
    images: Iterator[np.ndarray], out: Path, form: str, n: int, *, prompts: Sequence[str] | None = None
) -> None:
    """Writes n images `(h, w, c)` as they come, so that an interruption loses none: PNGs or images.npy, and grid.png.

    With `prompts`, one an image, the grid has a row for each different one, and prompts.txt names every image's.

    Raises:
        UserError: the folder does not take them.
    """
    first = next(images)  # a wrong option fails here, before anything is written
    shown = torch.zeros(min(n, GRID), first.shape[-1], *first.shape[:2], dtype=torch.uint8)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if form == "npy":
            stack = np.lib.format.open_memmap(out / "images.npy", mode="w+", dtype=np.uint8, shape=(n, *first.shape))
        for k, image in enumerate(chain([first], images)):
            if k < GRID:
                shown[k] = torch.from_numpy(image).permute(2, 0, 1)
            if form == "npy":
                stack[k] = image
            else:
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                picture.save(out / f"{k:0{max(5, len(str(n - 1)))}}.png")
        if prompts is None:
            save_grid(shown, out / "grid.png")
        else:
            (out / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
            save_rows(shown, prompts[: len(shown)], out / "grid.png")
    except OSError as error:
        sentence = f"the images could not be written to '{out}' ({error.strerror}): choose another out="
        raise UserError(sentence) from error


def save_rows(images: torch.Tensor, prompts: Sequence[str], path: Path) -> None:
    """Writes images `(n, c, h, w)` uint8 as a grid with a row for each different prompt, which stands above it."""
    rows = {prompt: [k for k, own in enumerate(prompts) if own == prompt] for prompt in dict.fromkeys(prompts)}
    if len(rows) == 1:
        side = math.ceil(math.sqrt(len(images)))
        save_grid(images, path, columns=side, captions=[prompts[0], *[""] * (math.ceil(len(images) / side) - 1)])
        return
    columns = max(map(len, rows.values()))
    blank = torch.full_like(images[0], TONE)
    cells = [images[found[k]] if k < len(found) else blank for found in rows.values() for k in range(columns)]
    save_grid(torch.stack(cells), path, columns=columns, captions=list(rows))
