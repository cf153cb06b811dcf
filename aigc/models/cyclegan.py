"""CycleGAN (Zhu et al. 2017): translates between two sets of images that show different things.

Notable here:
- two generators and two discriminators; adversarial, cycle and identity losses, equations 1 to 3 and section 5.2
- one pass of a generator makes both its translations and its identities; the cycle is the second pass
- larger batches change nothing but the number of steps: every norm is per image, the pool takes images one at a time,
  and the losses are means over images
- the pool of earlier translations is part of the checkpoint and the same on every rank
- any size: generators pad by reflection and crop back; the averaged generators translate, in float32
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss, patch_r1
from aigc.losses.diff_augment import DiffAugment
from aigc.losses.image_pool import ImagePool
from aigc.models.family import Batch, Translator
from aigc.models.options import R1, Average, Patches, ResNet, Schedule, group, grouped
from aigc.models.two_player import Adams, TwoPlayer
from aigc.networks.ema import EMA
from aigc.networks.patchgan import NORMS, PatchGAN
from aigc.networks.pix2pix_unet import UNetGenerator
from aigc.networks.ranks import distributed
from aigc.networks.resnet import UPSAMPLE, ResNetGenerator


@group(prefix="lambda_")
class Weights:
    """Of the generators' losses."""

    adversarial: float
    a: float                                               # of the cycle a -> b -> a
    b: float                                               # of the cycle b -> a -> b
    identity: float                                        # of the identity loss, times a or b


class CycleGAN(TwoPlayer, Translator):
    """Two translators that invert each other, each against its own discriminator.

    Raises:
        UserError: an option's value is unknown, or the loss needs a penalty that is not offered.
    """

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",
        generator: str,                                    # resnet, or unet as in pix2pix
        network: ResNet,                                   # its width, halvings and upsample are also the U-Net's
        discriminator: Patches,
        init_std: float | None,                            # N(0, init_std) weights; None: torch's own
        loss: str,                                         # a name of losses.adversarial.LOSSES
        weights: Weights,
        pool: int,                                         # earlier translations shown to a discriminator, 0: none
        augment: list[str],                                # DiffAugment policies for both discriminators, [] for none
        r1: R1,
        optimizer: Adams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((
            ("generator", generator, ("resnet", "unet")),
            ("upsample", network.upsample, UPSAMPLE),
            ("discriminator_norm", discriminator.norm, NORMS),
        ))
        if loss == "wasserstein":
            raise UserError("model.loss=wasserstein needs a penalty that CycleGAN does not have: use least_squares")
        self.loss = adversarial_loss(loss)
        self.augment = DiffAugment(augment)

        def translator() -> nn.Module:
            if generator == "unet":
                return UNetGenerator(
                    channels, network.width, halvings=network.halvings, upsample=network.upsample, init_std=init_std
                )
            return ResNetGenerator(channels, **vars(network), init_std=init_std)

        self.a2b, self.b2a = translator(), translator()
        self.judge_a, self.judge_b = (PatchGAN(channels, **vars(discriminator), init_std=init_std) for _ in range(2))
        self.ema_a2b, self.ema_b2a = (EMA(one, **vars(average)) for one in (self.a2b, self.b2a))
        self.pools = {"a": ImagePool(pool), "b": ImagePool(pool)}

    def players(self) -> dict[str, list[nn.Module]]:
        """Both generators, then both discriminators."""
        return {"generator": [self.a2b, self.b2a], "discriminator": [self.judge_a, self.judge_b]}

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Both generators, then both discriminators on the generators' translations of this and earlier batches."""
        a, b = batch["a"], batch["b"]
        with self.turn("generator") as backward:
            loss, logs, fake_a, fake_b = self.generator_loss(a, b)
            backward(loss)
        with self.turn("discriminator") as backward:
            loss, more = self.discriminator_loss(a, b, self.earlier("a", fake_a), self.earlier("b", fake_b))
            backward(loss)
        return logs | more

    def generator_loss(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """The generators' loss, its parts, and the detached translations of `b` and of `a`, both `(n, c, h, w)`."""
        options, n = self.hparams, len(a)
        seen = (a, b, a, b) if options.lambda_identity else (a, b)
        fake_b = self.a2b(torch.cat(seen[:2]) if options.lambda_identity else a)
        fake_a = self.b2a(torch.cat(seen[1:3]) if options.lambda_identity else b)
        same_b, fake_b, same_a, fake_a = fake_b[n:], fake_b[:n], fake_a[n:], fake_a[:n]
        logs = {
            "loss/cycle_a": F.l1_loss(self.b2a(fake_b), a),
            "loss/cycle_b": F.l1_loss(self.a2b(fake_a), b),
            "loss/generator_a2b": self.deceive(self.judge_b, b, fake_b),
            "loss/generator_b2a": self.deceive(self.judge_a, a, fake_a),
        }
        loss = options.lambda_a * logs["loss/cycle_a"] + options.lambda_b * logs["loss/cycle_b"]
        loss = loss + options.lambda_adversarial * (logs["loss/generator_a2b"] + logs["loss/generator_b2a"])
        if options.lambda_identity:
            logs["loss/identity_a"], logs["loss/identity_b"] = F.l1_loss(same_a, a), F.l1_loss(same_b, b)
            weighted = options.lambda_a * logs["loss/identity_a"] + options.lambda_b * logs["loss/identity_b"]
            loss = loss + options.lambda_identity * weighted
        return loss, {name: value.detach() for name, value in logs.items()}, fake_a.detach(), fake_b.detach()

    def deceive(self, judge: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """The adversarial loss of the generator that made `fake`."""
        transform = self.augment.draw(len(fake), fake.device)
        on_fake = judge(transform(fake))
        return self.loss.generator(judge(transform(real)) if self.loss.relativistic else on_fake, on_fake)

    def discriminator_loss(
        self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminators' loss and its parts, on real images and detached translations."""
        total = torch.zeros((), device=a.device)
        logs: dict[str, Tensor] = {}
        for side, judge, real, fake in (("a", self.judge_a, a, fake_a), ("b", self.judge_b, b, fake_b)):
            transform = self.augment.draw(len(real), real.device)
            on_real, on_fake = judge(torch.cat([transform(real), transform(fake)])).chunk(2)
            loss = self.loss.discriminator(on_real, on_fake)
            logs |= {f"loss/discriminator_{side}": loss, f"logits/real_{side}": on_real.mean(),
                     f"logits/fake_{side}": on_fake.mean()}
            total = total + loss
            if self.hparams.r1 and (heavier := self.lazily(self.hparams.r1_every)):
                logs[f"penalty/r1_{side}"] = patch_r1(judge, real, transform)
                total = total + heavier * self.hparams.r1 / 2 * logs[f"penalty/r1_{side}"]
        return total, {name: value.detach() for name, value in logs.items()}

    def earlier(self, side: str, fake: Tensor) -> Tensor:
        """The same number of translations, some of them from earlier steps; all ranks feed the pool."""
        pool, n = self.pools[side], len(fake)
        if not (pool.size and distributed()):
            return pool(fake, self.progress.batches)
        everyone = cast(Tensor, self.all_gather(fake)).flatten(0, -4)
        return pool(everyone, self.progress.batches)[self.global_rank * n :][:n]

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """Both averaged generators."""
        return [(self.ema_a2b, self.a2b), (self.ema_b2a, self.b2a)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the pools."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["pools"] = {side: pool.state_dict() for side, pool in self.pools.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the pools."""
        super().on_load_checkpoint(checkpoint)
        for side, state in checkpoint["pools"].items():
            self.pools[side].load_state_dict(state)

    # ---- validation ----

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """L1 on [-1, 1] of both round trips, and between images of each domain and their translations into it."""
        scores = {}
        for direction, back in (("a2b", "b2a"), ("b2a", "a2b")):
            source, target = self.sides(batch, direction)
            again = self.translate(self.translate(source, direction=direction), direction=back)
            scores[f"cycle_{direction[0]}"] = F.l1_loss(again, source)
            scores[f"identity_{direction[2]}"] = F.l1_loss(self.translate(target, direction=direction), target)
        return scores
