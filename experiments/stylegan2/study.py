"""What can be done with the styles of a trained run on MNIST: samples, truncation, mixing and projection, judged.

    python experiments/stylegan2/study.py <run folder> data.root=<folder with MNIST/raw>

The judge is that of experiments/first_look, trained once and kept in runs/first_look/judge.pt. Writes `results.json`,
`samples.png`, `mixing.png` and `projections.png` beside this file.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "first_look"))
import judge as J  # noqa: E402

from aigc.data.vision import Vision  # noqa: E402
from aigc.images.grids import save_grid, to_uint8  # noqa: E402
from aigc.models.checkpoints import load_family  # noqa: E402
from aigc.models.stylegan2 import StyleGAN2  # noqa: E402
from aigc.noise import SeededNoise, mix  # noqa: E402
from aigc.scoring.scores.frechet import frechet_distance  # noqa: E402

SEED = J.SEED


def samples(family: StyleGAN2, n: int = 2000, **options: float) -> tuple[Tensor, Tensor]:
    """uint8 images and their labels, each class as often."""
    labels = torch.arange(n) % 10
    made = [to_uint8(family.sample(len(p), condition=labels[p], seeds=[mix(SEED, int(k)) for k in p], **options))
            for p in torch.arange(n).split(250)]
    return torch.cat(made), labels


def codes(family: StyleGAN2, labels: Tensor, stream: int) -> Tensor:
    """w+ `(n, layers, style)` of fresh latents."""
    z = SeededNoise([mix(SEED, stream, k) for k in range(len(labels))])(family.hparams.latent)
    return family.averaged.styles(family.averaged.style(z, labels))


@torch.no_grad()
def main() -> None:
    """Judges one run."""
    run = sys.argv[1]
    root = next((word.split("=", 1)[1] for word in sys.argv[2:] if word.startswith("data.root=")), "data_cache")
    data = Vision("mnist", batch_size=64, root=root)
    data.prepare_data()
    data.setup()
    judge = J.trained(data.images("train"), data.labels("train"))
    test, test_labels = data.images("test"), data.labels("test")
    reference = J.moments(J.look(judge, data.images("train"))[0])
    chosen = torch.cat([(test_labels == k).nonzero()[:200, 0] for k in range(10)])
    floor = float(frechet_distance(*J.moments(J.look(judge, test[chosen])[0]), *reference))
    family: StyleGAN2 = load_family(run, "last")  # type: ignore[assignment]
    found: dict = {"samples": {}, "mixing": {}, "projection": {}}

    for psi in (1.0, 0.9, 0.8, 0.7, 0.5):
        made, labels = samples(family, psi=psi)
        features, seen = J.look(judge, made)
        over = float(frechet_distance(*J.moments(features), *reference)) / floor
        found["samples"][psi] = {"labels": (seen == labels).double().mean().item(), "over_floor": over}
        print("psi", psi, found["samples"][psi], flush=True)
    shown = torch.arange(10).repeat_interleave(10)
    made = family.sample(100, condition=shown, seeds=[mix(SEED, 7, k) for k in range(100)])
    save_grid(made, HERE / "samples.png", columns=10, scale=1)

    layers = family.averaged.synthesis.styles
    own_labels, donor_labels = torch.arange(200) % 10, (torch.arange(200) + 1 + torch.arange(200) // 10 % 9) % 10
    own, donor = codes(family, own_labels, 1), codes(family, donor_labels, 2)
    for start in range(layers + 1):                        # the donor's from this layer on, and in those before
        fine, coarse = (torch.cat([a[:, :start], b[:, start:]], 1) for a, b in ((own, donor), (donor, own)))
        seen = [J.look(judge, to_uint8(family.decode(w)))[1] for w in (fine, coarse)]
        found["mixing"][start] = {"fine: own label": (seen[0] == own_labels).double().mean().item(),
                                  "coarse: donor's label": (seen[1] == donor_labels).double().mean().item()}
        print("donor from layer", start, found["mixing"][start], flush=True)
    rows = [family.decode(own[:10])]
    for start in range(layers + 1):
        rows.append(family.decode(torch.cat([own[:10, :start], donor[:10, start:]], 1)))
    save_grid(torch.cat([*rows[1:]]), HERE / "mixing.png", columns=10, scale=1)

    picked = torch.cat([(test_labels == k).nonzero()[:2, 0] for k in range(10)])
    digits, truth = J.scaled(test[picked]), test_labels[picked]
    shown = [digits]
    for space in ("z", "w", "w+"):
        started = time.perf_counter()
        result = family.project(digits, space=space, condition=truth if space == "z" else None)
        seconds = time.perf_counter() - started
        for noise, maps in (("own noise", result.noise), ("const noise", "const")):
            again = family.decode(result.latents, space=space, noise=maps,
                                  **({"condition": truth} if space == "z" else {}))
            kept = int((J.look(judge, to_uint8(again))[1] == truth).sum())
            error = (again - digits).square().mean().item()
            found["projection"][f"{space}, {noise}"] = {"labels kept of 20": kept, "mse": error, "seconds": seconds}
            print(space, noise, found["projection"][f"{space}, {noise}"], flush=True)
            shown += [again] if noise == "own noise" else []
    save_grid(torch.cat(shown), HERE / "projections.png", columns=20, scale=1)
    (HERE / "results.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
