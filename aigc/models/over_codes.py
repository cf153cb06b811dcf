"""Families over the codes of a trained tokenizer: what they share besides the networks and losses of their own.

Notable here:
- the codes of `tokenizer`, a trained run that is frozen and kept in the checkpoint, take the images' place
- images that always look alike are tokenized once
- matrices decay, biases, norms and single vectors do not
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc.models.family import Batch, Family
from aigc.models.options import group
from aigc.models.parts import CodeSpace, Source
from aigc.networks.adamw import adamw
from aigc.networks.ema import EMA
from aigc.networks.tokens import Choice

MEMORY = 2**28                                             # most codes kept of training images: 1 GB
OPTIONS = ("guidance", "temperature", "top_k", "top_p")    # of `sample`


@group()
class Optimizer:
    """AdamW."""

    lr: float
    betas: list[float]
    weight_decay: float                                    # of matrices
    clip: float                                            # largest gradient norm, 0: no limit


@group()
class Drawing:
    """The recipe's own sampling, each overridden by an option of `sample`."""

    guidance: float                                        # scale w; only with a condition
    temperature: float                                     # of the logits
    top_k: int                                             # among the k likeliest codes, 0: all
    top_p: float                                           # and those that together reach this probability


class OverCodes(Family):
    """A family with a `network` over codes, whose averaged copy draws them.

    A subclass's constructor calls `over`, then makes `network` and `ema`; its `complete` draws codes.
    """

    parts: ClassVar[dict[str, tuple[str, ...]]] = {"tokenizer": ()}
    required: ClassVar[dict[str, str]] = {
        "tokenizer": "train one on the same data (python -m aigc.train model=vqvae hydra.run.dir=runs/codes) and give "
                     "model.tokenizer=runs/codes",
    }
    tokenizer: CodeSpace
    network: Any                                           # over codes: a module
    ema: EMA
    _known: Tensor | None = None                           # (images, L) codes of the training images, -1: not yet

    def over(self, tokenizer: Source | None, channels: int, size: Sequence[int], drawing: Drawing) -> None:
        """Loads the tokenizer, and keeps its description in the hyper-parameters.

        Raises:
            UserError: there is none, it does not fit these images, or the recipe's sampling makes no sense.
        """
        self.check_parts({"tokenizer": tokenizer})
        assert tokenizer is not None
        Choice(drawing.temperature, drawing.top_k, drawing.top_p)
        self.tokenizer = CodeSpace(tokenizer, channels, size)
        self.hparams["tokenizer"] = self.tokenizer.description()

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged network."""
        return [(self.ema, self.network)]

    @property
    def averaged(self) -> Any:
        """The network that everything outside training uses."""
        return self.ema.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; biases, norms and single vectors do not decay."""
        h = self.hparams
        return adamw(self.network, lr=h.lr, betas=h.betas, weight_decay=h.weight_decay)

    # ---- codes of the training images ----

    def on_fit_start(self) -> None:
        """Makes room for the codes of all training images, unless these are mirrored at random."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and not data.flip:
            self.remember(data.count("train"))

    def remember(self, images: int) -> None:
        """From now on keeps the codes of so many training images, unless they are too many."""
        length = self.tokenizer.shape[0] * self.tokenizer.shape[1]
        if images * length <= MEMORY:
            self._known = torch.full((images, length), -1, dtype=torch.int32)

    def codes_of(self, batch: Batch) -> Tensor:
        """Codes `(n, L)` int64 of a training batch; those of images that always look alike are found out once.

        Tokenizing MNIST takes a quarter of a step of the recipe.
        """
        if self._known is None:
            return self.tokenizer.tokenize(batch["image"])
        index = batch["index"].cpu()
        known = self._known[index]
        if int(known.min()) < 0:                           # the whole batch: then its size never changes
            self._known[index] = known = self.tokenizer.tokenize(batch["image"]).to("cpu", torch.int32)
        return known.to(self.device, torch.int64)

    # ---- sampling ----

    @torch.no_grad()
    def sample(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of codes from the averaged weights.

        Options, each by default the recipe's: `guidance` (with a condition; 1 is off, 0 unconditional), `temperature`
        (0: always the likeliest code), `top_k`, `top_p`, and those of the family's own (`complete`).

        Raises:
            UserError: an option is unknown or out of its range, or a condition does not fit.
        """
        codes = torch.zeros(n, self.tokenizer.shape[0] * self.tokenizer.shape[1], dtype=torch.int64)
        made = self.complete(codes, torch.ones_like(codes, dtype=torch.bool), condition=condition, seeds=seeds,
                             **options)
        return self.tokenizer.decode(made)

    def complete(
        self, codes: Tensor, masked: Tensor, *, condition: Any = None, seeds: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Codes `(n, L)` int64 in which those that are `masked` `(n, L)` are drawn and all others are as they were.

        Options as of `sample`.

        Raises:
            UserError: see `sample`.
        """
        raise NotImplementedError
