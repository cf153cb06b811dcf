"""One of two processes that train one case after the other, met over gloo: `python -m tests.ranks <folder> <rank>`.

Each case is a run folder `<folder>/<case>` with `rank0.json` and `rank1.json` in it (tests/rank_report.py).
"""

import json
import os
import sys
from pathlib import Path

from .families import READER, STAGES, words

SCORED = ["metrics=classifier", "metrics.num_samples=24", "metrics.every_images=128", "metrics.validation_images=33",
          "metrics.num_reals=64", "metrics.second=null", "metrics.kd_subset_size=16", "metrics.batch_size=8",
          "callbacks.samples.n=4"]
LOSSES = ["metrics=losses", "metrics.every_images=128", "metrics.validation_images=33", "metrics.batch_size=8",
          "callbacks.samples.n=4"]
SMALL = ["data.train=64", "data.validation=40", "data.test=8", "data.size=16"]
SHAPES = ["data=shapes", *SMALL, "data.heldout=8"]
TEXT = [*SHAPES, "condition=text", *READER, *LOSSES]
TRANSLATION = ["data=shapes_unpaired", *SMALL, *LOSSES, "batch_size=16"]
FAMILIES = {  # name of a case: (family, its data, condition and scores); one line a family
    "gan": ("gan", "condition=label", *SCORED),
    "gan_text": ("gan", *TEXT),
    "dcgan": ("dcgan", *SCORED),
    "r3gan": ("r3gan", "condition=label", *SCORED),
    "biggan": ("biggan", "condition=label", *SCORED),
    "biggan_text": ("biggan", *TEXT),
    "stylegan2": ("stylegan2", "condition=label", *SCORED),
    "stylegan2_text": ("stylegan2", *TEXT),
    "projected_gan": ("projected_gan", "condition=label", *LOSSES),
    "vae": ("vae", "condition=label", *SCORED),
    "flow": ("diffusion", "condition=label", *SCORED),
    "flow_text": ("diffusion", *TEXT),
    "ddpm": ("ddpm", *SCORED),
    "edm": ("edm", *SCORED),
    "dit": ("dit", "condition=label", *SCORED),
    "latent": ("latent_diffusion", "condition=label", *SCORED),
    "imagen_sr": ("imagen_sr", "condition=label", *SCORED),
    "imagen": ("imagen", "condition=label", *SCORED),
    "few_step": ("few_step", "condition=label", *SCORED),
    "few_step_consistency": ("few_step", "model.method=consistency", *LOSSES),
    "few_step_meanflow": ("few_step", "condition=label", "model.method=meanflow", *LOSSES),
    "cyclegan": ("cyclegan", *TRANSLATION),
    "cut": ("cut", *TRANSLATION),
    "vqvae": ("vqvae", *SCORED),
    "vqvae_gradient": ("vqvae", "model.quantiser=gradient", *LOSSES),
    "vqgan": ("vqgan", *SCORED),
    "autoencoder": ("autoencoder", *SCORED),
    "pix2pix": ("pix2pix", *TRANSLATION, "data=shapes_paired"),
    "prior": ("prior", "condition=label", *SCORED),
    "clip": ("clip", *TEXT),
    "dalle": ("dalle", *SHAPES, *LOSSES),
    "classifier": ("classifier", *LOSSES),
}
CAPTIONED = ("dalle",)                                     # learn from captions alone, and so does what they stand on
BF16 = ("gan", "gan_text", "vae", "flow", "cyclegan", "clip")      # also in it: each way to optimize, and captions
STEPS = 8                                                  # of 2 x 16 images


def stage_of(family: str) -> str:
    """The folder of the run that a family of STAGES stands on."""
    return STAGES[family][1] + ("_shapes" if family in CAPTIONED else "")


def cases() -> dict[str, list[str]]:
    """Every family, those of BF16 in that precision too, and what else two processes do, by name."""
    made = {}
    for name, (family, *more) in FAMILIES.items():
        chosen = {w.split("=")[0]: w for w in (*words(family), *more)}.values()  # the last word on an option counts
        for precision in ("32-true", *(["bf16-mixed"] if name in BF16 else [])):
            steady = "model.decay_from=1"                  # rates that do not depend on the budget
            made[f"{name}-{precision}"] = [*chosen, f"trainer.precision={precision}", steady]
    made["flow-sharded"] = [*made["flow-32-true"], "trainer.strategy=fsdp"]
    made["flow-sharded-bf16"] = [*made["flow-bf16-mixed"], "trainer.strategy=fsdp"]
    for name in ("dit", "latent"):
        made[f"{name}-sharded"] = [*made[f"{name}-32-true"], "trainer.strategy=fsdp"]
    return made


def work(folder: Path, rank: int) -> None:
    import torch

    from aigc.training.fit import fit

    from .conftest import compose_train

    torch.set_num_threads(1)

    def train(name: str, where: str, *more: str, resumed: bool = False) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # Lightning takes them away
        told = ["+callbacks.report._target_=tests.rank_report.RankReport"]
        told += [f"+callbacks.report.folder={folder / where}"]
        budget = [f"budget.images={STEPS * 32}", "budget.minutes=null", "trainer.devices=2"]
        family = FAMILIES[name.split("-")[0]][0]
        stage = [f"model.{STAGES[family][0]}={folder / stage_of(family)}"] if family in STAGES else []
        fit(compose_train(*cases()[name], *budget, *stage, *told, *more), folder / where, resumed=resumed)

    for name in cases():
        train(name, name)
    for name in ("flow-sharded", "latent-sharded", "gan-32-true"):    # stopped halfway and resumed by the same two
        train(name, f"{name}-resumed", f"budget.images={STEPS * 16}", "metrics.every_images=128")
        train(name, f"{name}-resumed", resumed=True)
    (folder / f"done{rank}").write_text(json.dumps(list(cases())))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
