"""BigGAN (Brock et al. 2019): spectral norm, attention, a shared embedding of classes and a latent for every block.

Notable here:
- one embedding of the label serves all batch norms of the generator; z is split, and block i reads chunk i beside it
- with condition=text, the vector of a transformer that reads the caption is that embedding, each network's own, and
  the projection is on it
- spectral norm on every layer of both networks but the generator's embedding and what reads texts up to its vector;
  its vectors are in the checkpoint, and the averaged generator has its own (networks/ema.py)
- weights start orthogonal; optionally a penalty keeps them nearly so
- several discriminator steps per generator step, which draws z and y anew; a batch can be taken in pieces
- truncation draws again what lies outside, and standing statistics are measured with it
- any size and channel count: the starting grid is derived from the size, the last rows and columns are cropped
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import TextEncoder
from aigc.errors import UserError, check_choices
from aigc.losses.adversarial import adversarial_loss
from aigc.losses.diff_augment import DiffAugment
from aigc.models.family import Batch
from aigc.models.from_noise import FromNoise
from aigc.models.options import Average, Reading, Schedule, group, grouped, option
from aigc.models.two_player import ClippedAdams
from aigc.networks.batch_norm import share_statistics
from aigc.networks.ema import EMA
from aigc.networks.resnet import ResizeConvolution
from aigc.networks.spectral_norm import WEIGHTED, normalise, own_weight
from aigc.noise import SeededNoise

START = 8                                                  # a larger starting grid gets one more block
LEAST_TRUNCATION = 0.01                                    # below, hundreds of draws fall outside for one inside


@group()
class GeneratorShape:
    """Of the generator."""

    chunk: int                                             # of z, which has one for the first layer and one per block
    shared: int                                            # length of a label's embedding
    widths: list[int] = option("generator_widths")         # at the starting grid, then after each block; each doubles


@group(prefix="discriminator_")
class DiscriminatorShape:
    """Of the discriminator."""

    widths: list[int]                                      # after each block; further ones are as wide as the last
    down: str                                              # pool: averages after two convolutions; strided: the first
    grid: int                                              # blocks halve sides that are longer
    head: str                                              # sum or mean over the last grid


class BlockNorm(nn.Module):
    """Batch norm of a block: gain 1 + A v, bias B v, where v joins the shared embedding and the block's part of z."""

    def __init__(self, features: int, vector: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(features, affine=False)
        self.gain = nn.Linear(vector, features, bias=False)
        self.bias = nn.Linear(vector, features, bias=False)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """`x` `(n, features, h, w)`, `vector` `(n, vector)`."""
        x = self.norm(x)
        gain, bias = (layer(vector)[:, :, None, None].to(x.dtype) for layer in (self.gain, self.bias))
        return torch.addcmul(bias + x, gain, x)


class SelfAttention(nn.Module):
    """x + gain * attention (Zhang et al. 2019): queries at every position, keys and values at a quarter of them."""

    def __init__(self, width: int):
        super().__init__()
        self.theta = nn.Conv2d(width, max(1, width // 8), 1, bias=False)
        self.phi = nn.Conv2d(width, max(1, width // 8), 1, bias=False)
        self.g = nn.Conv2d(width, max(1, width // 2), 1, bias=False)
        self.out = nn.Conv2d(max(1, width // 2), width, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))          # attention comes in as training finds it useful

    def forward(self, x: Tensor) -> Tensor:
        """`(n, width, h, w)` to the same shape."""
        window = [min(2, side) for side in x.shape[2:]]
        q = self.theta(x).flatten(2)                       # (n, width / 8, positions)
        k = F.max_pool2d(self.phi(x), window).flatten(2)
        v = F.max_pool2d(self.g(x), window).flatten(2)     # (n, width / 2, positions / 4)
        share = (q.mT @ k).float().softmax(2)              # products are not scaled
        seen = (v @ share.mT).unflatten(2, x.shape[2:])
        return x + self.gain * self.out(seen)


class UpBlock(nn.Module):
    """Norm, ReLU, doubling, convolution, norm, ReLU, convolution; plus the doubled input, 1x1."""

    def __init__(self, inputs: int, outputs: int, vector: int):
        super().__init__()
        self.norm1, self.up = BlockNorm(inputs, vector), ResizeConvolution(inputs, outputs)
        self.norm2, self.conv = BlockNorm(outputs, vector), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """`(n, inputs, h, w)` to `(n, outputs, 2 h, 2 w)`."""
        y = self.up(F.relu(self.norm1(x, vector)))
        y = self.conv(F.relu(self.norm2(y, vector)))
        return y + F.interpolate(self.skip(x), scale_factor=2.0)    # 1x1 and nearest neighbours commute


class DownBlock(nn.Module):
    """ReLU (not on pixels), convolution, ReLU, convolution, halving; plus the halved input, 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], *, strided: bool, pixels: bool):
        super().__init__()
        self.stride, self.pixels, self.pool = stride, pixels, not strided
        kernel, by = ((2 + stride[0], 2 + stride[1]), stride) if strided else (3, 1)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, by, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or max(stride) > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`(n, inputs, h, w)` to `(n, outputs, h / stride, w / stride)`."""
        y = self.conv2(F.relu(self.conv1(x if self.pixels else F.relu(x))))
        return (F.avg_pool2d(y, self.stride) if self.pool else y) + self.skip(F.avg_pool2d(x, self.stride))


class Generator(nn.Module):
    """z and label to image: the first chunk of z fills the starting grid, and every block reads one of the others."""

    def __init__(
        self, channels: int, size: tuple[int, int], shape: GeneratorShape, reading: Reading, attention: int | None
    ):
        super().__init__()
        widths = list(shape.widths)
        while ceil(max(size) / 2 ** (len(widths) - 1)) > START:
            widths = [widths[0], *widths]
        blocks = len(widths) - 1
        if attention is not None and not 1 <= attention <= blocks:
            raise UserError(f"model.attention={attention} is no grid of a generator that doubles {blocks} times: give "
                            f"a number of halvings from 1 to {blocks}, or null")
        self.size, self.chunk, self.latent = tuple(size), shape.chunk, shape.chunk * (blocks + 1)
        self.grid = tuple(ceil(side / 2**blocks) for side in size)
        self.encoder = embedding(reading, shape.shared)
        vector = shape.chunk + (0 if self.encoder is None else shape.shared)
        self.start = nn.Linear(shape.chunk, widths[0] * self.grid[0] * self.grid[1])
        self.blocks = nn.ModuleList(UpBlock(a, b, vector) for a, b in pairwise(widths))
        self.attend_after = None if attention is None else blocks - 1 - attention    # -1: on the starting grid
        self.attention = nn.Identity() if attention is None else SelfAttention(widths[blocks - attention])
        self.norm, self.last = nn.BatchNorm2d(widths[-1]), nn.Conv2d(widths[-1], channels, 3, padding=1)
        orthogonal(self, leave=texts_of(self))
        normalise(self, leave=[self.encoder, *texts_of(self)])

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1], float32, from `z` `(n, latent)` and labels `(n,)` or texts `(n, L)`."""
        first, *chunks = z.split(self.chunk, dim=1)
        shared = [] if self.encoder is None else [vectors(self.encoder, labels, len(z))]
        x = self.start(first).unflatten(1, (-1, *self.grid))
        x = self.attention(x) if self.attend_after == -1 else x
        for k, (block, chunk) in enumerate(zip(self.blocks, chunks, strict=True)):
            x = block(x, torch.cat([*shared, chunk], dim=1))
            x = self.attention(x) if self.attend_after == k else x
        x = self.last(F.relu(self.norm(x)))
        top, left = ((have - want) // 2 for have, want in zip(x.shape[2:], self.size, strict=True))
        return x[:, :, top : top + self.size[0], left : left + self.size[1]].float().tanh()


class Discriminator(nn.Module):
    """Image and label to logit: residual blocks, then a linear layer plus the projection on the label's embedding."""

    def __init__(
        self, channels: int, size: tuple[int, int], shape: DiscriminatorShape, reading: Reading, attention: int | None
    ):
        super().__init__()
        self.mean = shape.head == "mean"
        layers: list[nn.Module] = []
        widths, grid, width, halvings = list(shape.widths), (size[0], size[1]), channels, 0
        while widths or max(grid) > shape.grid:
            out = widths.pop(0) if widths else width
            stride = (1 + (grid[0] > shape.grid), 1 + (grid[1] > shape.grid))
            layers += [DownBlock(width, out, stride, strided=shape.down == "strided", pixels=not layers)]
            grid, width, halvings = (grid[0] // stride[0], grid[1] // stride[1]), out, halvings + (max(stride) > 1)
            if halvings == attention and max(stride) > 1:
                layers += [SelfAttention(out)]
        if attention is not None and halvings < attention:
            raise UserError(f"model.attention={attention} is no grid of a discriminator that halves {halvings} times: "
                            "give fewer halvings, or null")
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 1)
        self.encoder = embedding(reading, width)
        texts = texts_of(self)
        orthogonal(self, leave=texts)
        normalise(self, leave=[module for module in texts if module is not self.encoder.pool] if texts else ())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits `(n,)`, float32, for `images` `(n, c, h, w)` and labels `(n,)` or texts `(n, L)`."""
        x = F.relu(self.layers(images)).float()
        x = x.mean((2, 3)) if self.mean else x.sum((2, 3))
        logits = self.head(x).squeeze(1).float()
        return logits if self.encoder is None else logits + (vectors(self.encoder, labels, len(x)) * x).sum(1)


class BigGAN(FromNoise):
    """A large conditional generator against a residual discriminator, with manual optimization.

    Raises:
        UserError: an option's value is unknown or out of range.
    """

    conditions: ClassVar[tuple[str, ...]] = ("none", "label", "text")

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        reading: Reading,
        generator: GeneratorShape,
        discriminator: DiscriminatorShape,
        attention: int | None,                             # halvings of the size at which both attend, None: nowhere
        loss: str,                                         # hinge, nonsaturating or least_squares
        orthogonality: float,                              # weight of the penalty on both networks, 0: none
        generator_every: int,                              # discriminator steps per generator step
        accumulate: int,                                   # pieces of a batch, each with batch statistics of its own
        augment: list[str],                                # DiffAugment policies, [] for none
        optimizer: ClippedAdams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((
            ("discriminator_down", discriminator.down, ("pool", "strided")),
            ("discriminator_head", discriminator.head, ("sum", "mean")),
            ("loss", loss, ("hinge", "nonsaturating", "least_squares")),
        ))
        for name, value in (("generator_every", generator_every), ("accumulate", accumulate)):
            if value < 1:
                raise UserError(f"model.{name}={value} leaves no step: give a whole number from 1 on")
        self.loss = adversarial_loss(loss)
        self.augment = DiffAugment(augment)
        self.generator = Generator(channels, size, generator, reading, attention)
        self.discriminator = Discriminator(channels, size, discriminator, reading, attention)
        self.least_batch = accumulate * (2 if self.generator.grid == (1, 1) else 1)  # one value has no variance
        self.ema = EMA(self.generator, **vars(average))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """A step of the discriminator, and on every `generator_every`-th batch one of the generator."""
        real, labels = batch["image"], self.told(batch)
        logs = self.learn("discriminator", self.discriminator_loss, real, labels)
        if self.progress.batches % self.hparams.generator_every == 0:
            logs |= self.learn("generator", self.generator_loss, real, labels)
        share_statistics(self.generator)
        return logs

    def learn(
        self, player: str, loss_of: Callable[..., dict[str, Tensor]], real: Tensor, labels: Tensor | None
    ) -> dict[str, Tensor]:
        """A player's step on a batch in `accumulate` pieces, whose gradients add up to those of the whole batch."""
        logs: dict[str, Tensor] = {}
        pieces = real.tensor_split(self.hparams.accumulate)
        told = [None] * len(pieces) if labels is None else labels.tensor_split(self.hparams.accumulate)
        with self.turn(player) as backward:
            for piece, some in zip(pieces, told, strict=True):
                share, found = len(piece) / len(real), loss_of(piece, some)
                backward(share * found["loss"])
                for name, value in found.items():
                    logs[name] = logs.get(name, 0) + share * value.detach()
        loss = logs.pop("loss")
        return {f"loss/{player}": loss, **logs}

    def draw(self, n: int, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`z` `(n, latent)` and conditions for n images, drawn from a batch's own: as frequent as in the data."""
        z = torch.randn(n, self.generator.latent, device=self.device)
        return z, None if labels is None else labels[torch.randint(n, (n,), device=self.device)]

    def discriminator_loss(self, real: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The discriminator's loss and its logs on real images `(n, c, h, w)` and as many generated ones."""
        n = len(real)
        z, drawn = self.draw(n, labels)
        with torch.no_grad():
            fake = self.generator(z, drawn)
        transform = self.augment.draw(n, self.device)
        both = None if labels is None or drawn is None else torch.cat([labels, drawn])
        on_real, on_fake = self.discriminator(torch.cat([transform(real), transform(fake)]), both).chunk(2)
        loss = self.loss.discriminator(on_real, on_fake) + self.penalty(self.discriminator)
        return {"loss": loss, "logits/real": on_real.mean(), "logits/fake": on_fake.mean()}

    def generator_loss(self, real: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        """The generator's loss on as many new images as there are real ones."""
        n = len(real)
        z, drawn = self.draw(n, labels)
        on_fake = self.discriminator(self.augment.draw(n, self.device)(self.generator(z, drawn)), drawn)
        return {"loss": self.loss.generator(on_fake, on_fake) + self.penalty(self.generator)}

    def penalty(self, network: nn.Module) -> Tensor | float:
        """The weighted penalty on weights of `network` that are not orthogonal."""
        weight = self.hparams.orthogonality
        return weight * non_orthogonality(network) if weight else 0.0

    def latents(self, seeds: Sequence[int], truncation: float | None = None) -> Tensor:
        """`z` of these seeds, `(n, latent)`; numbers beyond +-truncation are drawn again from their image's stream.

        Raises:
            UserError: the truncation is not a number from 0.01 on.
        """
        if truncation is not None and not truncation >= LEAST_TRUNCATION:
            raise UserError(f"truncation={truncation} leaves hardly any latents: give a number from "
                            f"{LEAST_TRUNCATION} on, e.g. 1")
        noise = SeededNoise(seeds)
        z = noise(self.generator.latent)
        while truncation is not None and (outside := z.abs() > truncation).any():
            z = torch.where(outside, noise(self.generator.latent), z)
        return z


def embedding(reading: Reading, width: int) -> Any:
    """What a condition's vector of this length comes from: an embedding of classes, or what reads texts; or None."""
    if reading.condition == "label":
        assert reading.classes, "condition=label needs data with classes"
        return nn.Embedding(reading.classes, width)
    return reading.reader(width)


def vectors(encoder: nn.Module, condition: Tensor | None, n: int) -> Tensor:
    """Vectors `(n, width)` of labels `(n,)`, or of texts `(n, L)`."""
    return encoder(condition, n=n) if isinstance(encoder, TextEncoder) else encoder(condition)


def texts_of(network: Any) -> list[nn.Module]:
    """The modules of a network's encoder that read texts."""
    encoder = getattr(network, "encoder", None)
    return [*encoder.modules()] if isinstance(encoder, TextEncoder) else []


def orthogonal(network: nn.Module, *, leave: Sequence[nn.Module] = ()) -> None:
    """Weights with orthonormal rows, or columns where there are more rows (Saxe et al. 2014); biases 0."""
    left = {id(module) for module in leave}
    for module in network.modules():
        if isinstance(module, WEIGHTED) and id(module) not in left:
            nn.init.orthogonal_(module.weight)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)


def non_orthogonality(network: nn.Module) -> Tensor:
    """Squared products of different rows of every weight but embeddings, summed (Brock et al. 2019, equation 3).

    Of the weights themselves, which spectral norm divides later, and in float32; what reads texts is left out.
    """
    found = torch.zeros((), device=next(network.parameters()).device)
    texts = {id(module) for module in texts_of(network)}
    with torch.autocast(found.device.type, enabled=False):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in texts:
                rows = own_weight(module).flatten(1)
                gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows    # of one Frobenius norm
                found = found + gram.square().sum() - rows.square().sum(1).square().sum()
    return found
