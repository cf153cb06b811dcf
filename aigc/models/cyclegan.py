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
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss, squared_gradient
from aigc.losses.diff_augment import DiffAugment
from aigc.losses.image_pool import ImagePool
from aigc.models.family import Batch, Translator
from aigc.networks.ema import EMA
from aigc.networks.patchgan import NORMS, PatchGAN
from aigc.networks.pix2pix_unet import UNetGenerator
from aigc.networks.resnet import UPSAMPLE, ResNetGenerator


class CycleGAN(Translator):
    """Two translators that invert each other, each against its own discriminator.

    Raises:
        UserError: an option's value is unknown, or the loss needs a penalty that is not offered.
    """

    find_unused_parameters = True

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",
        generator: str,                                    # resnet, or unet as in pix2pix
        width: int,                                        # feature maps of a generator's first layer
        blocks: int,                                       # residual blocks (resnet)
        halvings: int,                                     # of a generator's grid
        kernel: int,                                       # first and last convolution (resnet)
        upsample: str,                                     # resize: no checkerboards; transposed: as published
        residual: bool,                                    # predict a change to the image, not a new image (resnet)
        discriminator_width: int,                          # feature maps of its first layer
        discriminator_layers: int,                         # strided; patches of 16, 34, 70 px for 1, 2, 3
        discriminator_norm: str,                           # instance, spectral or none
        init_std: float | None,                            # N(0, init_std) weights; None: torch's own
        loss: str,                                         # a name of losses.adversarial.LOSSES
        lambda_adversarial: float,                         # weight of the generators' adversarial loss
        lambda_a: float,                                   # weight of the cycle a -> b -> a
        lambda_b: float,                                   # weight of the cycle b -> a -> b
        lambda_identity: float,                            # weight of the identity loss, times lambda_a or _b
        pool: int,                                         # earlier translations shown to a discriminator, 0: none
        augment: list[str],                                # DiffAugment policies for both discriminators, [] for none
        r1: float,                                         # gamma of R1 on the mean logit of an image, 0: none
        r1_every: int,                                     # steps between penalties, weighted up to match
        generator_rate: float,
        discriminator_rate: float,
        betas: list[float],                                # Adam, both optimizers
        warmup_images: float,
        decay_from: float,                                 # share of the budget after which the rates fall to 0
        ema_halflife_images: float,
        ema_ramp: float,                                   # halflife is at most this share of the images seen
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((
            ("generator", generator, ("resnet", "unet")),
            ("upsample", upsample, UPSAMPLE),
            ("discriminator_norm", discriminator_norm, NORMS),
        ))
        if loss == "wasserstein":
            raise UserError("model.loss=wasserstein needs a penalty that CycleGAN does not have: use least_squares")
        self.automatic_optimization = False
        self.loss = adversarial_loss(loss)
        self.augment = DiffAugment(augment)
        shared: dict[str, Any] = {"halvings": halvings, "upsample": upsample, "init_std": init_std}

        def translator() -> nn.Module:
            if generator == "unet":
                return UNetGenerator(channels, width, **shared)
            return ResNetGenerator(channels, width, blocks=blocks, kernel=kernel, residual=residual, **shared)

        def judge() -> PatchGAN:
            return PatchGAN(
                channels, discriminator_width, layers=discriminator_layers, norm=discriminator_norm, init_std=init_std
            )

        self.a2b, self.b2a = translator(), translator()
        self.judge_a, self.judge_b = judge(), judge()
        self.ema_a2b, self.ema_b2a = (
            EMA(network, halflife_images=ema_halflife_images, ramp=ema_ramp) for network in (self.a2b, self.b2a)
        )
        self.pools = {"a": ImagePool(pool), "b": ImagePool(pool)}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for both generators, then for both discriminators."""
        pairs = (
            (nn.ModuleList([self.a2b, self.b2a]), self.hparams.generator_rate),
            (nn.ModuleList([self.judge_a, self.judge_b]), self.hparams.discriminator_rate),
        )
        betas = tuple(self.hparams.betas)
        return [torch.optim.Adam(nets.parameters(), lr=rate, betas=betas, fused=True) for nets, rate in pairs]

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Both generators, then both discriminators on the generators' translations of this and earlier batches."""
        generators, discriminators = cast(list[LightningOptimizer], self.optimizers())
        a, b = batch["a"], batch["b"]
        self.judge_a.requires_grad_(False)                 # also keeps autocast from caching their weights,
        self.judge_b.requires_grad_(False)                 # which change before their own step is over
        loss, logs, fake_a, fake_b = self.generator_loss(a, b)
        generators.zero_grad()
        self.manual_backward(loss)
        generators.step()
        self.judge_a.requires_grad_(True)
        self.judge_b.requires_grad_(True)

        loss, more = self.discriminator_loss(a, b, self.earlier("a", fake_a), self.earlier("b", fake_b))
        discriminators.zero_grad()
        self.manual_backward(loss)
        discriminators.step()
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
            if self.hparams.r1 and self.progress.batches % self.hparams.r1_every == 0:
                with torch.autocast(real.device.type, enabled=False):
                    seen = transform(real).detach().requires_grad_()
                    logs[f"penalty/r1_{side}"] = squared_gradient(judge(seen).mean((1, 2, 3)), seen).mean()
                total = total + self.hparams.r1_every * self.hparams.r1 / 2 * logs[f"penalty/r1_{side}"]
        return total, {name: value.detach() for name, value in logs.items()}

    def earlier(self, side: str, fake: Tensor) -> Tensor:
        """The same number of translations, some of them from earlier steps; all ranks feed the pool."""
        pool, n = self.pools[side], len(fake)
        if not (pool.size and torch.distributed.is_available() and torch.distributed.is_initialized()):
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
