"""The one table of families and their smallest settings; a new family adds a row here, and every test of all has it.

Small enough for seconds, and every mechanism of the family is at work.
"""

from pathlib import Path
from typing import Any

_GAN = {"generator_widths": [16, 8, 8], "discriminator_widths": [8, 8], "latent": 8}
_DIFFUSION = {"network.width": 16, "network.vector": 16, "sampler.steps": 3, "sigma_images": 64}
_GRID = {"widths": [8, 8, 16], "blocks": [0, 1, 1], "warmup_images": 0}
_JUDGED = {"adversarial_start": 0.2, "discriminator_width": 4, "discriminator_layers": 1}
_SIDES = {"width": 4, "discriminator_width": 4, "discriminator_layers": 1}

SMALLEST: dict[str, dict[str, Any]] = {  # model=<name>: options of conf/model/<name>.yaml, dotted
    "gan": _GAN,
    "dcgan": _GAN,
    "r3gan": _GAN,
    "biggan": {"chunk": 4, "shared": 4, "generator_widths": [16, 8, 8], "discriminator_widths": [8, 8],
               "generator_every": 2, "accumulate": 2, "orthogonality": 1e-4},
    "stylegan2": {"latent": 8, "style": 8, "embedding": 8, "generator_widths": [8, 8],
                  "generator_convolutions": [1, 1], "discriminator_widths": [8, 8], "discriminator_group": 2,
                  "mixing": 0.5, "path": 2.0, "path_every": 2, "r1_every": 2, "augment_target": 0.6,
                  "augment_images": 64},
    "vae": {"widths": [8], "hidden": 16, "latent": 4, "mixture_images": 256},
    "diffusion": _DIFFUSION,
    "ddpm": _DIFFUSION,
    "edm": _DIFFUSION,
    "dit": {"dit.width": 16, "dit.layers": 2, "dit.heads": 2, "sampler.steps": 3, "sigma_images": 64},
    "latent_diffusion": {"latent_network.width": 16, "network.vector": 16, "sampler.steps": 3, "sigma_images": 64},
    "imagen_sr": {**_DIFFUSION, "network.blocks": 1, "crop": 16},
    "imagen": {**_DIFFUSION, "factors": [2], "shares": [1, 1], "upscalers": [{}], "upscaler.network.blocks": 1,
               "upscaler.crop": 16, "upscaler.sampler.steps": 2},
    "few_step": {**_DIFFUSION, "methods.shortcut.base": 8},
    "projected_gan": {"latent": 8, "generator_widths": [12, 8, 8], "embedding": 4, "mixed": 4,
                      "discriminator_widths": [4, 8]},
    "cyclegan": {**_SIDES, "blocks": 1, "pool": 5},
    "cut": {**_SIDES, "blocks": 1, "nce_layers": [0, 4, 10], "nce_features": 8, "nce_patches": 16},
    "pix2pix": {**_SIDES, "halvings": 3},
    "restorer": {"network": "dncnn", "dncnn.width": 8, "dncnn.depth": 3, "unet.width": 8, "lambda_adversarial": 0.1,
                 "discriminator_width": 4, "discriminator_layers": 1, "warmup_images": 0},
    "palette": {"network.width": 16, "network.vector": 16, "sampler.steps": 2, "sigma_images": 64},
    "vqvae": {**_GRID, "codebook": 16, "latent": 4},
    "vqgan": {**_GRID, **_JUDGED, "codebook": 16, "latent": 4},
    "autoencoder": {**_GRID, **_JUDGED, "adversarial": 0.5, "latent": 4},
    "prior": {"width": 16, "layers": 2, "heads": 2, "warmup_images": 0},
    "clip": {"resnet.widths": [8, 16], "resnet.blocks": [1, 0], "resnet.heads": 2, "vit.width": 16, "vit.layers": 1,
             "vit.heads": 2, "text.width": 16, "text.layers": 1, "text.heads": 2, "embedding": 16,
             "warmup_images": 0},
    "classifier": {"network.width": 8, "network.vector": 16, "network.head": 8, "levels": [0.5, 2], "warmup_images": 0,
                   "sigma_images": 64},
    "dalle": {"width": 16, "layers": 2, "heads": 2, "warmup_images": 0, "text.tokens": 6},
}
STAGES = {  # options that are runs of another family, and which
    "latent_diffusion": ("first_stage", "autoencoder"),
    "prior": ("tokenizer", "vqvae"),
    "dalle": ("tokenizer", "vqvae"),
}
READER = ["model.text.width=16", "model.text.layers=1", "model.text.heads=2"]   # of condition=text


def words(name: str) -> list[str]:
    """The overrides that choose a family at its smallest."""
    return [f"model={name}", *(f"model.{key}={value}".replace(" ", "") for key, value in SMALLEST[name].items())]


def staged(name: str, folder: Path, *overrides: str) -> list[str]:
    """The overrides of a family at its smallest, its first stage, if it needs one, trained in `folder` with these."""
    if name not in STAGES:
        return words(name)
    from aigc.training.fit import fit

    from .conftest import compose_train

    option, family = STAGES[name]
    if not (folder / "summary.json").exists():
        fit(compose_train(*words(family), *overrides, "condition=none", "metrics=none", "~callbacks.samples",
                          common=False), folder)
    return [*words(name), f"model.{option}={folder}"]
