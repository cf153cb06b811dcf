"""Latent diffusion (Rombach et al. 2022): diffusion in the latents of a trained autoencoder.

Notable:
- Everything is `Diffusion`: any process, parametrisation, sampler and guide, and a U-Net or a transformer (DiT,
  Peebles and Xie 2023) as the denoiser. What noise is added to are latents, and samples are decoded at the end.
- The first stage, `model.first_stage=<run>`, is any run that encodes and decodes: a KL autoencoder, a VQ run (latents
  before quantisation; decoding quantises them) or a VAE. It is frozen, and kept in this run's checkpoint
  (`models/parts.py`), where the latents' mean and scale are, too.
- Samples are clamped to [-1, 1] as images only: latents have no such bounds.
"""

from typing import ClassVar

from aigc.models.diffusion import Diffusion


class LatentDiffusion(Diffusion):
    """Diffusion in the latents of a trained autoencoder; its recipe is `conf/model/latent_diffusion.yaml`.

    Raises:
        UserError: see `Diffusion`, or no first stage is named.
    """

    required: ClassVar[dict[str, str]] = {
        "first_stage": "train an autoencoder on the same data (python -m aigc.train model=autoencoder "
                       "hydra.run.dir=runs/first) and give model.first_stage=runs/first",
    }
