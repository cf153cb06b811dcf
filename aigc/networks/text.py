"""A small transformer that reads captions.

Shape suffixes: N batch, L tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.transformer import Block


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
        self.layers = nn.ModuleList(Block(width, heads=heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.table.weight.data[0])  # training may never see an unknown word: keep it neutral

    def forward(self, ids_NL: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers `(N, L)`, padded with -1, to tokens `(N, L + 1, D)`, the start token first, and their mask."""
        ids = F.pad(ids_NL, (1, 0), value=self.start)
        mask = ids >= 0
        x = self.table(ids.clamp(min=0)) + self.places[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, mask=mask[:, None, None])
        return self.norm(x), mask
