"""StyleGAN2 with adaptive augmentation (Karras et al. 2020a, b): a generator steered by styles, for little data too.

Notable here:
- a latent and a label or a text's vector (Kang et al. 2023, without attention) become a style (`networks.style`); it
  scales every convolution's inputs, demodulation scales outputs back, noise adds chance, and all resolutions sum up
- a residual discriminator, filtered halvings, the deviation over a minibatch, projection on the condition's vector
- the logistic loss; R1, and on demand path lengths, in steps of their own every so many, as much heavier, for which
  Adam's rates and betas are corrected
- augmentation of real and generated images whose probability follows how far the discriminator has memorized
  (`losses.ada`)
- samples come from an exponential moving average of the generator, pulled towards the mean style by `psi`; pictures
  are projected back into z, w or w+ (`models.projection`), where styles of fine and coarse layers can be exchanged
"""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import as_tensor, condition_for
from aigc.errors import UserError, check_choices, choices
from aigc.losses.ada import AdaptiveAugment
from aigc.losses.adversarial import LOSSES, squared_gradient
from aigc.models.family import Batch
from aigc.models.options import Average, Reading, Schedule, group, grouped, option
from aigc.models.projection import Projection, project
from aigc.models.two_player import Adams, TwoPlayer
from aigc.networks.ema import EMA
from aigc.networks.equalized import EqualizedConv, EqualizedLinear
from aigc.networks.ranks import mean_over_ranks
from aigc.networks.residual import ResidualBlock, minibatch_deviation
from aigc.networks.style import Mapping, Synthesis
from aigc.noise import SeededNoise

LOSS = LOSSES["nonsaturating"]
NOISE = ("random", "const", "none")
MIXED = {"label": ("mix_label",), "text": ("mix_text",)}   # sampling options by condition
STYLE_DECAY, PATH_DECAY = 0.995, 0.01                      # a step of the mean style, of the mean path length
STEMS: dict[int, dict[str, Any]] = {1: {"kernel": 1}, 2: {"kernel": 4, "stride": 2, "padding": 1}}
ADJUST_EVERY = 4                                           # steps between two changes of the augmentation's p


@group()
class Telling(Reading):
    """Of conditions."""

    embedding: int                                         # length of its vector, before both mappings


@group()
class GeneratorShape:
    """Of the mapping and the generator."""

    latent: int                                            # length of z
    style: int                                             # length of w
    layers: int = option("mapping_layers")
    rate: float = option("mapping_rate")                   # multiplier of the learning rate, both mappings'
    affine_rate: float                                     # the same of the layers from w to styles
    widths: list[int] = option("generator_widths")         # feature maps from the starting grid on
    convolutions: list[int] = option("generator_convolutions")  # of each of them


@group(prefix="discriminator_")
class DiscriminatorShape:
    """Of the discriminator."""

    widths: list[int]                                      # feature maps from the image on; the last goes on to 4x4
    residual: bool                                         # its halvings: beside a convolution of 1x1
    stem: int                                              # stride of the first layer: 1 is 1x1, 2 is 4x4
    mapping: int                                           # layers of its own mapping of labels
    group: int                                             # images of a minibatch whose deviation is taken together


@group()
class Regularizers:
    """In steps of their own, every so many."""

    r1: float                                              # gamma of R1 on real images, 0: none
    r1_every: int
    path: float                                            # weight of path lengths, 0: none
    path_every: int
    mixing: float                                          # probability of a second style from a random layer on


@group(prefix="augment_")
class Augmentation:
    """Adaptive, of real and generated images."""

    target: float                                          # of the mean sign of logits of real images, 0: none
    images: float                                          # in which its probability could go from 0 to 1
    limit: float                                           # of its probability


class Generator(nn.Module):
    """Latents and labels to images."""

    average: Tensor                                        # (style,) running mean of w

    def __init__(self, channels: int, size: Sequence[int], shape: GeneratorShape, reading: Telling):
        super().__init__()
        self.encoder = reading.reader(reading.embedding)
        vector = reading.embedding if self.encoder is not None else 0
        self.mapping = Mapping(shape.latent, vector, shape.style, layers=shape.layers, rate=shape.rate)
        self.synthesis = Synthesis(
            channels, size, shape.style, widths=shape.widths, convolutions=shape.convolutions, rate=shape.affine_rate
        )
        self.register_buffer("average", torch.zeros(shape.style))

    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The style w `(n, style)` of `z` `(n, latent)` and labels `(n,)` or texts `(n, L)`."""
        return self.mapping(z, self.encoder(labels, n=len(z)) if self.encoder is not None else None)

    def styles(self, w: Tensor, *, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """w+ `(n, layers, style)`: w for every layer, in the first `cutoff` (None: all) only psi as far from the mean.

        Truncation of Karras et al. 2019, appendix B: psi = 0 is the mean style itself.
        """
        every = w[:, None].expand(-1, self.synthesis.styles, -1)
        if psi == 1:
            return every
        cut = self.synthesis.styles if cutoff is None else cutoff
        return torch.cat([self.average.lerp(every[:, :cut], psi), every[:, cut:]], dim=1)

    def forward(self, styles: Tensor, noise: str | Sequence[Tensor] = "random") -> Tensor:
        """Images `(n, c, h, w)`, float32, of w+ `(n, layers, style)`."""
        return self.synthesis(styles, noise)


class Discriminator(nn.Module):
    """Image to logit: residual halvings down to about 4x4; real and generated images in batches of their own."""

    def __init__(
        self, channels: int, size: Sequence[int], shape: DiscriminatorShape, reading: Telling, rate: float
    ):
        super().__init__()
        widths = list(shape.widths)
        self.group, self.stem = shape.group, shape.stem
        self.first = EqualizedConv(channels, widths[0], active=True, **STEMS[shape.stem])
        grid = [ceil(side / shape.stem) for side in size]
        blocks: list[nn.Module] = []
        while max(grid) > 4:
            before, after = widths[0], widths[min(1, len(widths) - 1)]
            blocks, widths = [*blocks, ResidualBlock(before, after, residual=shape.residual)], widths[1:] or widths
            grid = [ceil(side / 2) for side in grid]
        self.blocks = nn.Sequential(*blocks)
        width = widths[0]
        self.last = EqualizedConv(width + 1, width, 3, active=True)
        self.encoder = reading.reader(reading.embedding)
        self.head = nn.Sequential(
            EqualizedLinear(width * grid[0] * grid[1], width, active=True),
            EqualizedLinear(width, 1 if self.encoder is None else width),
        )
        if self.encoder is not None:
            self.mapping = Mapping(0, reading.embedding, width, layers=shape.mapping, rate=rate)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits `(n,)`, float32, for `images` `(n, c, h, w)`, all real or all generated.

        With labels `(n,)` or texts `(n, L)`: the features times the condition's style, over the root of their number.
        """
        x = images.contiguous(memory_format=torch.channels_last)
        if self.stem == 2:
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        x = self.blocks(self.first(x))
        x = self.head(self.last(minibatch_deviation(x, self.group)).flatten(1)).float()
        if self.encoder is None:
            return x.squeeze(1)
        return (x * self.mapping(None, self.encoder(labels, n=len(x)))).sum(1) / sqrt(x.shape[1])


class StyleGAN2(TwoPlayer):
    """A generator steered by styles against a residual discriminator.

    Raises:
        UserError: an option's value is unknown or out of range.
    """

    conditions: ClassVar[tuple[str, ...]] = ("none", "label", "text")
    encodes_by_search = True
    path_mean: Tensor                                      # () running mean of path lengths

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        reading: Telling,
        generator: GeneratorShape,
        discriminator: DiscriminatorShape,
        regularizers: Regularizers,
        augmentation: Augmentation,
        optimizer: Adams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        widths, convolutions = generator.widths, generator.convolutions
        if len(widths) != len(convolutions) or not widths or min(convolutions) < 1:
            raise UserError(f"model.generator_convolutions={convolutions} are not one or more for each of "
                            f"model.generator_widths={widths}: give as many numbers")
        check_choices([("discriminator_stem", discriminator.stem, tuple(STEMS))])
        self.generator = Generator(channels, size, generator, reading)
        self.discriminator = Discriminator(channels, size, discriminator, reading, generator.rate)
        self.augment = AdaptiveAugment(**vars(augmentation))
        self.register_buffer("path_mean", torch.zeros(()))
        self.ema = EMA(self.generator, **vars(average))

    def players(self) -> dict[str, list[nn.Module]]:
        """The discriminator, then the generator."""
        return {"discriminator": [self.discriminator], "generator": [self.generator]}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each player; with a step more every k, k / (k + 1) of the rate, betas so (2020a, appendix B)."""
        optimizers, h = super().configure_optimizers(), self.hparams
        for optimizer, every in zip(optimizers, (h.r1 and h.r1_every, h.path and h.path_every), strict=True):
            share = every / (every + 1) if every else 1.0
            for options in optimizer.param_groups:
                options["lr"] *= share
                options["betas"] = tuple(beta**share for beta in options["betas"])
        return optimizers

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Discriminator, then generator, on the same generated images; regularizers in steps of their own."""
        real, labels, h = batch["image"], self.told(batch), self.hparams
        fake = self.generator(self.mixed_styles(len(real), labels))
        with self.turn("discriminator") as backward:
            loss, logs = self.discriminator_loss(real, fake.detach(), labels)
            backward(loss)
        weight = self.lazily(h.r1_every) if h.r1 else 0
        if weight:
            with self.turn("discriminator") as backward:
                logs["penalty/r1"] = self.squared_gradient(real, labels)
                backward(weight * h.r1 / 2 * logs["penalty/r1"])
        with self.turn("generator") as backward:
            logs["loss/generator"] = LOSS.generator(fake, self.discriminator(self.augment(fake), labels))
            backward(logs["loss/generator"])
        weight = self.lazily(h.path_every) if h.path else 0
        if weight:
            with self.turn("generator") as backward:
                logs["penalty/path"] = self.path_penalty((len(real) + 1) // 2, labels)
                backward(weight * h.path * logs["penalty/path"])
            logs["path/length"] = self.path_mean
        if h.augment_target and self.progress.batches % ADJUST_EVERY == ADJUST_EVERY - 1:
            self.augment.adjust()
        return {name: value.detach() for name, value in logs.items()} | {"augment/p": self.augment.p}

    def mixed_styles(self, n: int, labels: Tensor | None) -> Tensor:
        """w+ `(n, layers, style)` of fresh latents, from a random layer on of others with probability `mixing`.

        Moves the mean style by those that are not mixed.
        """
        w = self.generator.style(self.latents(n), labels)
        self.generator.average.lerp_(mean_over_ranks(w.mean(0)), 1 - STYLE_DECAY)
        styles = self.generator.styles(w)
        if self.hparams.mixing:
            layer = torch.arange(styles.shape[1], device=w.device)[:, None]
            mixes = torch.rand(n, 1, 1, device=w.device) < self.hparams.mixing
            start = torch.randint(1, styles.shape[1], (n, 1, 1), device=w.device)
            other = self.generator.styles(self.generator.style(self.latents(n), labels))
            styles = torch.where(mixes & (layer >= start), other, styles)
        return styles

    def latents(self, n: int) -> Tensor:
        """Fresh z `(n, latent)`."""
        return torch.randn(n, self.hparams.latent, device=self.device)

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The logistic loss and its parts, on images `(n, c, h, w)`; `fake` is detached."""
        on_real = self.discriminator(self.augment(real), labels)
        on_fake = self.discriminator(self.augment(fake), labels)
        self.augment.observe(on_real)
        loss = LOSS.discriminator(on_real, on_fake)
        return loss, {"loss/discriminator": loss, "logits/real": on_real.mean(), "logits/fake": on_fake.mean(),
                      "logits/sign": on_real.sign().mean()}

    def squared_gradient(self, real: Tensor, labels: Tensor | None) -> Tensor:
        """R1 without gamma / 2, in float32; through the augmentation."""
        real = real.detach().requires_grad_()
        with torch.autocast(real.device.type, enabled=False):
            return squared_gradient(self.discriminator(self.augment(real), labels), real).mean()

    def path_penalty(self, n: int, labels: Tensor | None) -> Tensor:
        """Squared differences of path lengths from their running mean (Karras et al. 2020a, equation 4), in float32.

        Of n fresh latents with the first n labels; moves the mean.
        """
        labels = None if labels is None else labels[:n]
        with torch.autocast(self.device.type, enabled=False):
            styles = self.generator.styles(self.generator.style(self.latents(n), labels))
            images = self.generator(styles)
            noise = torch.randn_like(images) / sqrt(images[0, 0].numel())
            (gradient,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
            lengths = gradient.square().sum(2).mean(1).sqrt()
            self.path_mean.lerp_(mean_over_ranks(lengths.mean()), PATH_DECAY)
            return (lengths - self.path_mean.clone()).square().mean()

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The mean logit on held-out images: far below `logits/real`, the discriminator has memorized its images."""
        labels = as_tensor(self.condition_of(batch), self.discriminator.encoder)
        return {"logits/held_out": self.discriminator(batch["image"], labels).mean()}

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged generator."""
        return [(self.ema, self.generator)]

    # ---- use ----

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of the averaged generator; labels are random where `condition` is None.

        Options: `psi` (1: as learned; smaller is more typical, 0 is the mean style) in the first `cutoff` layers
        (None: all); `noise` (random: of each image's seed, const: the same in all, none); `mix` (a layer, from which
        on the styles are those of `mix_seed`, by default 0, and of `mix_label` or `mix_text`, by default its own).

        Raises:
            UserError: an option is unknown or out of range, or the labels are.
        """
        self.check_options(options, ("psi", "cutoff", "noise", "mix", "mix_seed", *MIXED.get(self.condition, ())))
        layers = self.generator.synthesis.styles
        noise, psi = options.get("noise", "random"), options.get("psi", 1.0)
        mix, cutoff = options.get("mix"), options.get("cutoff")
        if noise not in NOISE:
            raise UserError(f"noise={noise} is unknown: {choices(noise, NOISE)}")
        for name, layer in (("cutoff", cutoff), ("mix", mix)):
            if layer is not None and not 0 <= layer <= layers:
                raise UserError(f"{name}={layer} is not a layer: give a number from 0 to {layers}")
        seeds = self.seeds_or_fresh(n, seeds)
        draw, generator = SeededNoise(seeds), self.averaged
        with torch.autocast(self.device.type, enabled=False):
            z = draw(self.hparams.latent).to(self.device)
            w = generator.style(z, self._labels(condition, seeds))
            styles = generator.styles(w, psi=psi, cutoff=cutoff)
            if mix is not None:
                told = options.get(f"mix_{self.condition}")
                labels = self._labels(condition if told is None else [told] * n, seeds)
                z = SeededNoise([options.get("mix_seed", 0)] * n)(self.hparams.latent).to(self.device)
                other = generator.styles(generator.style(z, labels), psi=psi, cutoff=cutoff)
                styles = torch.cat([styles[:, :mix], other[:, mix:]], dim=1)
            drawn = [draw(*shape).to(self.device) for shape in generator.synthesis.noise_shapes()]
            return generator(styles, drawn if noise == "random" else noise).clamp(-1, 1)

    def project(self, images: Tensor, *, space: str = "w", condition: Any = None, **options: Any) -> Projection:
        """Latents and noise maps of images `(n, c, h, w)` in [-1, 1], by descent: `models.projection.project`.

        Raises:
            UserError: the space is unknown, or z is asked for without the conditions that it was learned with.
        """
        if space == "z" and self.condition != "none" and condition is None:
            raise UserError(f"space=z needs the images' {self.condition}s, which z was learned with: give condition, "
                            "or space=w")
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(self.device.type, enabled=False):
            images = images.to(self.device, torch.float32, copy=True)
            labels = None if condition is None else self._labels(condition, range(len(images)))
            classes = self.hparams.classes if self.condition == "label" else None
            return project(self.averaged, images, labels, latent=self.hparams.latent, classes=classes, space=space,
                           **options)

    def encode(self, images: Tensor, **options: Any) -> Tensor:
        """The latents of `project`, of `space` w `(n, style)`, z `(n, latent)` or w+ `(n, layers, style)`."""
        return self.project(images, **options).latents

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, space: str | None = None, condition: Any = None,
        noise: str | Sequence[Tensor] = "const",
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of `latents` in a space: by default w for vectors, w+ for one each layer.

        Styles of different pictures can be put together in w+: the first layers are coarse, the last are fine.
        """
        latents, generator = latents.to(self.device), self.averaged
        with torch.autocast(self.device.type, enabled=False):
            if space == "z":
                latents = generator.style(latents, self._labels(condition, range(len(latents))))
            styles = latents if latents.dim() == 3 else generator.styles(latents)
            return generator(styles, noise).clamp(-1, 1)

    @property
    def averaged(self) -> Generator:
        """The generator that samples come from."""
        return self.ema.network  # type: ignore[return-value]

    def _labels(self, condition: Any, seeds: Sequence[int]) -> Tensor | None:
        known = {"kind": self.condition, "classes": self.hparams.classes, "encoder": self.averaged.encoder}
        labels = condition_for(condition, seeds=seeds, **known)
        return None if labels is None else labels.to(self.device)
