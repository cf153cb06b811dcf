"""Restoration by a network that was shown pairs: a degraded picture, and the picture itself.

Notable:
- DnCNN (Zhang et al. 2017): the network tells what is wrong, and the restored picture is what remains (equation 1).
  One network for a range of noise levels, which it is not told: blind.
- Or a U-Net, which sees further at the same cost.
- L2 as the paper, which PSNR wants, or L1; a discriminator of patches beside it (Ledig et al. 2017) wants detail.
- With `masks` the network is told which pixels are lost.
- What degraded the pictures is the data's own affair (`data=degraded`, or any pairs): restoring, deblurring, enlarging
  and colouring are one family.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss
from aigc.models.family import Batch, Translator
from aigc.models.options import Average, Patches, Schedule, grouped
from aigc.models.restoring import Restores
from aigc.models.two_player import Adams, TwoPlayer
from aigc.networks.dncnn import DnCNN
from aigc.networks.ema import EMA
from aigc.networks.patchgan import NORMS, PatchGAN
from aigc.networks.unet import UNet

DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}


class Residual(nn.Module):
    """A network that tells what is wrong with a picture; the result is the rest."""

    def __init__(self, kind: str, channels: int, *, masks: bool, residual: bool, options: dict[str, Any]):
        super().__init__()
        self.channels, self.residual = channels, residual
        self.network: nn.Module = (
            DnCNN(channels + masks, channels, **options) if kind == "dncnn"
            else UNet(channels, **options, joined=int(masks))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pictures `(n, channels [+ 1 of the mask], h, w)` to restored ones `(n, channels, h, w)`, float32."""
        clock = (x.new_zeros(len(x)),) if isinstance(self.network, UNet) else ()
        made = self.network(x, *clock).float()
        return x[:, : self.channels] - made if self.residual else made


class Restorer(TwoPlayer, Restores, Translator):
    """A network from degraded pictures to clean ones; the recipe's numbers are in `conf/model/restorer.yaml`.

    Raises:
        UserError: an option's value is unknown, or the adversarial loss needs a penalty that is not offered.
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
        network: str,                                      # dncnn | unet
        dncnn: dict[str, Any],                             # arguments of `DnCNN`
        unet: dict[str, Any],                              # arguments of `UNet`
        residual: bool,                                    # tells what is wrong, not what is right
        masks: bool,                                       # is told which pixels are lost
        loss: str,                                         # l1 | l2
        lambda_adversarial: float,                         # weight of the adversarial loss; 0: no discriminator
        adversarial: str,                                  # a name of losses.adversarial.LOSSES
        discriminator: Patches,                            # of degraded and restored picture together
        optimizer: Adams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((("network", network, ("dncnn", "unet")), ("loss", loss, DISTANCES),
                       ("discriminator_norm", discriminator.norm, NORMS)))
        if adversarial == "wasserstein":
            raise UserError("model.adversarial=wasserstein needs a penalty that a restorer does not have: use hinge")
        self.adversarial = adversarial_loss(adversarial)
        self.generator = Residual(network, channels, masks=masks, residual=residual,
                                  options=dncnn if network == "dncnn" else unet)
        self.discriminator = (PatchGAN(2 * channels, **vars(discriminator)) if lambda_adversarial else None)
        self.ema = EMA(self.generator, **vars(average))

    def players(self) -> dict[str, list[nn.Module]]:
        """The discriminator, where there is one, then the generator."""
        judged: dict[str, list[nn.Module]] = {} if self.discriminator is None else {
            "discriminator": [self.discriminator]}
        return {**judged, "generator": [self.generator]}

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged network."""
        return [(self.ema, self.generator)]

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The discriminator, where there is one, then the network."""
        source, target = batch["source"], batch["target"]
        made = self.generator(self.seen(source, self.masks_of(batch)))
        logs: dict[str, Tensor] = {}
        if self.discriminator is not None:
            with self.turn("discriminator") as backward:
                pairs = [torch.cat([source, images], dim=1) for images in (target, made.detach())]
                loss = self.adversarial.discriminator(*self.discriminator(torch.cat(pairs)).chunk(2))
                backward(loss)
            logs["loss/discriminator"] = loss.detach()
        with self.turn("generator") as backward:
            distance = DISTANCES[self.hparams.loss](made, target)
            logs[f"loss/{self.hparams.loss}"] = distance.detach()
            backward(distance + self.fooling(source, target, made, logs))
        return logs

    def fooling(self, source: Tensor, target: Tensor, made: Tensor, logs: dict[str, Tensor]) -> Tensor | float:
        """The weighed adversarial loss of restored pictures `(n, c, h, w)`; 0 without a discriminator."""
        if self.discriminator is None:
            return 0.0
        on_made = on_target = self.discriminator(torch.cat([source, made], dim=1))
        if self.adversarial.relativistic:
            on_target = self.discriminator(torch.cat([source, target], dim=1))
        loss = self.adversarial.generator(on_target, on_made)
        logs["loss/generator"] = loss.detach()
        return self.hparams.lambda_adversarial * loss

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """L1 on [-1, 1] and PSNR in dB, before rounding."""
        made, target = self.fakes(batch), batch["target"]
        errors = (made - target).square().mean((1, 2, 3))
        return {"l1": F.l1_loss(made, target), "psnr": (10 * (4 / errors.clamp(min=1e-10)).log10()).mean()}

    # ---- restoring ----

    @torch.no_grad()
    def restore(
        self, images: Tensor, *, masks: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> Tensor:
        """Restored pictures `(n, c, h, w)` in [-1, 1] of degraded ones of any size, by the averaged network.

        In float32. `masks` `(n, 1, h, w)` are 1 where pixels are lost. A result depends on its picture alone.

        Raises:
            UserError: masks are missing, or there is no place for them.
        """
        self.check_masks(masks)
        with torch.autocast(self.device.type, enabled=False):
            return self.ema(self.seen(images.to(self.device, torch.float32), masks)).clamp(-1, 1)
