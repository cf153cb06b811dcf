"""A generator of images from noise against one discriminator: what such families share besides networks and losses.

Notable here:
- samples come from the averaged generator in float32, image k from its own seed and condition
- truncation is the family's own (`latents`); standing statistics are measured over latents that are truncated alike
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc.conditions import as_tensor, condition_for
from aigc.errors import UserError
from aigc.models.family import Batch
from aigc.models.two_player import TwoPlayer
from aigc.networks.batch_norm import standing_statistics
from aigc.networks.ema import EMA
from aigc.noise import SeededNoise

MEASURED = 64                                              # images in a batch of standing statistics


class FromNoise(TwoPlayer):
    """A family with a generator `(z, labels) -> images`, a discriminator `(images, labels) -> logits`, and an average.

    Both networks have an `encoder` of conditions, or None; `generator.latent` is the length of z.
    """

    generator: Any                                         # modules of the family's own
    discriminator: Any
    ema: EMA                                               # of the generator
    sampling_options: ClassVar[tuple[str, ...]] = ("truncation", "standing_statistics")

    def players(self) -> dict[str, list[nn.Module]]:
        """The discriminator, then the generator."""
        return {"discriminator": [self.discriminator], "generator": [self.generator]}

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged generator."""
        return [(self.ema, self.generator)]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The mean logit on held-out images: far below `logits/real`, the discriminator has memorised its images."""
        with torch.no_grad():
            labels = as_tensor(self.condition_of(batch), self.discriminator.encoder)
            return {"logits/held_out": self.discriminator(batch["image"], labels).mean()}

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of the averaged generator; labels are random where `condition` is None.

        Options: `truncation` (positive; latents from a normal cut off at +-truncation, Brock et al. 2019: smaller is
        more typical, None is the whole normal); `standing_statistics` (images; batch-norm statistics are recomputed
        over this many images of the averaged generator, Brock et al. 2019, instead of copied from training).

        Raises:
            UserError: an option is unknown or out of range, or the labels are.
        """
        self.check_options(options, self.sampling_options)
        truncation, measured = options.get("truncation"), options.get("standing_statistics")
        seeds = self.seeds_or_fresh(n, seeds)
        labels = self.conditions_of(condition, seeds)
        z = self.latents(seeds, truncation)
        with torch.autocast(self.device.type, enabled=False):
            generator = self.with_standing_statistics(measured, truncation) if measured else self.ema.network
            return generator(*self.inputs(z.to(self.device), labels, seeds))

    def latents(self, seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        """`z` of these seeds, `(n, latent)`, each from its own seed."""
        return SeededNoise(seeds)(self.generator.latent)

    def inputs(self, z: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> tuple[Any, ...]:
        """What the generator is given: `z` `(n, latent)` and conditions; `seeds` are for one that draws more."""
        return z, labels

    def conditions_of(self, condition: Any, seeds: Sequence[int]) -> Tensor | None:
        """The requested conditions, checked, on this device."""
        labels = condition_for(
            condition, kind=self.condition, classes=self.hparams.classes, seeds=seeds,
            encoder=self.generator.encoder,
        )
        return None if labels is None else labels.to(self.device)

    def with_standing_statistics(self, images: int, truncation: float | None = None) -> nn.Module:
        """A copy of the averaged generator with batch-norm statistics over `images` images of fixed seeds.

        Raises:
            UserError: the model was trained on texts and keeps none to measure with.
        """
        if self.condition == "text":
            raise UserError("standing_statistics needs texts, which the model does not hold: leave it out")

        def drawn(seeds: range) -> tuple[Any, ...]:
            return self.inputs(self.latents(seeds, truncation).to(self.device), self.conditions_of(None, seeds), seeds)

        batches = (drawn(range(start, start + MEASURED)) for start in range(0, images, MEASURED))
        return standing_statistics(self.ema.network, batches)
