"""pix2pix (Isola et al. 2017): learns a translation from pairs.

Notable here:
- the generator is a U-Net with dropout in its coarsest doublings; the L1 loss does most of the work (equation 4)
- the discriminator judges patches of source and image together (equation 1), so it can reject a wrong translation
- any size: the generator pads by reflection and crops back; the averaged generator translates, in float32, without
  dropout, so a translation is always the same
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch, Translator
from aigc.models.options import Average, Patches, Schedule, group, grouped, option
from aigc.models.two_player import Adams, TwoPlayer
from aigc.networks.ema import EMA
from aigc.networks.patchgan import NORMS, PatchGAN
from aigc.networks.pix2pix_unet import UNetGenerator
from aigc.networks.resnet import UPSAMPLE, ResNetGenerator


@group()
class Network:
    """Of the generator."""

    kind: str = option("generator")                        # unet, or resnet as in CycleGAN
    width: int                                             # feature maps of its first layer
    halvings: int                                          # of its grid; a U-Net halves down to about a pixel
    dropout: float                                         # share of features dropped in coarse doublings (unet)
    dropout_layers: int                                    # how many of them (unet)
    blocks: int                                            # residual blocks (resnet)
    kernel: int                                            # first and last convolution (resnet)
    upsample: str                                          # resize: no checkerboards; transposed: as published


class Pix2Pix(TwoPlayer, Translator):
    """A generator that sees the source, and a discriminator that sees source and image.

    Raises:
        UserError: an option's value is unknown, or the loss needs a penalty that is not offered.
    """

    accepts: ClassVar[tuple[str, ...]] = ("paired",)
    directions: ClassVar[tuple[str, ...]] = ("a2b",)

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",
        network: Network,
        discriminator: Patches,                            # of source and image together
        init_std: float | None,                            # N(0, init_std) weights; None: torch's own
        loss: str,                                         # a name of losses.adversarial.LOSSES
        lambda_adversarial: float,                         # weight of the generator's adversarial loss
        lambda_l1: float,                                  # weight of L1 to the target
        augment: list[str],                                # DiffAugment policies for the discriminator, [] for none
        optimizer: Adams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((
            ("generator", network.kind, ("unet", "resnet")),
            ("upsample", network.upsample, UPSAMPLE),
            ("discriminator_norm", discriminator.norm, NORMS),
        ))
        if loss == "wasserstein":
            raise UserError("model.loss=wasserstein needs a penalty that pix2pix does not have: use nonsaturating")
        self.loss = adversarial_loss(loss)
        self.augment = DiffAugment(augment)
        shared: dict[str, Any] = {
            "halvings": network.halvings, "upsample": network.upsample, "init_std": init_std
        }
        self.generator: nn.Module = (
            UNetGenerator(
                channels, network.width, dropout=network.dropout, dropout_layers=network.dropout_layers, **shared
            )
            if network.kind == "unet"
            else ResNetGenerator(channels, network.width, blocks=network.blocks, kernel=network.kernel, **shared)
        )
        self.discriminator = PatchGAN(2 * channels, **vars(discriminator), init_std=init_std)
        self.ema = EMA(self.generator, **vars(average))

    def players(self) -> dict[str, list[nn.Module]]:
        """The discriminator, then the generator."""
        return {"discriminator": [self.discriminator], "generator": [self.generator]}

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Discriminator, then generator, on the same translations."""
        source, target = batch["source"], batch["target"]
        fake = self.generator(source)
        with self.turn("discriminator") as backward:
            loss, logs = self.discriminator_loss(source, target, fake.detach())
            backward(loss)
        with self.turn("generator") as backward:
            loss, more = self.generator_loss(source, target, fake)
            backward(loss)
        return logs | more

    def discriminator_loss(
        self, source: Tensor, target: Tensor, fake: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss and its parts, on images `(n, c, h, w)`; `fake` is detached."""
        transform = self.augment.draw(len(source), source.device)
        pairs = [transform(torch.cat([source, images], dim=1)) for images in (target, fake)]
        on_real, on_fake = self.discriminator(torch.cat(pairs)).chunk(2)
        loss = self.loss.discriminator(on_real, on_fake)
        logs = {"loss/discriminator": loss, "logits/real": on_real.mean(), "logits/fake": on_fake.mean()}
        return loss, {name: value.detach() for name, value in logs.items()}

    def generator_loss(self, source: Tensor, target: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss (equation 4) and its parts, on images `(n, c, h, w)`."""
        transform = self.augment.draw(len(source), source.device)
        on_fake = on_real = self.discriminator(transform(torch.cat([source, fake], dim=1)))
        if self.loss.relativistic:
            on_real = self.discriminator(transform(torch.cat([source, target], dim=1)))
        logs = {"loss/generator": self.loss.generator(on_real, on_fake), "loss/l1": F.l1_loss(fake, target)}
        loss = self.hparams.lambda_adversarial * logs["loss/generator"] + self.hparams.lambda_l1 * logs["loss/l1"]
        return loss, {name: value.detach() for name, value in logs.items()}

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged generator."""
        return [(self.ema, self.generator)]

    # ---- validation ----

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """L1 to the target on [-1, 1]."""
        return {"l1": F.l1_loss(self.translate(batch["source"]), batch["target"])}
