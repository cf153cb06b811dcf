"""The transformer that priors over codes, diffusion transformers and readers of captions are made of.

Notable:
- Pre-norm blocks (Xiong et al. 2020); in a `Transformer` each starts as the identity.
- Causal or not; learned positions, or rotary ones (Su et al. 2021) along a line or over the axes of a grid.
- A block may be modulated by a vector, adaLN-Zero (Peebles and Xie 2023), and attend to the tokens of a text.
- Keys and values of tokens that were read before are kept in a `Cache`, one for each pass: a conditional and a null
  pass that shared one would both see the tokens of either.

Shape suffixes: N batch, L tokens, D width, H heads, W width of a head, V length of the vector, A axes, E width of a
text's tokens.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.attention import attend

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}  # forward and backward on a CPU: rms takes 1.5 times as long
POSITIONS = ("learned", "rotary", "none")
Text = tuple[Tensor, Tensor]                        # tokens (N, L, E) and their mask (N, L)


def line_places(length: int) -> Tensor:
    """Places `(L, 1)` of tokens along a line, for rotary positions."""
    return torch.arange(length, dtype=torch.float32)[:, None]


def grid_places(height: int, width: int, *, before: int = 0) -> Tensor:
    """Places `(before + height * width, 2)` of the tokens of a grid, row by row, after a line of `before` tokens.

    Tokens of the line lie on the diagonal, the grid at its end (Wang et al. 2024, Qwen2-VL, section 2.1).
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([rows, columns], dim=-1).view(-1, 2).float() + before
    return torch.cat([line_places(before).expand(-1, 2), grid])


def rotations(places_LA: Tensor, width: int, *, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines `(L, W / 2)` of a rotary embedding; each axis turns its own share of the pairs."""
    axes = places_LA.shape[1]
    assert width % (2 * axes) == 0, f"heads of width {width} do not divide into pairs for {axes} axes"
    pairs = width // (2 * axes)
    rates = base ** -(torch.arange(pairs, device=places_LA.device) / pairs)
    angles = (places_LA[:, :, None] * rates).flatten(1)
    return angles.cos(), angles.sin()


def rotated(x_NHLW: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys with each pair (i, i + W / 2) turned by its angle; products depend on differences of places."""
    cos, sin = turn
    a, b = x_NHLW.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x_NHLW.dtype)


class Cache:
    """Keys and values of the tokens that one pass has read so far, in every layer; for sampling, without gradients."""

    def __init__(self, layers: int, length: int):
        self.length = length                        # most tokens
        self.tokens = 0                             # read so far
        self._kept: list[Tensor | None] = [None] * layers
        self._texts: list[Tensor | None] = [None] * layers

    def extended(self, layer: int, k_NHLW: Tensor, v_NHLW: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer: those kept, followed by the new ones, which are kept as well."""
        new = torch.stack([k_NHLW, v_NHLW])
        kept, end = self._kept[layer], self.tokens + new.shape[-2]
        assert end <= self.length, f"{end} tokens for a cache of {self.length}"
        if kept is None:
            kept = self._kept[layer] = new.new_empty(*new.shape[:-2], self.length, new.shape[-1])
        assert kept.shape[:3] == new.shape[:3], "a cache belongs to the one pass that it was made for"
        kept[..., self.tokens : end, :] = new
        return kept[0, ..., :end, :], kept[1, ..., :end, :]

    def of_text(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """Keys and values of the text that a layer reads: made once, for every token of the pass reads the same."""
        kept = self._texts[layer]
        if kept is None:
            kept = self._texts[layer] = make()
        return kept


class Reading(nn.Module):
    """Attention of tokens to those of a text."""

    def __init__(self, width: int, context: int, *, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(context, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_NLD: Tensor, text: Text, cache: tuple[Cache, int] | None = None) -> Tensor:
        """`(N, L, D)` to the same shape; tokens of the text whose mask is False are ignored."""
        tokens, mask = text
        n, length, width = x_NLD.shape

        def read() -> Tensor:
            return self.key_value(tokens).view(n, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

        q = self.query(x_NLD).view(n, length, self.heads, -1).transpose(1, 2)
        k, v = read() if cache is None else cache[0].of_text(cache[1], read)
        return self.out(attend(q, k, v, mask[:, None, None]).transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """Self-attention, reading of a text if any, and a two-layer network, each residual on a normalized input."""

    def __init__(
        self,
        width: int,                  # of tokens
        *,
        heads: int,                  # of attention
        norm: str = "layer",         # layer | rms
        dropout: float = 0.0,        # share of what each part adds that is dropped
        expansion: int = 4,          # of the two-layer network
        vector: int = 0,             # length of the modulating vector (adaLN-Zero); 0: none
        context: int = 0,            # width of a text's tokens; 0: reads none
    ):
        super().__init__()
        assert width % heads == 0, f"width {width} does not divide into {heads} heads"
        self.heads = heads
        self.norm1, self.norm2 = (NORMS[norm](width, elementwise_affine=not vector) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(vector, 6 * width) if vector else None
        self.norm3 = NORMS[norm](width) if context else None
        self.reading = Reading(width, context, heads=heads) if context else None

    def start_as_identity(self) -> "Block":
        """Sets the gates to zero, or without modulation the last layers; both at once would never move."""
        for layer in (self.qkv, self.out, self.hidden, self.back):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        last = [self.out, self.back] if self.modulation is None else [self.modulation]
        for layer in [*last, *([] if self.reading is None else [self.reading.out])]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return self

    def forward(
        self, x_NLD: Tensor, *, vector_NV: Tensor | None = None, text: Text | None = None,
        mask: Tensor | None = None, causal: bool = False, turn: tuple[Tensor, Tensor] | None = None,
        cache: tuple[Cache, int] | None = None,
    ) -> Tensor:
        """`(N, L, D)` to the same shape; `mask` as of `attend`, `turn` as of `rotated`, `cache` with its layer."""
        a = self.norm1(x_NLD)
        if self.modulation is not None:
            assert vector_NV is not None, "this block was built to be modulated"
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector_NV)[:, None].chunk(6, dim=-1)
            a = torch.addcmul(shift1, a, 1 + scale1)
        mixed = self.dropout(self._attention(a, mask, causal, turn, cache))
        x_NLD = x_NLD + mixed if self.modulation is None else torch.addcmul(x_NLD, gate1, mixed)
        if self.reading is not None:
            assert text is not None and self.norm3 is not None, "this block was built to read texts"
            x_NLD = x_NLD + self.dropout(self.reading(self.norm3(x_NLD), text, cache))
        b = self.norm2(x_NLD)
        if self.modulation is not None:
            b = torch.addcmul(shift2, b, 1 + scale2)
        added = self.dropout(self.back(F.gelu(self.hidden(b))))
        return x_NLD + added if self.modulation is None else torch.addcmul(x_NLD, gate2, added)

    def _attention(
        self, x_NLD: Tensor, mask: Tensor | None, causal: bool, turn: tuple[Tensor, Tensor] | None,
        cache: tuple[Cache, int] | None,
    ) -> Tensor:
        n, length, width = x_NLD.shape
        q, k, v = self.qkv(x_NLD).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        if cache is not None:
            k, v = cache[0].extended(cache[1], k, v)
        mixed = attend(q, k, v, mask, causal=causal, kept=cache is not None and length == 1)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Transformer(nn.Module):
    """Tokens `(N, L, D)` to normalized tokens; embeddings before it and logits after it are a family's own."""

    cos: Tensor                              # (length, W / 2), of rotary positions
    sin: Tensor

    def __init__(
        self,
        width: int,                          # of tokens
        *,
        layers: int,                         # blocks
        heads: int,                          # of attention in each
        length: int,                         # most tokens
        causal: bool = False,                # tokens see themselves and those before them
        positions: str = "learned",          # learned | rotary | none
        places: Tensor | None = None,        # (length, axes) of rotary positions; None: along a line
        norm: str = "layer",                 # layer | rms
        dropout: float = 0.0,                # share dropped of the input and of what each part adds
        expansion: int = 4,                  # of the blocks' two-layer networks
        vector: int = 0,                     # length of the modulating vector (adaLN-Zero); 0: none
        context: int = 0,                    # width of the tokens of a text that is read; 0: none
    ):
        super().__init__()
        assert positions in POSITIONS, f"positions {positions} are none of {POSITIONS}"
        assert norm in NORMS, f"norm {norm} is none of {sorted(NORMS)}"
        self.length, self.causal = length, causal
        self.learned = nn.Parameter(0.02 * torch.randn(length, width)) if positions == "learned" else None
        self.turns = positions == "rotary"
        if self.turns:
            places = line_places(length) if places is None else places
            assert len(places) == length, f"{len(places)} places for {length} tokens"
            for name, values in zip(("cos", "sin"), rotations(places, width // heads), strict=True):
                self.register_buffer(name, values, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            Block(
                width, heads=heads, norm=norm, dropout=dropout, expansion=expansion, vector=vector, context=context
            ).start_as_identity()
            for _ in range(layers)
        )
        self.norm = NORMS[norm](width)

    def cache(self) -> Cache:
        """A new cache: one for each pass that reads tokens one after the other."""
        assert self.causal, "tokens that see those after them cannot be kept"
        return Cache(len(self.layers), self.length)

    def forward(
        self, x_NLD: Tensor, *, vector_NV: Tensor | None = None, text: Text | None = None,
        mask_NL: Tensor | None = None, cache: Cache | None = None,
    ) -> Tensor:
        """`(N, L, D)` to the same shape, normalized.

        With a `cache` the tokens are those that follow the ones that it has read. Tokens whose `mask_NL` is False are
        not looked at; it does not go with a cache.
        """
        start = 0 if cache is None else cache.tokens
        end = start + x_NLD.shape[1]
        assert end <= self.length, f"{end} tokens for a transformer of {self.length}"
        assert mask_NL is None or cache is None, "a mask does not go with a cache"
        causal, mask = self.causal and start == 0 and mask_NL is None, None
        if self.causal and not causal and (mask_NL is not None or end - start > 1):
            mask = torch.ones(end - start, end, dtype=torch.bool, device=x_NLD.device).tril(start)
        if mask_NL is not None:
            seen = mask_NL[:, None, None]
            mask = seen if mask is None else mask & seen
        turn = (self.cos[start:end], self.sin[start:end]) if self.turns else None
        x = x_NLD if self.learned is None else x_NLD + self.learned[start:end]
        x = self.dropout(x)
        for number, layer in enumerate(self.layers):
            x = layer(x, vector_NV=vector_NV, text=text, mask=mask, causal=causal, turn=turn,
                      cache=None if cache is None else (cache, number))
        if cache is not None:
            cache.tokens = end
        return self.norm(x)
