"""Priors over a tokenizer's codes: autoregressive (van den Oord et al. 2017, Esser et al. 2021, LlamaGen by Sun et al.
2024) or masked (MaskGIT by Chang et al. 2022).

Notable here:
- the codes of `tokenizer`, a trained run that is frozen and kept in the checkpoint, take the images' place
- `order=causal`: each code is predicted from those before it, row by row; `masked`: any from any others
- one token in front of the codes says the label, or sums up the text, whose words every layer attends to
- logits start at exactly zero, so training starts at log2(number of codes) bits
- held-out images are scored in bits a code: exact for causal priors, a bound for masked ones (Uria et al. 2014)
- guidance u + w (c - u) acts on logits; each of its two passes has keys and values of its own, at every code
- samples come from the averaged weights, in float32, every image from its own seed
"""

from collections.abc import Sequence
from functools import partial
from math import log, pi
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.conditions import TextEncoder, as_tensor, build_encoder, condition_for
from aigc.errors import UserError, check_choices
from aigc.models.family import Batch
from aigc.models.options import Average, Schedule, group, grouped
from aigc.models.over_codes import OPTIONS, Drawing, Optimizer, OverCodes
from aigc.models.parts import Source
from aigc.networks.ema import EMA
from aigc.networks.tokens import Choice, draw_in_order, fill, guided, hidden, uniforms
from aigc.networks.transformer import POSITIONS, Cache, Text, Transformer, grid_places
from aigc.noise import SeededNoise, mix

ORDERS = ("causal", "masked")
GOLDEN = 0.6180339887498949                                # steps of it cover [0, 1] evenly: validation masks by image
STEPWISE = ("steps", "spread")                             # options of `sample` with order=masked


@group()
class Network:
    """Of the transformer."""

    width: int                                             # of tokens
    layers: int
    heads: int                                             # of attention
    positions: str                                         # learned, or rotary over the grid
    dropout: float                                         # share of what every part adds that is dropped


@group()
class Stepwise:
    """The recipe's own sampling with order=masked, each overridden by an option of `sample`."""

    steps: int                                             # in which all codes are filled
    spread: float                                          # of the noise on confidences, at first


class Given(NamedTuple):
    """What codes are predicted under, besides each other."""

    start: Tensor                                          # (n, 1, width) the token in front
    text: Text | None                                      # the words, with condition=text


class CodeTransformer(nn.Module):
    """Condition encoder, transformer and logits: what is trained, averaged and sampled."""

    def __init__(
        self,
        codes: int,                                        # how many there are
        grid: tuple[int, int],                             # their rows and columns
        shape: Network,
        *,
        order: str,                                        # causal | masked
        condition: str,                                    # none | label | text
        facts: dict[str, Any],                             # classes and vocabulary
        text: dict[str, Any],                              # options of `TextEncoder`
    ):
        super().__init__()
        width, places, self.causal, self.mask = shape.width, grid[0] * grid[1], order == "causal", codes
        self.encoder = build_encoder(condition, width=width, text=text, attended=True, **facts)
        self.start = nn.Parameter(0.02 * torch.randn(width)) if self.encoder is None else None
        self.embedding = nn.Embedding(codes + (not self.causal), width)      # the last row: a masked place
        nn.init.normal_(self.embedding.weight, std=0.02)                     # of Radford et al. 2018, as in LlamaGen
        length = places if self.causal else places + 1                       # nothing follows the last code
        self.transformer = Transformer(
            width, layers=shape.layers, heads=shape.heads, length=length, causal=self.causal, dropout=shape.dropout,
            positions=shape.positions, places=grid_places(*grid, before=1)[:length],
            context=text["width"] if condition == "text" else 0,
        )
        self.logits = nn.Linear(width, codes)
        for parameter in self.logits.parameters():
            nn.init.zeros_(parameter)

    def under(self, condition: Tensor | None, *, n: int, drop: Tensor | None = None) -> Given:
        """What n images' codes are given, for labels `(n,)` or texts; nothing, for None and where `drop` `(n,)`."""
        if self.encoder is None:
            assert self.start is not None
            return Given(self.start.expand(n, 1, -1), None)
        if isinstance(self.encoder, TextEncoder):
            vector, tokens, mask = self.encoder.read(condition, n=n, drop=drop)
            assert tokens is not None
            return Given(vector[:, None], (tokens, mask))
        return Given(self.encoder(condition, n=n, drop=drop)[:, None], None)

    def forward(self, codes: Tensor, given: Given, masked: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits, float32, for `codes` `(n, L)` int64.

        Causal: `(n, L + 1, K)`, of the code after none of them, after the first, and so on; with a `cache` that has
        read the start, `(n, L, K)`, after each of these. Masked: `(n, L, K)`, of the code in each place; where
        `masked` `(n, L)` is True the code itself is not looked at.
        """
        if not self.causal:
            assert masked is not None and cache is None
            codes = torch.where(masked, self.mask, codes)
        x, follows = self.embedding(codes), cache is not None and cache.tokens > 0
        if not follows:
            x = torch.cat([given.start, x], dim=1)
        x = self.transformer(x, text=given.text, cache=cache)
        return self.logits(x if self.causal else x[:, 1:]).float()


class Prior(OverCodes):
    """A transformer over the codes of a trained tokenizer.

    Raises:
        UserError: there is no such tokenizer, it does not fit these images, or an option's value is unknown.
    """

    conditions: ClassVar[tuple[str, ...]] = ("none", "label", "text")

    @grouped
    def __init__(
        self,
        channels: int,
        size: Sequence[int],                               # (height, width)
        *,
        classes: int | None = None,                        # of the data, for condition=label
        vocabulary: list[str] | None = None,               # of the training captions, for condition=text
        condition: str = "none",                           # none | label | text
        tokenizer: Source | None,                          # a run that turns images into codes and back
        order: str,                                        # causal | masked
        network: Network,
        text: dict[str, Any],                              # options of `TextEncoder`
        drop: float,                                       # share of conditions dropped in training, for guidance
        smoothing: float,                                  # of labels (Szegedy et al. 2016), 0: none
        optimizer: Optimizer,
        schedule: Schedule,
        average: Average,
        drawing: Drawing,
        stepwise: Stepwise,
    ):
        super().__init__()
        self.save_hyperparameters()
        check_choices((("order", order, ORDERS), ("positions", network.positions, POSITIONS)))
        if network.width % network.heads or (network.positions == "rotary" and network.width // network.heads % 4):
            raise UserError(f"model.width={network.width} does not divide into model.heads={network.heads} heads of a "
                            "multiple of 4: choose another number of heads")
        self.over(tokenizer, channels, size, drawing)
        self.network = CodeTransformer(
            self.tokenizer.codes, self.tokenizer.shape, network, order=order, condition=condition,
            facts={"classes": classes, "vocabulary": vocabulary}, text=text,
        )
        self.ema = EMA(self.network, **vars(average))

    @property
    def causal(self) -> bool:
        """Whether codes are predicted from those before them."""
        return self.hparams.order == "causal"

    def fingerprints(self) -> dict[str, str | None]:
        """Also the options of the other order, which do not count."""
        return super().fingerprints() | (dict.fromkeys(STEPWISE) if self.causal else {})

    # ---- training and validation ----

    def nats(
        self, network: CodeTransformer, codes: Tensor, condition: Tensor | None, *, drop: Tensor | None = None,
        masked: Tensor | None = None, smoothing: float = 0.0,
    ) -> Tensor:
        """Minus log probabilities `(n, L)`, float32, of each code given those before it, or given those unmasked."""
        given = network.under(condition, n=len(codes), drop=drop)
        logits = network(codes[:, :-1] if self.causal else codes, given, masked)
        with torch.autocast(codes.device.type, enabled=False):
            return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none", label_smoothing=smoothing)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Cross-entropy of the codes, in nats; of masked ones only with order=masked."""
        codes, condition = self.codes_of(batch), as_tensor(self.condition_of(batch), self.network.encoder)
        n, device = len(codes), codes.device
        drop = None if condition is None else torch.rand(n, device=device) < self.hparams.drop
        masked = None
        if not self.causal:                                # cosine schedule, section 3.1
            share = (pi / 2 * torch.rand(n, device=device)).cos()
            masked = hidden((share * codes.shape[1]).ceil().clamp(min=1), torch.rand(codes.shape, device=device))
        nats = self.nats(self.network, codes, condition, drop=drop, masked=masked, smoothing=self.hparams.smoothing)
        loss = nats.mean() if masked is None else (nats * masked).sum() / masked.sum()
        return {"loss": loss, "bits_per_code": loss.detach() / log(2)}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Bits per code of held-out images under the averaged weights, and their own conditions.

        With order=masked the mean over a uniform number of masked codes, all in one draw of an order: an upper bound
        on the bits of any order (Uria et al. 2014). Every image has its own fixed places.
        """
        codes = self.tokenizer.tokenize(batch["image"])
        condition, masked = as_tensor(self.condition_of(batch), self.network.encoder), None
        if not self.causal:
            index, length = batch["index"], codes.shape[1]
            count = 1 + ((index.double() + 0.5) * GOLDEN % 1 * length).floor()
            places = uniforms(SeededNoise([mix(int(i)) for i in index], codes.device), length)
            masked = hidden(count.to(codes.device), places)
        nats = self.nats(self.averaged, codes, condition, masked=masked)
        mean = nats.mean(1) if masked is None else (nats * masked).sum(1) / masked.sum(1)
        return {"bits_per_code": mean.mean() / log(2)}

    # ---- sampling ----

    def settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """The recipe's sampling options under `options`.

        Raises:
            UserError: they do not exist, or do not fit a model without a condition.
        """
        known = OPTIONS if self.causal else (*OPTIONS, *STEPWISE)
        self.check_options(options, known)
        if self.condition == "none" and options.get("guidance", 1) != 1:
            raise UserError("This model was trained with condition=none: leave guidance out, or train with a label")
        settings = {name: self.hparams[name] for name in known} | options
        if not self.causal and settings["steps"] < 1:
            raise UserError(f"steps={settings['steps']} fills no codes: give at least 1")
        return settings

    @torch.no_grad()
    def complete(
        self, codes: Tensor, masked: Tensor, *, condition: Any = None, seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Codes `(n, L)` int64 in which those that are `masked` `(n, L)` are drawn and all others are as they were.

        A causal prior draws each from what is before it alone; a masked one from all. Options as of `sample`; with
        order=masked also `steps` and `spread`.

        Raises:
            UserError: see `sample`.
        """
        settings, h, n = self.settings(options), self.hparams, len(codes)
        choice = Choice(settings["temperature"], settings["top_k"], settings["top_p"])
        seeds = self.seeds_or_fresh(n, seeds)
        wanted = condition_for(condition, kind=self.condition, classes=h.classes, seeds=seeds,
                               encoder=self.averaged.encoder)
        codes, masked = codes.to(self.device), masked.to(self.device)
        w = settings["guidance"] if self.condition != "none" else 1.0
        asked = [wanted] if w == 1 else [None] if w == 0 else [wanted, None]
        noise = SeededNoise(seeds, self.device)
        with torch.autocast(self.device.type, enabled=False):
            passes = [self.averaged.under(c if c is None else c.to(self.device), n=n) for c in asked]
            if self.causal:
                follow = [partial(self._next, given, self.averaged.transformer.cache()) for given in passes]
                return draw_in_order(follow, w, codes, masked, choice, uniforms(noise, codes.shape[1]))
            return fill(
                lambda known, hidden: guided([self.averaged(known, given, hidden) for given in passes], w),
                codes, masked, choice, noise, steps=settings["steps"], spread=settings["spread"],
            )

    def _next(self, given: Given, cache: Cache, fresh: Tensor) -> Tensor:
        """Logits `(n, K)` of the code after `fresh` `(n, k)`, which follow those that `cache` has read."""
        return self.averaged(fresh, given, cache=cache)[:, -1]
