"""Restorers beside classical methods and beside doing nothing, on the same held-out images: a table and a picture.

python experiments/restoration/study.py --run <run folder> --methods nl_means,tv,wavelet --options noise.sigma=0.098
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf

from aigc.images.grids import save_grid, to_uint8
from aigc.scoring.scores.similarity import likeness
from aigc.scoring.target import open_data, open_target
from aigc.scoring.translation import restored
from aigc.scoring.translations import translations
from aigc.wording import silent

SHOWN = 8


def main() -> None:
    """Prints PSNR and SSIM of each way, with the standard error over images, and draws the first images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run of model=restorer or model=palette")
    parser.add_argument("--methods", default="", help="classical ones, comma-separated")
    parser.add_argument("--options", nargs="*", default=[], help="of the data's degradations: noise.sigma=0.098")
    parser.add_argument("--images", type=int, default=500, help="held-out images of test")
    parser.add_argument("--picture", type=Path, help="PNG of the first ones, each way a column")
    asked = parser.parse_args()
    target = open_target(asked.run, "last", torch.device("cpu"), batch_size=50, seed=0)
    assert target.family is not None and target.config is not None
    changes = {"options": OmegaConf.to_container(OmegaConf.from_dotlist(asked.options))} if asked.options else {}
    whole = OmegaConf.create({"batch_size": 50, "seed": 0, "against": None})
    if changes:
        changes["options"] = OmegaConf.merge(target.config.data.options, changes["options"])
    data = open_data(target, changes, whole, silent)
    ways = {"degraded": {"identity": True}, "run": {}}
    ways |= {name: {"by": partial(restored, name, {})} for name in asked.methods.split(",") if name}
    columns, clean = {}, torch.empty(0)
    print("| | PSNR, dB | SSIM |\n|---|---|---|")
    for name, how in ways.items():
        made, wanted = [], []
        for _, _, images, targets, _ in translations(target.family, data, "test", "a2b", asked.images, batch_size=50,
                                                     seed=0, **how):
            made.append(to_uint8(images))
            wanted.append(to_uint8(targets))
        columns[name], clean = torch.cat(made), torch.cat(wanted)
        scores = likeness(columns[name], clean, None)
        said = [f"{value.mean():.{digits}f} ± {value.std() / len(value) ** 0.5:.{digits}f}"
                for value, digits in ((scores["psnr"], 2), (scores["ssim"], 3))]
        print(f"| {name} | {said[0]} | {said[1]} |", flush=True)
    if asked.picture is not None:
        shown = torch.stack([*(column[:SHOWN] for column in columns.values()), clean[:SHOWN]], dim=1).flatten(0, 1)
        save_grid(shown, asked.picture, columns=len(columns) + 1, titles=[*columns, "clean"], scale=3)


if __name__ == "__main__":
    main()
