"""Texts as conditions: an encoder trained with the family, or a frozen one from another package."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unicodedata import category

import torch
from torch import Tensor, nn

from aigc.conditions.frozen import load_frozen, shortened
from aigc.conditions.vocabulary import Tokenizer
from aigc.errors import UserError
from aigc.networks.text import TextTransformer


class Reader(nn.Module):
    """What reads texts, as token numbers."""

    tokens: int                             # longest text; longer ones are truncated
    tokenizer: Tokenizer | None             # None: of another package

    def numbers(self, text: str) -> list[int]:
        """Token numbers of a whole text; none for an empty one."""
        assert self.tokenizer is not None
        return self.tokenizer(text)

    def shortened(self, row: list[int]) -> list[int]:
        """The numbers that are read of a text's."""
        return row[: self.tokens]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token numbers `(n, L)` int64 on this module's device, padded with -1; L <= `tokens`."""
        rows = [self.shortened(self.numbers(text)) for text in texts]
        ids = torch.full((len(rows), max(map(len, rows), default=0)), -1)
        for k, row in enumerate(rows):
            ids[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids.to(next(self.parameters()).device)

    def warnings(self, texts: Sequence[str]) -> list[str]:
        """One line per surprise in these texts: what is truncated, which words are unknown."""
        lines = []
        long = [text for text in dict.fromkeys(texts) if len(self.numbers(text)) > self.tokens]
        if long:
            lines.append(f"{len(long)} of the prompts cut off after {self.tokens} tokens: '{long[0][:40]}...'")
        unknown = [] if self.tokenizer is None else [word for text in texts for word in self.tokenizer.unknown(text)]
        if words := [word for word in dict.fromkeys(unknown) if category(word[0])[0] != "P"]:  # ignores punctuation
            lines.append(f"not in the training captions, so meaningless to the model: {', '.join(words)}")
        return lines


class TextEncoder(Reader):
    """Maps each text to a vector, and to tokens with a mask.

    An empty or dropped text means no condition: it becomes the learned null vector and the start token alone. Padding
    changes nothing, so a text gives the same result beside longer ones.

    A frozen encoder is loaded by name, neither trained nor stored, and identified by a fingerprint of its weights; a
    projection of its tokens and of their mean is trained.
    """

    fingerprint: Tensor
    _kept: list[tuple[Tensor, tuple[Tensor, Tensor | None, Tensor]]] | None = None  # what was read, while `read_once`

    def __init__(
        self,
        output: int,                        # length of the vector
        *,
        vocabulary: Sequence[str] | None,   # of the training captions; None with a frozen encoder
        attended: bool,                     # whether tokens are used besides the vector
        encoder: str,                       # own | transformers | open_clip
        name: str | None,                   # of a frozen encoder, or its local path
        words: str,                         # kind of vocabulary: words | bytepairs
        size: int,                          # largest vocabulary (used in aigc/training/fit.py, which builds it)
        tokens: int,                        # longest text; longer ones are truncated
        width: int,                         # of a token's vector
        layers: int,                        # transformer layers of the own encoder
        heads: int,                         # attention heads per layer
    ):
        super().__init__()
        self.width = width
        if encoder == "own":
            assert vocabulary, "condition=text needs a vocabulary of the training captions"
            self.frozen, self.tokens = None, tokens
            self.tokenizer = Tokenizer(vocabulary, kind=words)
            self.transformer = TextTransformer(len(vocabulary), width, layers=layers, heads=heads, tokens=tokens)
            self.pool = nn.Linear(width, output)
            return
        self.frozen, self.tokenizer = load_frozen(encoder, name), None
        self.tokens = min(tokens, self.frozen.tokens)
        self.register_buffer("fingerprint", torch.tensor(list(self.frozen.fingerprint), dtype=torch.uint8))
        self.name = name
        self.norm = nn.LayerNorm(self.frozen.width)
        self.pool = nn.Linear(self.frozen.width, output)
        self.null = nn.Parameter(0.02 * torch.randn(self.frozen.width))
        if attended:
            self.project = nn.Linear(self.frozen.width, width)
            self.start = nn.Parameter(torch.randn(width))

    def numbers(self, text: str) -> list[int]:
        """Token numbers of a whole text; none for an empty one."""
        if self.frozen is None:
            return super().numbers(text)
        return self.frozen.numbers(text) if text.strip() else []

    def shortened(self, row: list[int]) -> list[int]:
        """The numbers that are read of a text's, with the end mark of a frozen encoder."""
        return super().shortened(row) if self.frozen is None else shortened(row, self.tokens)

    def forward(self, ids: Tensor | None, *, n: int, drop: Tensor | None = None) -> Tensor:
        """Vectors `(n, output)` for token numbers `(n, L)`, or for "no condition" if they are None.

        `drop` `(n,)` bool marks samples whose condition is dropped.
        """
        return self.read(ids, n=n, drop=drop)[0]

    def read(
        self, ids: Tensor | None, *, n: int, drop: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Like `forward`, plus tokens `(n, L + 1, width)`, the start token first, with their mask `(n, L + 1)`."""
        device = self.pool.bias.device  # asking a weight under spectral norm would move it
        ids = torch.empty(n, 0, dtype=torch.int64, device=device) if ids is None else ids.to(device)
        assert len(ids) == n, f"{len(ids)} texts for {n} images"
        if drop is not None:
            ids = torch.where(drop.to(device)[:, None], -1, ids)
        if self._kept is None or torch.is_grad_enabled():
            return self._read(ids)
        for known, found in self._kept:
            if torch.equal(known, ids):
                return found
        self._kept.append((ids, self._read(ids)))
        return self._kept[-1][1]

    def _read(self, ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        n = len(ids)
        if self.frozen is None:
            tokens, mask = self.transformer(ids)
            return self.pool(tokens[:, 0]), tokens, mask
        mask = ids >= 0
        vectors = self.norm(self.frozen(ids)) * mask[..., None]
        count = mask.sum(1, keepdim=True)
        mean = torch.where(count > 0, vectors.sum(1) / count.clamp(min=1), self.null)
        if not hasattr(self, "project"):
            return self.pool(mean), None, mask
        tokens = torch.cat([self.start.expand(n, 1, -1), self.project(vectors)], dim=1)
        return self.pool(mean), tokens, torch.nn.functional.pad(mask, (1, 0), value=True)

    def _load_from_state_dict(self, state_dict, prefix, *rest):  # type: ignore[no-untyped-def]
        """Refuses weights that were trained with another frozen encoder.

        Raises:
            UserError: the encoder of this name now has different weights.
        """
        kept = state_dict.get(f"{prefix}fingerprint")
        if self.frozen is not None and kept is not None and not torch.equal(kept.cpu(), self.fingerprint.cpu()):
            raise UserError(
                f"the text encoder '{self.name}' has different weights from the one this model was trained with: "
                "put that one there"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


@contextmanager
def read_once(network: nn.Module) -> Iterator[None]:
    """Text encoders in a network read equal texts once, unless gradients are recorded: for all steps of a sampler."""
    encoders = [module for module in network.modules() if isinstance(module, TextEncoder)]
    for encoder in encoders:
        encoder._kept = []
    try:
        yield
    finally:
        for encoder in encoders:
            encoder._kept = None
