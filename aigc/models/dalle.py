"""DALL-E (Ramesh et al. 2021): words and a tokenizer's codes, one after the other, in one transformer.

Notable here:
- the sequence is a token that says which order it is, then caption and picture, or picture and caption
- a caption has a fixed number of places; after its end each has a padding token of its own
- places of words say words or that the text is over, places of codes say codes: neither can say the other's
- loss (text + 7 image) / 8; where the picture comes first (7 text + image) / 8: what comes last is what is asked for
- the caption of some samples is dropped, for guidance u + w (c - u) on logits; each pass has its own keys and values
- logits start at exactly zero, so training starts at log2(number of codes) bits a code
- samples and captions come from the averaged weights, in float32, every image from its own seed

Attention is dense: at these lengths the sparse one of the paper would save nothing.
"""

from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from math import log
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import as_tensor, condition_for
from aigc.conditions.text import Reader
from aigc.conditions.vocabulary import Tokenizer
from aigc.errors import UserError
from aigc.models.family import Batch
from aigc.models.options import Average, Schedule, group, grouped
from aigc.models.over_codes import OPTIONS, Drawing, Optimizer, OverCodes
from aigc.models.parts import Source
from aigc.networks.ema import EMA
from aigc.networks.tokens import Choice, draw_in_order, uniforms
from aigc.networks.transformer import Cache, Transformer
from aigc.noise import SeededNoise


@group()
class Network:
    """Of the transformer."""

    width: int                                             # of tokens
    layers: int
    heads: int                                             # of attention
    dropout: float                                         # share of what every part adds that is dropped


class TextImageTransformer(Reader):
    """Embeddings, transformer and logits: what is trained, averaged and sampled; it reads texts itself.

    Tokens are numbered: words, then a padding token for each place of a caption, then codes, then the two starts.
    """

    padding: Tensor                                        # (T,) the padding tokens
    order: Tensor                                          # (2, 1 + T + L) places: captions first, pictures first

    def __init__(
        self,
        vocabulary: Sequence[str],                         # of the training captions, V entries
        codes: int,                                        # how many there are
        grid: tuple[int, int],                             # their rows and columns
        shape: Network,
        *,
        words: str,                                        # kind of vocabulary: words | bytepairs
        tokens: int,                                       # places of a caption, T
    ):
        super().__init__()
        width, rows, columns = shape.width, *grid
        self.tokenizer, self.tokens = Tokenizer(vocabulary, kind=words), tokens
        self.words, self.codes = len(vocabulary), rows * columns
        self.first_code = self.words + tokens
        self.starts = self.first_code + codes
        self.embedding = nn.Embedding(self.starts + 2, width)
        nn.init.normal_(self.embedding.weight, std=0.02)                     # of Radford et al. 2018, as in LlamaGen
        self.text_places, self.rows, self.columns = (          # appendix B.1
            nn.Parameter(0.02 * torch.randn(n, width)) for n in (tokens, rows, columns))
        self.transformer = Transformer(
            width, layers=shape.layers, heads=shape.heads, length=tokens + self.codes, causal=True, positions="none",
            dropout=shape.dropout,
        )
        self.word_logits, self.code_logits = nn.Linear(width, self.words + 1), nn.Linear(width, codes)
        for parameter in (*self.word_logits.parameters(), *self.code_logits.parameters()):
            nn.init.zeros_(parameter)
        text, image = torch.arange(1, 1 + tokens), torch.arange(1 + tokens, 1 + tokens + self.codes)
        start = torch.zeros(1, dtype=torch.int64)
        self.register_buffer("order", torch.stack([torch.cat([start, text, image]), torch.cat([start, image, text])]),
                             persistent=False)
        self.register_buffer("padding", self.words + torch.arange(tokens), persistent=False)

    def places(self) -> Tensor:
        """What a token gets for where it stands, `(1 + T + L, D)`: nothing, a place of the text, row and column."""
        image = (self.rows[:, None] + self.columns).flatten(0, 1)
        return torch.cat([torch.zeros_like(image[:1]), self.text_places, image])

    def forward(self, tokens: Tensor, picture_first: Tensor, cache: Cache | None = None) -> Tensor:
        """`(n, k + 1, D)` for `tokens` `(n, k)`: after none of them, after the first, and so on.

        `picture_first` `(n,)` bool says which order they have. With a `cache` that has read the start, `(n, k, D)`,
        after each of these.
        """
        read = 0 if cache is None else cache.tokens
        if not read:
            tokens = torch.cat([self.starts + picture_first[:, None].long(), tokens], dim=1)
        where = self.order[picture_first.long(), read : read + tokens.shape[1]]
        return self.transformer(self.embedding(tokens) + F.embedding(where, self.places()), cache=cache)

    def padded(self, ids: Tensor) -> Tensor:
        """The T tokens of captions `(n, k)`, which are padded with -1 and no longer than T."""
        ids = F.pad(ids.to(self.padding.device), (0, self.tokens - ids.shape[1]), value=-1)
        return torch.where(ids < 0, self.padding, ids)

    def both(self, text: Tensor, codes: Tensor, picture_first: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, float32, of what each place of `text` `(n, T)` and `codes` `(n, L)` says, from those before it.

        Words `(n, T, V + 1)`, the last of which says that the text is over, and codes `(n, L, K)`.
        """
        image = codes + self.first_code
        tokens = torch.where(picture_first[:, None], torch.cat([image, text], 1), torch.cat([text, image], 1))
        x = self(tokens[:, :-1], picture_first)
        x = torch.where(picture_first[:, None, None], x.roll(-self.codes, 1), x)
        return self.word_logits(x[:, : self.tokens]).float(), self.code_logits(x[:, self.tokens :]).float()


class DALLE(OverCodes):
    """A transformer over captions and the codes of a trained tokenizer.

    Raises:
        UserError: there is no such tokenizer, it does not fit these images, or an option's value makes no sense.
    """

    conditions: ClassVar[tuple[str, ...]] = ("text",)

    @grouped
    def __init__(
        self,
        channels: int,
        size: Sequence[int],                               # (height, width)
        *,
        classes: int | None = None,
        vocabulary: list[str] | None = None,               # of the training captions
        condition: str = "text",
        tokenizer: Source | None,                          # a run that turns images into codes and back
        network: Network,
        text: dict[str, Any],                              # words, size (read by training/fit.py) and tokens
        image_weight: float,                               # of what comes last, to 1 of what comes first
        picture_first: float,                              # share of samples that teach to describe
        drop: float,                                       # share of captions dropped in training, for guidance
        optimizer: Optimizer,
        schedule: Schedule,
        average: Average,
        drawing: Drawing,
    ):
        super().__init__()
        self.save_hyperparameters()
        if network.width % network.heads:
            raise UserError(f"model.width={network.width} does not divide into model.heads={network.heads} heads: "
                            "choose another number of heads")
        if text["tokens"] < 1:
            raise UserError(f"model.text.tokens={text['tokens']} leaves captions no place: give at least 1")
        self.over(tokenizer, channels, size, drawing)
        assert vocabulary, "condition=text needs a vocabulary of the training captions"
        self.network = TextImageTransformer(vocabulary, self.tokenizer.codes, self.tokenizer.shape, network,
                                            words=text["words"], tokens=text["tokens"])
        self.ema = EMA(self.network, **vars(average))

    # ---- training and validation ----

    def captions(self, texts: Tensor | Sequence[str]) -> Tensor:
        """The tokens `(n, T)` of captions."""
        return self.network.padded(as_tensor(texts, self.network))

    def nats(
        self, network: TextImageTransformer, text: Tensor, codes: Tensor, picture_first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Minus log probabilities, float32, means `(n,)` over the words of a text with its end, and over its codes.

        Each given what comes before it; 0 for texts without words.
        """
        words, image = network.both(text, codes, picture_first)
        with torch.autocast(codes.device.type, enabled=False):
            said, over = F.pad(text < network.words, (1, 0), value=True), network.words
            counts = said[:, :-1] & said[:, 1:2]           # up to the first padding token
            each = F.cross_entropy(words.transpose(1, 2), text.clamp(max=over), reduction="none") * counts
            image = F.cross_entropy(image.transpose(1, 2), codes, reduction="none")
            return each.sum(1) / counts.sum(1).clamp(min=1), image.mean(1)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Cross-entropies in nats, of which what comes last weighs `image_weight` times what comes first."""
        h, codes, text = self.hparams, self.codes_of(batch), self.captions(batch["text"])
        n, device = len(codes), codes.device
        picture_first = torch.rand(n, device=device) < h.picture_first
        dropped = (torch.rand(n, device=device) < h.drop) & ~picture_first
        text = torch.where(dropped[:, None], self.network.padding, text)
        words, image = self.nats(self.network, text, codes, picture_first)
        share = torch.where(picture_first, h.image_weight, 1.0) / (1 + h.image_weight)
        loss = (share * words + (1 - share) * image).mean()
        told = (text[:, 0] < self.network.words).sum().clamp(min=1)
        return {"loss": loss, "bits_per_code": image.detach().mean() / log(2),
                "bits_per_word": words.detach().sum() / told / log(2)}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Bits under the averaged weights: a code given the caption, and a word of the caption given the picture."""
        codes, text = self.tokenizer.tokenize(batch["image"]), self.captions(batch["text"])
        caption_first = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        _, image = self.nats(self.averaged, text, codes, caption_first)
        words, _ = self.nats(self.averaged, text, codes, ~caption_first)
        return {"bits_per_code": image.mean() / log(2), "bits_per_word": words.mean() / log(2)}

    # ---- sampling ----

    @torch.no_grad()
    def complete(
        self, codes: Tensor, masked: Tensor, *, condition: Any = None, seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Codes `(n, L)` int64 in which those that are `masked` `(n, L)` are drawn and all others are as they were.

        Each is drawn from its caption, if any, and the codes before it. Options as of `sample`.

        Raises:
            UserError: see `sample`.
        """
        self.check_options(options, OPTIONS)
        settings = {name: self.hparams[name] for name in OPTIONS} | options
        choice = Choice(settings["temperature"], settings["top_k"], settings["top_p"])
        seeds = self.seeds_or_fresh(len(codes), seeds)
        text = self.network.padded(condition_for(condition, kind="text", classes=None, seeds=seeds,
                                                 encoder=self.network))
        codes, masked, w = codes.to(self.device), masked.to(self.device), float(settings["guidance"])
        null = self.network.padding.expand_as(text)
        if torch.equal(text, null):
            w = 0.0
        asked = [text] if w == 1 else [null] if w == 0 else [text, null]
        passes = [partial(self._code_after, caption, self.averaged.transformer.cache()) for caption in asked]
        with torch.autocast(self.device.type, enabled=False):
            return draw_in_order(passes, w, codes, masked, choice,
                                 uniforms(SeededNoise(seeds, self.device), codes.shape[1]))

    def _code_after(self, caption: Tensor, cache: Cache, fresh: Tensor) -> Tensor:
        """Logits `(n, K)` of the code after `fresh` `(n, k)`, which follow the caption and what `cache` has read."""
        network, tokens = self.averaged, fresh + self.averaged.first_code
        if not cache.tokens:
            tokens = torch.cat([caption, tokens], dim=1)
        caption_first = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        return network.code_logits(network(tokens, caption_first, cache=cache)[:, -1])

    @torch.no_grad()
    def describe(
        self, images: Tensor, *, question: str | None = None, seeds: Sequence[int] | None = None,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
    ) -> list[str]:
        """A caption of each image `(n, c, h, w)` in [-1, 1]: the likeliest words, or with a `temperature` drawn ones.

        With a `question`, such as "a large", the sentence that begins with it.

        Raises:
            UserError: an option is out of its range.
        """
        choice, n, asked = Choice(temperature, top_k, top_p), len(images), (question or "").strip()
        begun = self.network.tokenize([asked] * n)
        codes = self.tokenizer.tokenize(images.to(self.device, torch.float32))
        follow = partial(self._word_after, codes, self.averaged.transformer.cache())
        text = self.network.padded(begun)
        masked = (torch.arange(text.shape[1], device=self.device) >= begun.shape[1]).expand_as(text)
        numbers = uniforms(SeededNoise(self.seeds_or_fresh(n, seeds), self.device), text.shape[1])
        with torch.autocast(self.device.type, enabled=False):
            text = draw_in_order([follow], 1.0, text, masked, choice, numbers)
        rows, over = text[:, begun.shape[1] :].tolist(), self.network.words
        words = ([*takewhile(lambda word: word < over, row)] for row in rows)
        return [f"{asked} {self.network.tokenizer.text(row)}".strip() for row in words]

    def _word_after(self, codes: Tensor, cache: Cache, fresh: Tensor) -> Tensor:
        """Logits `(n, V + 1)` of the word after `fresh` `(n, k)`, which follow the picture and what `cache` has read.

        The last one says that the text is over. Words that training has not shown are not said.
        """
        network, places = self.averaged, codes.shape[1]
        before = max(0, cache.tokens - 1 - places)         # words read
        tokens = torch.where(fresh < network.words, fresh, network.padding[before : before + fresh.shape[1]])
        if not cache.tokens:
            tokens = torch.cat([codes + network.first_code, tokens], dim=1)
        picture_first = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
        logits = network.word_logits(network(tokens, picture_first, cache=cache)[:, -1])
        return logits.index_fill(1, torch.zeros(1, dtype=torch.int64, device=logits.device), -torch.inf)
