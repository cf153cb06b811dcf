"""Generative adversarial networks: DCGAN and a small conditional GAN that is good within minutes.

Notable here:
- `model=dcgan` (Radford et al. 2016) and `model=gan` share one class: the recipe chooses widths, norm, head and loss
- any size and channel count: the starting grid is derived from the size, the last rows and columns are cropped
- `model=r3gan` (Huang et al. 2024) is the relativistic one with R1 and R2 and without any norm
- five losses, R1, R2 and WGAN-GP penalties, DiffAugment; conditioned by concatenation, or by batch norm and a
  projection head: then only z decides the layout, and no text or label collapses to one picture
- the generator's images are made once per step: the discriminator learns from them first, then the generator
- samples come from an exponential moving average of the generator
"""

from collections.abc import Sequence
from dataclasses import astuple
from itertools import pairwise
from math import ceil
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aigc.conditions import TextEncoder
from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss, gradient_penalty, squared_gradient
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch
from aigc.models.from_noise import FromNoise
from aigc.models.options import Average, Reading, Schedule, group, grouped, option
from aigc.models.two_player import ClippedAdams
from aigc.networks.batch_norm import ConditionalBatchNorm, share_statistics
from aigc.networks.ema import EMA

START = 8                                                  # a larger starting grid gets one more doubling


@group()
class Telling(Reading):
    """Of conditions, and how both networks are told."""

    conditioning: str                                      # projection (and conditional batch norm), or concat
    embedding: int                                         # length of the condition's vector


@group()
class GeneratorShape:
    """Of the generator."""

    latent: int                                            # length of its input
    widths: list[int] = option("generator_widths")         # feature maps from the starting grid on
    last: str = option("generator_last")                   # to pixels: transposed (doubles) or convolution (3x3)
    norm: str = option("generator_norm", default="batch")  # batch, or none: then a condition joins the latent


@group(prefix="discriminator_")
class DiscriminatorShape:
    """Of the discriminator."""

    widths: list[int]                                      # feature maps; convolutions stop halving at 4x4
    norm: str                                              # spectral, batch (not after the first layer), or none
    head: str                                              # mean: averages the grid; flatten: keeps positions


@group()
class Penalties:
    """On the discriminator's gradient."""

    r1: float                                              # gamma of R1 (on real images), 0: none
    r2: float                                              # gamma of R2 (on generated images), 0: none
    gradient_penalty: float                                # weight of WGAN-GP's penalty, 0: none
    penalty_every: int                                     # steps between penalties, weighted up to match (lazy)


class Unnormed(nn.Module):
    """No norm, in the place of one."""

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """`x` itself."""
        return x


class Generator(nn.Module):
    """Latent to image: a linear layer to the starting grid, doublings by transposed convolution, then tanh."""

    def __init__(
        self, channels: int, size: tuple[int, int], shape: GeneratorShape, reading: Telling, init_std: float | None
    ):
        super().__init__()
        latent, widths, last, normed = astuple(shape)
        doublings = len(widths) - (last == "convolution")
        while ceil(max(size) / 2**doublings) > START:
            doublings, widths = doublings + 1, [widths[0], *widths]
        self.size, self.latent = tuple(size), latent
        self.grid = tuple(ceil(side / 2**doublings) for side in size)
        self.encoder = reading.reader(reading.embedding)
        vector = reading.embedding if self.encoder is not None else 0
        plain = normed == "none"
        self.concat = plain or reading.conditioning == "concat"
        joined, modulating = (vector, 0) if self.concat else (0, vector)
        self.start = nn.Linear(latent + joined, widths[0] * self.grid[0] * self.grid[1], bias=plain)
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=plain) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(
            Unnormed() if plain else ConditionalBatchNorm(width, modulating) for width in widths
        )
        final = nn.ConvTranspose2d if last == "transposed" else nn.Conv2d
        self.last = final(widths[-1], channels, *((4, 2, 1) if last == "transposed" else (3, 1, 1)))
        initialize(self, init_std)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], float32, from `z` `(n, latent)` and labels `(n,)` or texts `(n, L)`."""
        vector = self.encoder(labels, n=len(z)) if self.encoder is not None else None
        x = self.start(torch.cat([z, vector], dim=1) if vector is not None and self.concat else z)
        x = F.relu(self.norms[0](x.unflatten(1, (-1, *self.grid)), vector))
        for double, norm in zip(self.doublings, self.norms[1:], strict=True):
            x = F.relu(norm(double(x), vector))
        x = self.last(x)
        top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self.size, strict=True))
        return x[:, :, top : top + self.size[0], left : left + self.size[1]].float().tanh()


class Discriminator(nn.Module):
    """Image to logit: strided convolutions with LeakyReLU down to a grid of about 4x4, then a linear head."""

    def __init__(
        self, channels: int, size: tuple[int, int], shape: DiscriminatorShape, reading: Telling, init_std: float | None
    ):
        super().__init__()
        widths, norm, head = astuple(shape)
        self.mean, self.concat = head == "mean", reading.conditioning == "concat"
        self.batch_norm = norm == "batch"                  # real and generated images then need separate batches
        self.encoder = reading.reader(reading.embedding)
        joined = self.encoder is not None and self.concat  # the label's map is one more channel
        if joined:
            self.map = nn.Linear(reading.embedding, size[0] * size[1])
        layers: list[nn.Module] = []
        grid, width = (size[0], size[1]), channels + joined
        while widths or max(grid) > 4:
            out = widths.pop(0) if widths else width
            stride = (1 + (grid[0] > 4), 1 + (grid[1] > 4))
            later = norm == "batch" and bool(layers)
            layers += [nn.Conv2d(width, out, (2 + stride[0], 2 + stride[1]), stride, 1, bias=not later)]
            layers += [*([nn.BatchNorm2d(out)] if later else []), nn.LeakyReLU(0.2)]
            grid, width = (grid[0] // stride[0], grid[1] // stride[1]), out
        self.layers = nn.Sequential(*layers)
        features = width if self.mean else width * grid[0] * grid[1]
        self.head = nn.Linear(features, 1)
        if self.encoder is not None and not self.concat:
            self.project = nn.Linear(reading.embedding, features, bias=False)
        initialize(self, init_std)
        if norm == "spectral":                             # every layer between image and logit
            between = [self.layers, self.head, *([self.project] if hasattr(self, "project") else [])]
            for module in (module for part in between for module in part.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    spectral_norm(module)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits `(n,)`, float32, for `images` `(n, c, h, w)` and labels `(n,)` or texts `(n, L)`."""
        vector = self.encoder(labels, n=len(images)) if self.encoder is not None else None
        if vector is not None and self.concat:
            images = torch.cat([images, self.map(vector).view(-1, 1, *images.shape[2:])], dim=1)
        x = self.layers(images)
        x = x.float().mean((2, 3)) if self.mean else x.flatten(1)
        logits = self.head(x).squeeze(1).float()
        if vector is not None and not self.concat:
            logits = logits + (self.project(vector) * x).sum(1).float()
        return logits


class GAN(FromNoise):
    """A generator against a discriminator, one step of each per batch, with manual optimization.

    Raises:
        UserError: an option's value is unknown, or two of them contradict each other.
    """

    conditions: ClassVar[tuple[str, ...]] = ("none", "label", "text")

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        reading: Telling,
        generator: GeneratorShape,
        discriminator: DiscriminatorShape,
        init_std: float | None,                            # N(0, init_std) weights; None: torch's own
        loss: str,                                         # a name of losses.adversarial.LOSSES
        penalties: Penalties,
        generator_every: int,                              # discriminator steps per generator step
        augment: list[str],                                # DiffAugment policies, [] for none
        optimizer: ClippedAdams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((
            ("conditioning", reading.conditioning, ("projection", "concat")),
            ("generator_last", generator.last, ("transposed", "convolution")),
            ("generator_norm", generator.norm, ("batch", "none")),
            ("discriminator_norm", discriminator.norm, ("spectral", "batch", "none")),
            ("discriminator_head", discriminator.head, ("mean", "flatten")),
        ))
        penalised = penalties.r1 or penalties.r2 or penalties.gradient_penalty
        if discriminator.norm == "batch" and penalised:
            raise UserError(
                "penalties need one gradient per image, which batch norm mixes: set model.discriminator_norm to none "
                "or spectral, or model.r1, model.r2 and model.gradient_penalty to 0"
            )
        if loss == "wasserstein" and not penalties.gradient_penalty:
            raise UserError("model.loss=wasserstein needs its gradient penalty: set model.gradient_penalty=10")
        self.loss = adversarial_loss(loss)
        self.augment = DiffAugment(augment)
        self.generator = Generator(channels, size, generator, reading, init_std)
        self.discriminator = Discriminator(channels, size, discriminator, reading, init_std)
        self.least_batch = 2 if self.generator.grid == (1, 1) else 1  # a batch norm of one value has no variance
        self.ema = EMA(self.generator, **vars(average))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Discriminator, then generator, on the same generated images."""
        real, labels = batch["image"], self.told(batch)
        turn = self.progress.batches % self.hparams.generator_every == 0    # whether the generator steps too
        with torch.set_grad_enabled(turn):
            fake = self.generator(torch.randn(len(real), self.hparams.latent, device=self.device), labels)

        with self.turn("discriminator") as backward:
            penalise = bool(self.lazily(self.hparams.penalty_every))
            loss, logs = self.discriminator_loss(real, fake.detach(), labels, penalise)
            backward(loss)
        if turn:
            with self.turn("generator") as backward:
                loss, more = self.generator_loss(real, fake, labels)
                backward(loss)
            logs |= more
        share_statistics(self.generator, self.discriminator)
        return logs

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, penalise: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss and its parts, on images `(n, c, h, w)`; `fake` is detached.

        With `penalise`, adds the recipe's penalties, multiplied by `penalty_every`.
        """
        options, n = self.hparams, len(real)
        transform = self.augment.draw(n, real.device)
        zero_centred = penalise and bool(options.r1 or options.r2)
        device = real.device.type
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not zero_centred):
            if zero_centred:
                real, fake = real.detach().requires_grad_(), fake.detach().requires_grad_()
            on_real, on_fake = self.logits(transform(real), transform(fake), labels)
        loss = adversarial = self.loss.discriminator(on_real, on_fake)
        logs = {"loss/discriminator": adversarial, "logits/real": on_real.mean(), "logits/fake": on_fake.mean()}
        heavier = options.penalty_every if penalise else 0
        if penalise:
            for name, gamma, logits, images in (("r1", options.r1, on_real, real), ("r2", options.r2, on_fake, fake)):
                if gamma:
                    logs[f"penalty/{name}"] = squared_gradient(logits, images).mean()
                    loss = loss + heavier * gamma / 2 * logs[f"penalty/{name}"]
            if options.gradient_penalty:
                logs["penalty/gradient"] = gradient_penalty(
                    lambda images: self.discriminator(transform(images), labels), real, fake
                )
                loss = loss + heavier * options.gradient_penalty * logs["penalty/gradient"]
        return loss, {name: value.detach() for name, value in logs.items()}

    def generator_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss and its log, on images `(n, c, h, w)`."""
        transform = self.augment.draw(len(real), real.device)
        if self.loss.relativistic:
            on_real, on_fake = self.logits(transform(real), transform(fake), labels)
        else:
            on_fake = on_real = self.discriminator(transform(fake), labels)
        loss = self.loss.generator(on_real, on_fake)
        return loss, {"loss/generator": loss.detach()}

    def logits(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of real and of generated images, in one pass unless batch norm would mix them."""
        if self.discriminator.batch_norm:
            return self.discriminator(real, labels), self.discriminator(fake, labels)
        twice = None if labels is None else torch.cat([labels, labels])
        return self.discriminator(torch.cat([real, fake]), twice).chunk(2)

    def latents(self, seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        """`z` of these seeds, `(n, latent)`; truncated by quantile, so that every number keeps its rank."""
        z = super().latents(seeds)
        return z if truncation is None else truncate(z, truncation)

    def with_standing_statistics(self, images: int, truncation: float | None = None) -> nn.Module:
        """A copy of the averaged generator with statistics over `images` images of whole latents."""
        return super().with_standing_statistics(images)


def truncate(z: Tensor, threshold: float) -> Tensor:
    """Maps standard normal numbers to ones truncated at +-threshold, by quantile: monotone, without redrawing.

    Raises:
        UserError: the threshold is not positive.
    """
    if not threshold > 0:
        raise UserError(f"truncation={threshold} leaves no latents: give a positive number, e.g. 1")
    low = torch.special.ndtr(torch.tensor(-float(threshold), dtype=torch.float64))
    return torch.special.ndtri(low + (1 - 2 * low) * torch.special.ndtr(z.double())).to(z.dtype)


def initialize(network: nn.Module, std: float | None) -> None:
    """Weights N(0, std), batch-norm gains N(1, std), biases 0 (Radford et al. 2016); None keeps torch's defaults.

    A text encoder is left as it is.
    """
    if std is None:
        return
    encoder = getattr(network, "encoder", None)
    reader = set(encoder.modules()) if isinstance(encoder, TextEncoder) else set()
    for module in (module for module in network.modules() if module not in reader):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0, std)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
