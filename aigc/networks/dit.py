"""The diffusion transformer (Peebles and Xie 2023): patches of an image, or of a grid of latents, as tokens.

Notable:
- Fixed sine positions in two dimensions (the MAE's, He et al. 2022), added to the tokens once.
- Time and condition form one vector that shifts, scales and gates every block (adaLN-Zero): at the start every block
  is the identity and the output exactly zero.
- Any height and width: the input is padded to whole patches, and the output cropped back.
- Texts, if any, are read by cross-attention in every block (Chen et al. 2024, PixArt-alpha), which starts as zero too.

Shape suffixes: N batch, C channels, H height, W width, L tokens, D their width, P patch, V length of the vector.
"""

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.transformer import Block, Text
from aigc.networks.unet import clock_features, silence


def patchify(x_NCHW: Tensor, patch: int) -> Tensor:
    """Patches of an image as tokens `(N, L, C * patch^2)`, row by row; sides are multiples of `patch`."""
    return F.pixel_unshuffle(x_NCHW, patch).flatten(2).transpose(1, 2)


def unpatchify(x_NLD: Tensor, patch: int, grid: Sequence[int]) -> Tensor:
    """The image whose `patchify` these tokens are; `grid` are its height and width in patches."""
    return F.pixel_shuffle(x_NLD.transpose(1, 2).unflatten(2, tuple(grid)), patch)


def sine_positions(height: int, width: int, features: int) -> Tensor:
    """Positions `(height * width, features)` of a grid: one half for rows and one for columns, sines and cosines."""
    assert features % 4 == 0, f"{features} features are no multiple of 4"
    rates = 10000.0 ** -(torch.arange(features // 4) / (features // 4))
    rows, columns = (torch.outer(torch.arange(side).float(), rates) for side in (height, width))
    rows, columns = (torch.cat([a.sin(), a.cos()], dim=1) for a in (rows, columns))
    both = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat(both, dim=2).flatten(0, 1)


class DiT(nn.Module):
    """Images, times and vectors to images of the same size, as `UNet`."""

    places: Tensor                           # (L, D), fixed

    def __init__(
        self,
        channels: int,                       # image channels, in and out
        size: Sequence[int],                 # (height, width) of the images
        width: int,                          # of tokens, a multiple of 4
        *,
        layers: int,                         # blocks
        heads: int,                          # of attention in each
        patch: int = 2,                      # side of a patch: halving it costs four times the work, or more
        dropout: float = 0.0,                # share dropped of what each part of a block adds
        context: int = 0,                    # width of the tokens of a text that is read; 0: none
    ):
        super().__init__()
        self.patch, self.vector = patch, width
        self.grid = [ceil(side / patch) for side in size]
        self.clock = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(channels * patch**2, width)
        self.register_buffer("places", sine_positions(self.grid[0], self.grid[1], width), persistent=False)
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, dropout=dropout, vector=width, context=context).start_as_identity()
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * patch**2)
        nn.init.xavier_uniform_(self.stem.weight)
        nn.init.zeros_(self.stem.bias)
        silence(self.modulation)
        silence(self.out)

    def forward(
        self, x_NCHW: Tensor, clock_N: Tensor, vector_NV: Tensor | None = None, text: Text | None = None
    ) -> Tensor:
        """Images `(N, C, H, W)`, times `(N,)` in about [-1, 1] and conditions `(N, D)` to images.

        `text`: tokens `(N, l, E)` and their mask `(N, l)`, where it was built to read them.
        """
        h, w = x_NCHW.shape[-2:]
        rows, columns = self.grid
        assert -(-h // self.patch) == rows and -(-w // self.patch) == columns, f"{h} x {w} for a grid of {self.grid}"
        given = self.clock(clock_features(clock_N, self.vector))
        given = F.silu(given if vector_NV is None else given + vector_NV)
        x = F.pad(x_NCHW, (0, columns * self.patch - w, 0, rows * self.patch - h))
        x = self.stem(patchify(x, self.patch)) + self.places
        for block in self.blocks:
            x = block(x, vector_NV=given, text=text)
        shift, scale = self.modulation(given)[:, None].chunk(2, dim=-1)
        x = self.out(torch.addcmul(shift, self.norm(x), 1 + scale))
        return unpatchify(x, self.patch, self.grid)[..., :h, :w]

    def matrices(self) -> list[Tensor]:
        """The weight matrices of the blocks that act on tokens."""
        layers = [layer for block in self.blocks for layer in (block.qkv, block.out, block.hidden, block.back)]
        return [layer.weight for layer in layers]  # type: ignore[misc, union-attr]
