"""Palette (Saharia et al. 2022): restoration by diffusion that also sees the degraded picture.

Notable:
- The U-Net sees the degraded picture joined to the noisy one over channels, at every step (section 3). It draws one of
  the pictures that may lie behind, not their mean: more detail than a restorer, less PSNR.
- With `masks` it is also told which pixels are lost.
- Everything else is `Diffusion`: processes, samplers, guides, the averaged weights.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc.diffusion.schedules import evenly, stratified
from aigc.errors import UserError
from aigc.models.denoisers import Beside, ConditionalDenoiser
from aigc.models.diffusion import Diffusion
from aigc.models.family import Batch, Family, Translator
from aigc.models.options import grouped_over
from aigc.models.restoring import Restores
from aigc.noise import SeededNoise, mix


class Palette(Diffusion, Restores, Translator):
    """Diffusion from degraded pictures to clean ones; the recipe's numbers are in `conf/model/palette.yaml`.

    Raises:
        UserError: see `Diffusion`.
    """

    accepts: ClassVar[tuple[str, ...]] = ("paired",)
    conditions: ClassVar[tuple[str, ...]] = ("none",)
    directions: ClassVar[tuple[str, ...]] = ("a2b",)
    parts: ClassVar[dict[str, tuple[str, ...]]] = {}
    sample: Any = Family.sample                            # there is nothing to restore in noise,
    denoise: Any = None                                    # and no expected picture without a degraded one

    @grouped_over(Diffusion)
    def __init__(
        self,
        channels: int,                      # image channels
        size: Sequence[int],                # (height, width) of the images
        *,
        masks: bool,                        # is told which pixels are lost
        **rest: Any,                        # what `Diffusion` takes
    ):
        for name, only in (("denoiser", "unet"), ("first_stage", None)):
            if rest.get(name) != only:
                raise UserError(f"model.{name}={rest.get(name)} has no place in palette, which restores pixels by a "
                                "U-Net: leave it out")
        super().__init__(channels, size, **{**rest, "network": {**rest["network"], "joined": channels + masks}})

    def told(self, denoiser: ConditionalDenoiser) -> Beside:
        """The denoiser, which also sees the degraded picture."""
        return Beside(denoiser)

    def looked_at(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """What the network sees of degraded pictures, of about unit variance."""
        return self.seen(images, masks) / self.sigma_data()

    def looking(self, network: nn.Module, batch: Batch) -> Any:
        """The network as it looks at the degraded pictures of a batch."""
        return partial(network, picture=self.looked_at(batch["source"], self.masks_of(batch)))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One denoising step; `loss` is the weighted squared error of the prediction."""
        images, n = batch["target"], len(batch["target"])
        self.measure(images)
        loss = self.errors(self.looking(self.network, batch), images, None, u=stratified(n, images.device),
                           noise=torch.randn_like(images))
        return {"loss": loss.mean()}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The averaged network's loss; every image has its own fixed time and noise, so that scores compare."""
        images, index = batch["target"], batch["index"]
        noise = SeededNoise([mix(int(i)) for i in index], images.device)(*images.shape[1:])
        return {"loss": self.errors(self.looking(self.ema, batch), images, None, u=evenly(index), noise=noise).mean()}

    @torch.inference_mode(False)  # guides may record gradients
    @torch.no_grad()
    def restore(
        self, images: Tensor, *, masks: Tensor | None = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Pictures `(n, c, h, w)` in [-1, 1] that may lie behind degraded ones of any size, from the averaged weights.

        `masks` `(n, 1, h, w)` are 1 where pixels are lost; options are those of `Diffusion.sample`. Picture k depends
        on its degraded picture, `seeds[k]` and the options alone.

        Raises:
            UserError: an unknown sampler, guide or option; masks are missing, or there is no place for them.
        """
        self.check_masks(masks)
        settings, seeds = self.settings(options), self.seeds_or_fresh(len(images), seeds)
        images = images.to(self.device, torch.float32).clone()
        return self.drawn(images.shape[1:], seeds, None, settings, self.looked_at(images, masks))
