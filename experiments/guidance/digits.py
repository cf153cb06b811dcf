"""An unconditional run of MNIST, guided to labels by a classifier at several scales, and read by first_look's judge.

    python experiments/guidance/digits.py run=<diffusion run> classifier=<run> data.root=<MNIST's folder> [n=500]

The judge is a network that shares nothing with the classifier that guides; it is trained once, as first_look trains
it, and kept in runs/first_look/judge.pt. Prints a row a scale, and keeps pictures of the last one in digits.png.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "first_look"))
from judge import look, moments, trained

from aigc.data.vision import Vision
from aigc.images.generating import sample_uint8
from aigc.images.grids import grid_png
from aigc.models.checkpoints import load_family
from aigc.models.guidance import guidance_asked
from aigc.scoring.scores.frechet import frechet_distance

SEED, SCALES = 20261127, (0.0, 1.0, 3.0, 5.0, 10.0)


def main() -> None:
    """Draws and judges."""
    typed = dict(word.split("=", 1) for word in sys.argv[1:])
    data = Vision("mnist", batch_size=64, root=typed.pop("data.root", "data_cache"))
    data.prepare_data()
    data.setup()
    judge = trained(data.images("train"), data.labels("train"))
    family, n = load_family(typed.pop("run"), "last").requires_grad_(False), int(typed.pop("n", 500))
    reference = moments(look(judge, data.images("train")[:20_000])[0])
    floor = float(frechet_distance(*moments(look(judge, data.images("test")[:n])[0]), *reference))
    for scale in SCALES:
        guidance = guidance_asked(family, {**typed, "classifier_guidance": scale}, n, run="the run")
        made = sample_uint8(family, n, seed=SEED, batch_size=100, guides=guidance)
        images = torch.stack([torch.from_numpy(image) for image in made]).permute(0, 3, 1, 2)
        features, seen = look(judge, images)
        right = (seen == torch.arange(n) % 10).double().mean().item()
        ratio = float(frechet_distance(*moments(features), *reference)) / floor
        print(f"| {scale:g} | {right:.3f} | {ratio:.2f} |", flush=True)
        (Path(__file__).parent / "digits.png").write_bytes(grid_png(images[:60], columns=10))


if __name__ == "__main__":
    main()
