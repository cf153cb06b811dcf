"""A small transformer that reads captions.

Shape suffixes: N batch, L tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.attention import attend


class Layer(nn.Module):
    """Self-attention and a two-layer network, each residual on a normalized input (Xiong et al. 2020)."""

    def __init__(self, width: int, *, heads: int):
        super().__init__()
        assert width % heads == 0, f"width {width} does not divide into {heads} heads"
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """`(N, L, D)` to the same shape; tokens whose mask is False are ignored."""
        n, length, width = x_NLD.shape
        qkv = self.qkv(self.norm1(x_NLD)).view(n, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, mask_NL[:, None, None])
        x_NLD = x_NLD + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x_NLD + self.back(F.gelu(self.hidden(self.norm2(x_NLD))))


class TextTransformer(nn.Module):
    """Maps token numbers to vectors; a start token in front summarizes the text.

    A text without tokens is the start token alone, whose vector is the learned "no text".
    """

    def __init__(
        self,
        vocabulary: int,             # number of entries; entry 0 is the unknown word
        width: int,                  # of tokens
        *,
        layers: int,                 # transformer layers
        heads: int,                  # attention heads of each
        tokens: int,                 # longest text
    ):
        super().__init__()
        self.start = vocabulary
        self.table = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Parameter(0.2 * torch.randn(tokens + 1, width))
        self.layers = nn.ModuleList(Layer(width, heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.table.weight.data[0])  # training may never see an unknown word: keep it neutral

    def forward(self, ids_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers `(N, L)`, padded with -1, to tokens `(N, L + 1, D)`, the start token first, and their mask."""
        ids = F.pad(ids_NL, (1, 0), value=self.start)
        mask = ids >= 0
        x = self.table(ids.clamp(min=0)) + self.places[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x), mask
