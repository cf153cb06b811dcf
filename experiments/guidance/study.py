"""An unconditional run of shapes, guided to captions by a CLIP with every sampler, and judged by the oracle.

    python experiments/guidance/study.py run=<diffusion run> clip=<CLIP run> [n=200] [sampler.steps=24 ...]

Half of the captions are of `test`, half of `heldout`: combinations that no training image shows. Prints a row a
sampler, and keeps the first 32 pictures of each in <sampler>.png.
"""

import sys
import time
from pathlib import Path

import torch

from aigc.data.scenes import Scenes, caption, named
from aigc.images.generating import sample_uint8
from aigc.images.grids import grid_png
from aigc.models.checkpoints import load_family
from aigc.models.guidance import guidance_asked
from aigc.scoring.networks.oracle import agreement, clear, shapes_oracle

HERE, SHOWN = Path(__file__).parent, 32
STEPS = {"ddim": 24, "ancestral": 24, "euler": 24, "heun": 12, "dpmpp_2m": 24}
SEED = 20261127


def asked(n: int) -> torch.Tensor:
    """Attributes `(n, 9)` of scenes, half of them held out of training."""
    halves = [Scenes(0, split).attributes(torch.arange(n // 2)) for split in ("test", "heldout")]
    return torch.stack(halves, dim=1).flatten(0, 1)


def main() -> None:
    """Draws and judges."""
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    family = load_family(typed.pop("run"), "last").requires_grad_(False)
    n, only = int(typed.pop("n", 200)), typed.pop("sampler", None)
    options = {name: float(value) for name, value in typed.items() if name.startswith("clip_")}
    wanted, oracle = asked(n), shapes_oracle()
    texts = [caption(row) for row in wanted]
    for sampler, steps in STEPS.items():
        if only not in (None, sampler):
            continue
        started = time.perf_counter()
        guidance = guidance_asked(family, {**typed, "text": texts}, n, run="the run")
        made = sample_uint8(family, n, seed=SEED, batch_size=50, guides=guidance, sampler=sampler, steps=steps,
                            **options)
        images = torch.stack([torch.from_numpy(image) for image in made]).permute(0, 3, 1, 2)
        seconds = (time.perf_counter() - started) / n
        found = agreement(oracle.read(images), named(wanted))
        row = [f"{found[name]:.3f}" for name in ("colour", "shape", "size", "all")]
        held = agreement(oracle.read(images[1::2]), named(wanted[1::2]))
        row += [f"{held['colour']:.3f}", f"{held['shape']:.3f}", f"{clear(oracle, images).float().mean():.3f}"]
        print(f"| {sampler}, {steps} steps | {' | '.join(row)} | {seconds:.2f} |", flush=True)
        (HERE / f"{sampler}.png").write_bytes(grid_png(images[:SHOWN], words=texts[:SHOWN]))


if __name__ == "__main__":
    main()
