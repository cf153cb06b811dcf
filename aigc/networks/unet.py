"""The U-Net of the diffusion family, laid out for speed on a CPU as well as on a GPU.

Notable:
- A stem of space-to-depth blocks (`patch`, as in Hoogeboom et al. 2023, simple diffusion): a 3x3 convolution of width
  48 at 14 px needs as many operations as one of width 24 at 28 px but took 4.6 instead of 10.8 ms (forward and
  backward, bf16, batch 64, two cores). Convolutions take 71% of a training step.
- Widths are multiples of 16, the block size of the CPU's bf16 convolutions (24 channels cost more than 32).
- Time and condition form one vector that scales and shifts after the second normalization (Dhariwal and Nichol 2021).
- Any height and width: the input is padded as the halvings require, and the output cropped back.
- Texts, if any, are read by cross-attention (Rombach et al. 2022) at the chosen levels.

Shape suffixes: N batch, C channels, H height, W width, T positions (H * W), D length of the vector, L tokens of a
text, E their width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.attention import attend


def clock_features(clock_N: Tensor, width: int, *, slowest: float = 0.25, fastest: float = 32.0) -> Tensor:
    """Cosines and sines of times in about [-1, 1], `(N, width)`; `slowest` to `fastest` cycles per unit of time."""
    steps = torch.linspace(math.log(slowest), math.log(fastest), width // 2, device=clock_N.device)
    angles = 2 * math.pi * clock_N.float()[:, None] * steps.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def groups_for(channels: int) -> int:
    """Number of groups for `channels`: a divisor, at most 32, with at least 8 channels per group."""
    return math.gcd(32, max(1, channels // 8)) if channels % 8 == 0 else 1


def silence(layer: nn.Module) -> None:
    """Sets a layer's weights and bias to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Block(nn.Module):
    """Residual block of two convolutions; the vector scales and shifts between them."""

    def __init__(
        self,
        inputs: int,                 # channels in
        outputs: int,                # channels out
        *,
        vector: int,                 # length of the modulating vector
        heads: int = 0,              # heads of self-attention after the convolutions; 0: none
        reads: int = 0,              # heads of cross-attention to a text's tokens, at the end; 0: none
        context: int = 0,            # width of a text's tokens
        dropout: float = 0.0,        # share of activations dropped before the second convolution
        kernel: int = 3,             # side of the convolutions
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups_for(inputs), inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.modulation = nn.Linear(vector, 2 * outputs)
        self.norm2 = nn.GroupNorm(groups_for(outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel, padding=kernel // 2)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention = Attention(outputs, heads=heads) if heads else nn.Identity()
        self.reading = CrossAttention(outputs, context, heads=reads) if reads else None
        silence(self.conv2)  # every block starts as the identity (Ho et al. 2020)

    def forward(self, x_NCHW: Tensor, vector_ND: Tensor, text: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`(N, inputs, H, W)` and `(N, vector)` to `(N, outputs, H, W)`; `text`: tokens `(N, L, E)`, mask `(N, L)`."""
        hidden = self.conv1(F.silu(self.norm1(x_NCHW)))
        scale, shift = self.modulation(vector_ND)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.norm2(hidden), 1 + scale)
        hidden = self.conv2(self.dropout(F.silu(hidden)))
        x_NCHW = self.attention(self.skip(x_NCHW) + hidden)
        if self.reading is None:
            return x_NCHW
        assert text is not None, "this U-Net was built to read texts"
        return self.reading(x_NCHW, *text)


class Attention(nn.Module):
    """Self-attention over positions, residual, starting as the identity."""

    def __init__(self, channels: int, *, heads: int):
        super().__init__()
        assert channels % heads == 0, f"{channels} channels do not divide into {heads} heads"
        self.heads = heads
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        silence(self.out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same."""
        n, c, h, w = x_NCHW.shape
        qkv = self.qkv(self.norm(x_NCHW)).view(n, 3, self.heads, c // self.heads, h * w).transpose(3, 4)
        mixed = attend(*qkv.unbind(1))  # (N, heads, T, C / heads)
        return x_NCHW + self.out(mixed.transpose(2, 3).reshape(n, c, h, w))


class CrossAttention(nn.Module):
    """Attention of positions to a text's tokens, residual, starting as the identity."""

    def __init__(self, channels: int, context: int, *, heads: int):
        super().__init__()
        assert channels % heads == 0, f"{channels} channels do not divide into {heads} heads"
        self.heads = heads
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Linear(context, 2 * channels)
        self.out = nn.Conv2d(channels, channels, 1)
        silence(self.out)

    def forward(self, x_NCHW: Tensor, tokens_NLE: Tensor, mask_NL: Tensor) -> Tensor:
        """`(N, C, H, W)` to the same shape; tokens whose mask is False are ignored."""
        n, c, h, w = x_NCHW.shape
        q = self.query(self.norm(x_NCHW)).view(n, self.heads, c // self.heads, h * w).transpose(2, 3)
        k, v = self.key_value(tokens_NLE).view(n, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, mask_NL[:, None, None])
        return x_NCHW + self.out(mixed.transpose(2, 3).reshape(n, c, h, w))


class UNet(nn.Module):
    """Images and a vector to images of the same size; `multipliers` has an entry per level, each half the size."""

    def __init__(
        self,
        channels: int,                             # image channels, in and out
        width: int,                                # channels at the finest level, best a multiple of 16
        *,
        multipliers: Sequence[int] = (1, 2),       # width of each level as a multiple of `width`
        blocks: int | Sequence[int] = 1,           # residual blocks per level, down and up
        middle: int = 1,                           # residual blocks at the coarsest level between down and up
        patch: int = 1,                            # space-to-depth block of the stem: 1, 2, 4
        attention: Sequence[int] = (),             # levels with self-attention; 0 is the finest
        cross_attention: Sequence[int] = (),       # levels that attend to a text's tokens
        context: int = 0,                          # width of these tokens
        head: int = 32,                            # channels per attention head
        vector: int = 128,                         # length of the vector for time and condition
        dropout: float = 0.0,                      # share of activations dropped in every block
        kernel: int = 3,                           # side of the convolutions; 1 for grids of 1 x 1
        joined: int = 0,                           # further input channels, of a picture to look at
        skip_scale: float = 1.0,                   # of what down passes on to up; Saharia et al. 2022: 1/sqrt 2
    ):
        super().__init__()
        counts = [blocks] * len(multipliers) if isinstance(blocks, int) else list(blocks)
        assert len(counts) == len(multipliers), f"blocks {counts} for {len(multipliers)} levels"
        assert min(counts) >= 1, f"blocks {counts}: every level needs at least one"
        for name, levels in (("attention", attention), ("cross_attention", cross_attention)):
            assert all(0 <= level < len(multipliers) for level in levels), f"{name} {levels}: no such level"
        assert context or not cross_attention, "cross_attention needs tokens to look at"
        widths = [width * m for m in multipliers]
        self.patch, self.multiple, self.vector = patch, patch * 2 ** (len(widths) - 1), vector
        self.skip_scale = skip_scale

        def block(inputs: int, level: int) -> Block:
            heads = max(1, widths[level] // head)
            return Block(
                inputs, widths[level], vector=vector, dropout=dropout, kernel=kernel, context=context,
                heads=heads if level in attention else 0, reads=heads if level in cross_attention else 0,
            )

        self.clock = nn.Sequential(nn.Linear(vector, vector), nn.SiLU(), nn.Linear(vector, vector))
        self.stem = nn.Conv2d((channels + joined) * patch**2, width, kernel, padding=kernel // 2)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()  # layers, one list per level, finest first
        for level, count in enumerate(counts):
            first = widths[max(0, level - 1)]
            shrink = [nn.Conv2d(first, widths[level], 3, stride=2, padding=1)] if level else []
            self.down.append(nn.ModuleList([*shrink, *(block(widths[level], level) for _ in range(count))]))
        self.middle = nn.ModuleList(block(widths[-1], len(widths) - 1) for _ in range(middle))
        for level, count in enumerate(counts):
            wide = [2 * widths[level]] + [widths[level]] * (count - 1)  # the skip is concatenated once per level
            grow = [nn.Conv2d(widths[level], widths[level - 1], 1)] if level else []  # before enlarging: cheaper
            self.up.append(nn.ModuleList([*(block(inputs, level) for inputs in wide), *grow]))
        self.norm = nn.GroupNorm(groups_for(width), width)
        self.out = nn.Conv2d(width, channels * patch**2, kernel, padding=kernel // 2)
        silence(self.out)

    def forward(
        self, x_NCHW: Tensor, clock_N: Tensor, vector_ND: Tensor | None = None,
        text: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Any-size images `(N, C, H, W)`, times `(N,)` in about [-1, 1] and conditions `(N, vector)` to images.

        The input also has the `joined` channels, after those of the image.

        `text`: tokens `(N, L, E)` and their mask `(N, L)`, for levels with cross-attention.
        """
        h, w = x_NCHW.shape[-2:]
        embedded = self.clock(clock_features(clock_N, self.vector))
        if vector_ND is not None:
            embedded = embedded + vector_ND
        embedded = F.silu(embedded)

        x = F.pad(x_NCHW, (0, -w % self.multiple, 0, -h % self.multiple))
        x = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = []
        for level in self.down:
            for layer in level.children():
                x = layer(x, embedded, text) if isinstance(layer, Block) else layer(x)
            skips.append(x if self.skip_scale == 1 else x * self.skip_scale)
        for layer in self.middle:
            x = layer(x, embedded, text)
        for level in reversed(self.up):
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in level.children():
                x = layer(x, embedded, text) if isinstance(layer, Block) else F.interpolate(layer(x), scale_factor=2.0)
        x = self.out(F.silu(self.norm(x)))
        return F.pixel_shuffle(x, self.patch)[..., :h, :w]
