"""Projected GAN (Sauer et al. 2021): discriminators that see images through a network trained on ImageNet.

Notable here:
- the feature network is frozen; its maps at four scales are mixed over channels (1x1) and over scales (from coarse to
  fine, 3x3) by random convolutions that never learn, so that no discriminator can rest on a few of them
- one small discriminator for every scale, with spectral norm and batch norm, hinge loss, all added up; no penalty
- images are augmented before they are projected (DiffAugment), in both steps
- the generator is FastGAN's (Liu et al. 2021): coarse maps gate the channels of maps that are four doublings finer
  (skip-layer excitation), gated linear units, noise at every other block
- the feature network is no part of the checkpoint, which names it: its scores flatter this model
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.errors import UserError
from aigc.losses.adversarial import adversarial_loss
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch
from aigc.models.from_noise import FromNoise
from aigc.models.options import Average, Schedule, group, grouped, option
from aigc.models.two_player import Adams
from aigc.networks.batch_norm import ConditionalBatchNorm, share_statistics
from aigc.networks.ema import EMA
from aigc.networks.pretrained import Pretrained
from aigc.networks.spectral_norm import normalise
from aigc.noise import SeededNoise

START = 4                                                  # side of the starting grid, at most
REACH = 4                                                  # doublings between a map and the one that it gates
DOWN_TO = 8                                                # discriminators halve maps that are larger


@group()
class GeneratorShape:
    """Of the generator."""

    latent: int                                            # length of z
    embedding: int                                         # length of a label's vector
    widths: list[int] = option("generator_widths")         # feature maps from 4x4 on; as many as there are doublings


@group()
class Projection:
    """Of what discriminators see, and of them."""

    pretrained: dict[str, Any]                             # arguments of `Pretrained`
    mixed: int                                             # channels of the finest mixed map; each coarser has twice
    widths: list[int] = option("discriminator_widths")     # feature maps after each halving; the last one repeats


class Gate(nn.Module):
    """Skip-layer excitation (Liu et al. 2021, equation 1): channels of a fine map, gated by a coarse one."""

    def __init__(self, coarse: int, fine: int, grid: tuple[int, int]):
        super().__init__()
        pooled = (min(START, grid[0]), min(START, grid[1]))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(pooled), nn.Conv2d(coarse, fine, pooled, bias=False), nn.SiLU(),
            nn.Conv2d(fine, fine, 1, bias=False), nn.Sigmoid(),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """`fine` `(n, fine, H, W)`, times a factor in (0, 1) for each image and channel."""
        return fine * self.gate(coarse)


class Unit(nn.Module):
    """Convolution, noise where `noisy`, batch norm and a gated linear unit."""

    def __init__(self, inputs: int, outputs: int, vector: int, *, noisy: bool):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 2 * outputs, 3, padding=1, bias=False)
        self.strength = nn.Parameter(torch.zeros(())) if noisy else None
        self.norm = ConditionalBatchNorm(2 * outputs, vector)

    def forward(self, x: Tensor, vector: Tensor | None, noise: Callable[..., Tensor]) -> Tensor:
        """`(n, inputs, h, w)` to `(n, outputs, h, w)`; `noise(1, h, w)` is `(n, 1, h, w)`."""
        x = self.conv(x)
        if self.strength is not None:
            x = x + (self.strength * noise(1, *x.shape[2:])).to(x.dtype)
        return F.glu(self.norm(x, vector), dim=1)


class Generator(nn.Module):
    """FastGAN: z to a grid, then doublings of one unit or two in turn, some gated by coarser maps."""

    def __init__(self, channels: int, size: tuple[int, int], shape: GeneratorShape, classes: int | None):
        super().__init__()
        doublings = max(0, (ceil(max(size) / START) - 1).bit_length())
        widths = [shape.widths[0]] * (doublings + 1 - len(shape.widths)) + shape.widths[-(doublings + 1):]
        self.size, self.latent = tuple(size), shape.latent
        self.grid = tuple(ceil(side / 2**doublings) for side in size)
        self.encoder = nn.Embedding(classes, shape.embedding) if classes else None
        vector = shape.embedding if classes else 0
        self.start = nn.ConvTranspose2d(shape.latent, 2 * widths[0], self.grid, bias=False)
        self.norm = ConditionalBatchNorm(2 * widths[0], vector)
        self.blocks = nn.ModuleList(
            nn.ModuleList([Unit(a, b, vector, noisy=True), Unit(b, b, vector, noisy=True)] if k % 2 == 0
                          else [Unit(a, b, vector, noisy=False)])
            for k, (a, b) in enumerate(pairwise(widths))
        )
        self.reach = min(REACH, doublings)
        self.gates = nn.ModuleList(
            Gate(widths[k], widths[k + self.reach], (self.grid[0] * 2**k, self.grid[1] * 2**k))
            for k in range(doublings - self.reach + 1 if doublings else 0)
        )
        self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
        for module in self.modules():                      # Radford et al. 2016, as in FastGAN
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0, 0.02)

    def forward(
        self, z: Tensor, labels: Tensor | None = None, noise: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], float32, from `z` `(n, latent)`, which counts by its direction alone.

        `noise(1, h, w)` gives noise `(n, 1, h, w)`; by default it is fresh.
        """
        draw = noise if noise is not None else lambda *shape: torch.randn(len(z), *shape, device=z.device)
        vector = None if self.encoder is None else self.encoder(labels)
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        x = F.glu(self.norm(self.start(z[:, :, None, None]), vector), dim=1)
        maps = [x]
        for k, block in enumerate(self.blocks, start=1):
            x = F.interpolate(x, scale_factor=2.0)
            for unit in block:  # type: ignore[attr-defined]
                x = unit(x, vector, draw)
            if k >= self.reach:
                x = self.gates[k - self.reach](maps[k - self.reach], x)
            maps.append(x)
        x = self.last(x)
        top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self.size, strict=True))
        return x[:, :, top : top + self.size[0], left : left + self.size[1]].float().tanh()


class Projector(nn.Module):
    """Images to four mixed maps, from fine to coarse; differentiable in the images, without anything that learns.

    Cross-channel mixing is a 1x1 convolution of each map; cross-scale mixing adds to it the coarser mixed map, and
    convolves and doubles the sum (section 3.2). All weights are He-initialized and stay as they are.
    """

    def __init__(self, channels: int, size: tuple[int, int], mixed: int, pretrained: dict[str, Any]):
        super().__init__()
        self.network = Pretrained(**pretrained, option="model.pretrained")
        self.network.check(channels)
        shapes = self.network.shapes(size)
        widths = [mixed * 2**k for k in range(len(shapes))]
        self.over_channels = nn.ModuleList(nn.Conv2d(s[0], b, 1) for s, b in zip(shapes, widths, strict=True))
        finer = [mixed, *widths[:-1]]
        self.over_scales = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, finer, strict=True))
        for module in (*self.over_channels, *self.over_scales):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
        self.requires_grad_(False)
        grids = [(2 * shapes[0][1], 2 * shapes[0][2]), *(shape[1:] for shape in shapes[:-1])]
        self.shapes = [(width, *grid) for width, grid in zip(finer, grids, strict=True)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps `(n, *shapes[k])` of images `(n, c, h, w)`."""
        found: list[Tensor] = []
        x: Tensor | None = None
        maps = [mix(m) for mix, m in zip(self.over_channels, self.network.maps(images), strict=True)]
        for own, mix in zip(reversed(maps), reversed(self.over_scales), strict=True):
            x = own if x is None else own + x
            x = F.interpolate(mix(x), self.shapes[-1 - len(found)][1:], mode="bilinear")
            found.append(x)
        return found[::-1]


class Discriminator(nn.Module):
    """A mixed map to logits of patches: halvings to a grid of at most 8x8, then one convolution of at most 4x4."""

    def __init__(self, width: int, grid: Sequence[int], widths: Sequence[int], classes: int | None):
        super().__init__()
        layers: list[nn.Module] = []
        widths = list(widths)
        while max(grid) > DOWN_TO:
            out = widths.pop(0) if len(widths) > 1 else widths[0]
            stride = (1 + (grid[0] > DOWN_TO), 1 + (grid[1] > DOWN_TO))
            layers += [nn.Conv2d(width, out, (2 + stride[0], 2 + stride[1]), stride, 1, bias=False),
                       nn.BatchNorm2d(out), nn.LeakyReLU(0.2)]
            width, grid = out, (grid[0] // stride[0], grid[1] // stride[1])
        self.layers = nn.Sequential(*layers)
        self.encoder = nn.Embedding(classes, width) if classes else None
        kernel = (min(4, grid[0]), min(4, grid[1]))
        self.last = nn.Conv2d(width, 1 + (width if classes else 0), kernel, bias=False)
        normalise(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits `(n, h, w)`, float32, of a map `(n, width, H, W)` and labels `(n,)`."""
        logits = self.last(self.layers(x)).float()
        if self.encoder is None:
            return logits[:, 0]
        vector = self.encoder(labels)[:, :, None, None]
        return logits[:, 0] + (vector * logits[:, 1:]).sum(1) / vector.shape[1] ** 0.5


class Discriminators(nn.Module):
    """A discriminator for each mixed map, and the projector before them."""

    def __init__(self, channels: int, size: tuple[int, int], shape: Projection, classes: int | None):
        super().__init__()
        self.projector = Projector(channels, size, shape.mixed, shape.pretrained)
        self.heads = nn.ModuleList(
            Discriminator(width, grid, shape.widths, classes) for width, *grid in self.projector.shapes
        )
        self.encoder = self.heads[0].encoder               # what a condition is checked against

    def judge(self, maps: Sequence[Tensor], labels: Tensor | None) -> list[Tensor]:
        """Each discriminator's logits `(n, h, w)` of mixed maps."""
        return [head(m, labels) for head, m in zip(self.heads, maps, strict=True)]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Mean logits `(n,)` of images `(n, c, h, w)`."""
        judged = self.judge(self.projector(images), labels)
        return torch.stack([logits.mean((1, 2)) for logits in judged]).mean(0)


class ProjectedGAN(FromNoise):
    """FastGAN's generator against discriminators over a frozen network, with manual optimization.

    Raises:
        UserError: an option's value is unknown, or the network does not see such images.
    """

    conditions: ClassVar[tuple[str, ...]] = ("none", "label")
    sampling_options: ClassVar[tuple[str, ...]] = ("standing_statistics",)

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",                           # none or label
        generator: GeneratorShape,
        projection: Projection,
        augment: list[str],                                # DiffAugment policies, [] for none
        optimizer: Adams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        if not projection.widths or not generator.widths:
            raise UserError("model.generator_widths and model.discriminator_widths need at least one number each")
        self.loss = adversarial_loss("hinge")
        self.augment = DiffAugment(augment)
        labels = classes if condition == "label" else None
        self.generator = Generator(channels, size, generator, labels)
        self.discriminator = Discriminators(channels, size, projection, labels)
        self.least_batch = 2                               # the coarsest maps may be one position, without variance
        self.ema = EMA(self.generator, **vars(average))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Discriminators, then generator, on the same generated images, projected once."""
        real, labels, n = batch["image"], self.condition_of(batch), len(batch["image"])
        z = torch.randn(n, self.generator.latent, device=self.device)
        project, judge = self.discriminator.projector, self.discriminator.judge
        maps = project(self.augment.draw(n, self.device)(self.generator(z, labels)))
        with self.turn("discriminator") as backward:
            with torch.no_grad():
                real_maps = project(self.augment.draw(n, self.device)(real))
            on_real, on_fake = judge(real_maps, labels), judge([m.detach() for m in maps], labels)
            loss = torch.stack([self.loss.discriminator(*pair) for pair in zip(on_real, on_fake, strict=True)]).sum()
            backward(loss)
        logs = {"loss/discriminator": loss.detach(), "logits/real": _mean(on_real), "logits/fake": _mean(on_fake)}
        with self.turn("generator") as backward:
            judged = judge(maps, labels)
            loss = torch.stack([self.loss.generator(logits, logits) for logits in judged]).sum()
            backward(loss)
        share_statistics(self.generator, self.discriminator)
        return logs | {"loss/generator": loss.detach()}

    def inputs(self, z: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> tuple[Any, ...]:
        """`z`, labels, and the noise of each image's own seed."""
        noise = SeededNoise(seeds, self.device)
        noise(self.generator.latent)                       # z came first in each image's stream
        return z, labels, noise


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """The mean over discriminators of their mean logits, detached."""
    return torch.stack([one.detach().mean() for one in logits]).mean()
