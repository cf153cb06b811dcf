"""Autoencoders as first stages (Esser et al. 2021, Rombach et al. 2022): images to a small grid of latents, and back.

Notable here:
- encoder, bottleneck and decoder. The bottleneck of this file is Rombach's: a Gaussian under a KL term so small that
  it only keeps latents near the origin; codes instead are models/vqgan.py
- the loss is L1 or L2, optionally a perceptual distance, and optionally a discriminator of patches, whose weight is
  such that it pulls as hard as the reconstruction at the decoder's last layer (Esser et al. 2021, equation 7)
- the discriminator starts after a share of training, and its pull rises from zero: started cold it spoils
  reconstructions
- it makes no samples: it is shown and scored by its reconstructions of held-out images
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adaptive_weight, adversarial_loss
from aigc.losses.likelihood import kl_to_standard_normal
from aigc.losses.perceptual import Perceptual
from aigc.models.family import Batch
from aigc.models.options import Average, Patches, Schedule, group, grouped, option
from aigc.models.two_player import ClippedAdams, TwoPlayer
from aigc.networks.autoencoder import Decoder, Encoder
from aigc.networks.ema import EMA
from aigc.networks.patchgan import NORMS, PatchGAN
from aigc.networks.quantisers import Passed, straight_through

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}


@group()
class Grid:
    """Of encoder and decoder."""

    widths: list[int]                                      # feature maps of each level, the first at full size
    blocks: list[int]                                      # residual blocks of each level
    attention: int = option("attention_heads")             # at the coarsest level, 0: none
    dimension: int = option("latent")                      # of a place of the grid


@group()
class Losses:
    """Of the reconstruction."""

    distance: str = option("reconstruction")               # l1 or l2, means over pixels and channels
    perceptual: dict[str, Any]                             # `weight` of a perceptual distance (0: none), and of which
                                                           # network, as losses.perceptual.Perceptual has it


@group(prefix="adversarial_")
class Adversary:
    """Of the discriminator's part."""

    weight: float = option("adversarial")                  # of its loss beside the reconstruction's, 0: none
    adaptive: bool                                         # times the ratio of their gradients at the last layer
    loss: str                                              # a name of losses.adversarial.LOSSES
    start: float                                           # share of the budget after which it starts
    warmup: float                                          # share of the budget over which its weight then rises


class Gaussian(nn.Module):
    """q(z | image) = N(mean, deviation^2) at every place of the grid, under a small KL term."""

    def __init__(self, dimension: int, *, weight: float):
        super().__init__()
        self.inputs, self.dimension, self.weight = 2 * dimension, dimension, weight

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations, both `(n, d, h, w)`, of the encoder's output `(n, 2 d, h, w)`."""
        mean, log_deviation = z.float().chunk(2, dim=1)
        return mean, log_deviation.clamp(-15, 10).exp()

    def project(self, z: Tensor) -> Tensor:
        """The means."""
        return self.moments(z)[0]

    def kl(self, z: Tensor) -> Tensor:
        """KL to N(0, 1) in nats per image, `(n,)`."""
        mean, deviation = self.moments(z)
        return kl_to_standard_normal(mean.flatten(1), deviation.flatten(1))

    def forward(self, z: Tensor) -> Passed:
        """A sample; the cost is the weighted KL."""
        (mean, deviation), kl = self.moments(z), self.kl(z).mean()
        latents = torch.addcmul(mean, deviation, torch.randn_like(mean))
        return Passed(latents, self.weight * kl, {"kl": kl.detach()}, None)

    def snap(self, latents: Tensor) -> tuple[Tensor, None]:
        """Latents as they are: there are no codes."""
        return latents, None


class Stage(nn.Module):
    """Encoder, bottleneck and decoder: everything that is averaged and that a later stage needs."""

    def __init__(self, channels: int, grid: Grid, bottleneck: Any):
        super().__init__()
        shape: dict[str, Any] = {"widths": grid.widths, "blocks": grid.blocks, "heads": grid.attention}
        self.encoder = Encoder(channels, bottleneck.inputs, **shape)
        self.bottleneck = bottleneck
        self.decoder = Decoder(channels, bottleneck.dimension, **shape)

    def forward(self, images: Tensor) -> tuple[Tensor, Passed]:
        """Reconstructions `(n, c, h, w)`, float32, of images in [-1, 1], and what the bottleneck tells."""
        passed = self.bottleneck(self.encoder(images))
        return self.decoder(passed.latents, images.shape[2:]), passed


class FirstStage(TwoPlayer):
    """An encoder, a bottleneck that a family chooses and a decoder, with an optional discriminator in turns."""

    conditions: ClassVar[tuple[str, ...]] = ("none",)      # later stages know the condition, as in the papers
    reconstructs: ClassVar[bool] = True
    lowered: bool = False                                  # encode in the precision of whoever trains on its latents

    def build(
        self, channels: int, bottleneck: nn.Module, grid: Grid, losses: Losses, adversary: Adversary,
        discriminator: Patches, average: Average,
    ) -> None:
        """The networks, from the groups of options that all first stages share.

        Raises:
            UserError: an option's value is unknown, or two of them contradict each other.
        """
        check_choices((
            ("reconstruction", losses.distance, tuple(DISTANCES)),
            ("discriminator_norm", discriminator.norm, NORMS),
        ))
        if len(grid.widths) != len(grid.blocks):
            raise UserError(f"model.widths={grid.widths} and model.blocks={grid.blocks} differ in length: give both "
                            "an entry for each level")
        if adversary.loss == "wasserstein":
            raise UserError("model.adversarial_loss=wasserstein needs a penalty that autoencoders do not have: use "
                            "hinge")
        self.distance, self.loss = DISTANCES[losses.distance], adversarial_loss(adversary.loss)
        self.network = Stage(channels, grid, bottleneck)
        self.ema = EMA(self.network, **vars(average))
        self.discriminator = PatchGAN(channels, **vars(discriminator)) if adversary.weight else None
        options = dict(losses.perceptual)
        weight = options.pop("weight")
        self.perceptual = Perceptual(**options) if weight else None

    def players(self) -> dict[str, list[nn.Module]]:
        """The discriminator, where there is one, then the autoencoder."""
        generator: dict[str, list[nn.Module]] = {"generator": [self.network]}
        return generator if self.discriminator is None else {"discriminator": [self.discriminator], **generator}

    def judges(self) -> list[nn.Module]:
        """The discriminator and the network of the perceptual distance."""
        return [*super().judges(), *([] if self.perceptual is None else [self.perceptual])]

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Discriminator, once it has started, then autoencoder, on the same reconstructions."""
        images = batch["image"]
        logs: dict[str, Tensor] = {}
        made, passed = self.network(images)
        pull = self.pull()
        if pull is not None:
            with self.turn("discriminator") as backward:
                loss, logs = self.discriminator_loss(images, made.detach())
                backward(loss)
        with self.turn("generator") as backward:
            loss, more = self.autoencoder_loss(images, made, passed, pull)
            backward(loss)
        return logs | more

    def pull(self) -> float | None:
        """The adversarial weight now, before it is adapted: rises from 0 once it starts; None before, or without."""
        if self.discriminator is None or self.progress.fraction < self.hparams.adversarial_start:
            return None
        since, warmup = self.progress.fraction - self.hparams.adversarial_start, self.hparams.adversarial_warmup
        return self.hparams.adversarial * (min(1.0, since / warmup) if warmup else 1.0)

    def discriminator_loss(self, images: Tensor, made: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss and its parts, on images and reconstructions `(n, c, h, w)`, these detached."""
        assert self.discriminator is not None
        on_real, on_fake = self.discriminator(torch.cat([images, made])).chunk(2)
        loss = self.loss.discriminator(on_real, on_fake)
        logs = {"loss/discriminator": loss, "logits/real": on_real.mean(), "logits/fake": on_fake.mean()}
        return loss, {name: value.detach() for name, value in logs.items()}

    def autoencoder_loss(
        self, images: Tensor, made: Tensor, passed: Passed, pull: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, the bottleneck's cost and, weighted by `pull`, the adversarial loss; and their parts."""
        reconstruction = self.distance(made, images)
        logs = {f"loss/{self.hparams.reconstruction}": reconstruction, **passed.logs}
        if self.perceptual is not None:
            logs["loss/perceptual"] = self.perceptual(made, images).mean()
            reconstruction = reconstruction + self.hparams.perceptual["weight"] * logs["loss/perceptual"]
        loss = reconstruction + passed.cost
        if pull is not None:
            assert self.discriminator is not None
            on_fake = on_real = self.discriminator(made)
            if self.loss.relativistic:
                on_real = self.discriminator(images)
            logs["loss/generator"] = adversarial = self.loss.generator(on_real, on_fake)
            weight: Tensor | float = 1.0
            if self.hparams.adversarial_adaptive:
                logs["weight/adversarial"] = weight = adaptive_weight(
                    reconstruction, adversarial, self.network.decoder.last.weight
                )
            loss = loss + pull * weight * adversarial
        return loss, {name: value.detach() for name, value in logs.items()}

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged autoencoder."""
        return [(self.ema, self.network)]

    # ---- evaluation, always with the averaged weights, in float32 ----

    @property
    def averaged(self) -> Stage:
        """The autoencoder that everything outside training uses."""
        return self.ema.network  # type: ignore[return-value]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents `(n, d, h / f, w / f)`, before quantisation, of images `(n, c, h, w)` in [-1, 1] of any size.

        In float32, or with `lowered` in the precision around it.
        """
        with nullcontext() if self.lowered else torch.autocast(self.device.type, enabled=False):
            network = self.averaged
            return network.bottleneck.project(network.encoder(images.to(self.device, torch.float32)))

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of latents `(n, d, h / f, w / f)`, which are quantised first.

        Latents of the family's own image size give images of exactly this size. Gradients are recorded where the
        latents ask for them, straight through the quantisation.
        """
        recorded = torch.is_grad_enabled() and latents.requires_grad
        with torch.set_grad_enabled(recorded), torch.autocast(self.device.type, enabled=False):
            network, size = self.averaged, tuple(self.hparams.size)
            latents = latents.to(self.device, torch.float32)
            quantised = network.bottleneck.snap(latents)[0]
            if recorded:
                quantised = straight_through(latents, quantised)
            own = tuple(-(-side // network.encoder.multiple) for side in size) == tuple(latents.shape[2:])
            return network.decoder(quantised, size if own else None).clamp(-1, 1)

    @torch.no_grad()
    def fakes(self, batch: Batch, *, seeds: Any = None) -> Tensor:
        """Reconstructions of a batch's images, `(n, c, h, w)` in [-1, 1]; nothing in them is random."""
        images = self.reals(batch)
        return self.decode(self.encode(images))[:, :, : images.shape[2], : images.shape[3]]

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstructions, each beside its input: `(n, c, h, 2 w)`."""
        images = batch["image"]
        return {"reconstructions": torch.cat([images, self.fakes(batch).to(images.device)], dim=3)}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Distances between held-out images and their reconstructions on [-1, 1]."""
        images = batch["image"]
        made = self.fakes(batch)
        return {"l1": F.l1_loss(made, images), "l2": F.mse_loss(made, images)}


class Autoencoder(FirstStage):
    """A KL autoencoder (Rombach et al. 2022).

    Raises:
        UserError: an option's value is unknown, or two of them contradict each other.
    """

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",
        grid: Grid,
        quantiser: str,                                    # kl
        kl_weight: float,                                  # of KL in nats beside the distance summed over pixels
        losses: Losses,
        adversary: Adversary,
        discriminator: Patches,
        optimizer: ClippedAdams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        if quantiser != "kl":
            raise UserError(f"model.quantiser={quantiser} is not this family's, whose latents have no codes: choose "
                            "model=vqgan or model=vqvae, or set model.quantiser=kl")
        bottleneck = Gaussian(grid.dimension, weight=kl_weight / (channels * size[0] * size[1]))
        self.build(channels, bottleneck, grid, losses, adversary, discriminator, average)

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Distances to the reconstructions, and KL in nats per image."""
        network = self.averaged
        with torch.autocast(self.device.type, enabled=False):
            kl = network.bottleneck.kl(network.encoder(batch["image"])).mean()
        return {**super().validation_step(batch, batch_idx), "kl": kl}
