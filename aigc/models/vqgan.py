"""VQ-VAE (van den Oord et al. 2017) and VQGAN (Esser et al. 2021): images to a grid of codes, and back.

Notable here:
- an autoencoder (models/autoencoder.py) whose bottleneck has codes: without a discriminator it is a VQ-VAE, with one
  and a perceptual distance it is a VQGAN
- `quantiser=gradient`: the codebook follows its own loss term; `ema`: moving averages of the latents; `restart`: the
  same, and codes that nothing falls on any more start anew; `fsq`: finite scalars, no codebook at all
- `tokenize` gives codes, `lookup` their vectors, `decode` moves latents to the nearest codes first: whatever a later
  stage makes of latents, the decoder sees what it was trained on
- how many codes are in use, and their perplexity, over the whole validation split: a batch would flatter a small one
"""

from typing import Any

import torch
from torch import Tensor, nn

from aigc.errors import UserError, check_choices
from aigc.models.autoencoder import Adversary, FirstStage, Grid, Losses
from aigc.models.family import Batch
from aigc.models.options import Average, Patches, Schedule, group, grouped, option
from aigc.models.two_player import ClippedAdams
from aigc.networks.quantisers import AveragedCodebook, Codebook, FiniteScalars, Passed, perplexity


@group()
class Codes:
    """Of the quantiser."""

    kind: str = option("quantiser")                        # gradient, ema, restart or fsq
    number: int = option("codebook")                       # of codes (not fsq)
    beta: float                                            # weight of the commitment, the encoder's term (not fsq)
    cosine: bool                                           # compare directions, not distances (not fsq)
    decay: float = option("codebook_decay")                # of the moving averages, a step (ema, restart)
    restart: float = option("codebook_restart")            # share of the mean use below which codes restart (restart)
    levels: list[int]                                      # of each value (fsq): their product is the number of codes


KINDS = ("gradient", "ema", "restart", "fsq")


class VQGAN(FirstStage):
    """An autoencoder with codes, with an optional discriminator in turns.

    Raises:
        UserError: an option's value is unknown, or two of them contradict each other.
    """

    @grouped
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        classes: int | None = None,
        condition: str = "none",
        grid: Grid,
        quantiser: Codes,
        losses: Losses,
        adversary: Adversary,
        discriminator: Patches,
        optimizer: ClippedAdams,
        schedule: Schedule,
        average: Average,
    ):
        super().__init__()
        self.save_hyperparameters()
        if quantiser.kind == "kl":
            raise UserError("model.quantiser=kl has no codes: choose model=autoencoder, which has it, or "
                            f"model.quantiser={'|'.join(KINDS)}")
        check_choices((("quantiser", quantiser.kind, KINDS),))
        if quantiser.kind == "fsq":
            if min(quantiser.levels, default=0) < 2:
                raise UserError(f"model.levels={quantiser.levels} leaves a value no choice: give each at least 2")
            if grid.dimension != len(quantiser.levels):
                raise UserError(f"model.latent={grid.dimension} differs from the {len(quantiser.levels)} values of "
                                f"model.levels={quantiser.levels}: set model.latent={len(quantiser.levels)}")
        bottleneck = build_quantiser(quantiser, grid.dimension)
        self.build(channels, bottleneck, grid, losses, adversary, discriminator, average)

    # ---- codes ----

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return self.averaged.bottleneck.codes

    @torch.no_grad()
    def tokenize(self, images: Tensor) -> Tensor:
        """Codes `(n, h / f, w / f)` int64 in [0, `codes`) of images `(n, c, h, w)` in [-1, 1] of any size."""
        return self.averaged.bottleneck.snap(self.encode(images))[1]

    @torch.no_grad()
    def lookup(self, codes: Tensor) -> Tensor:
        """The latents `(n, d, h, w)` float32 that codes `(n, h, w)` stand for."""
        return self.averaged.bottleneck.lookup(codes.to(self.device))

    # ---- training and validation ----

    def autoencoder_loss(
        self, images: Tensor, made: Tensor, passed: Passed, pull: float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A first stage's; also logged are perplexity and share in use of the codebook in this batch."""
        loss, logs = super().autoencoder_loss(images, made, passed, pull)
        assert passed.codes is not None
        usage = torch.bincount(passed.codes.flatten(), minlength=self.network.bottleneck.codes)
        return loss, logs | {"codes/perplexity": perplexity(usage), "codes/used": (usage > 0).float().mean()}

    @torch.no_grad()
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Distances to the reconstructions, and how often each code is used, of all codes of an image, `(codes,)`."""
        usage = torch.bincount(self.tokenize(batch["image"]).flatten(), minlength=self.codes)
        return {**super().validation_step(batch, batch_idx), "usage": usage.double() / usage.sum()}

    def held_out(self, means: dict[str, Any]) -> dict[str, float]:
        """In place of the use of each code: their perplexity, and the share of codes that are used at all."""
        usage = means.pop("usage")
        return {**means, "perplexity": float(perplexity(usage)), "codes_used": float((usage > 0).double().mean())}


def build_quantiser(codes: Codes, dimension: int) -> nn.Module:
    """The quantiser of latents of `dimension` values that the options ask for."""
    if codes.kind == "fsq":
        return FiniteScalars(codes.levels)
    shared: dict[str, Any] = {"beta": codes.beta, "cosine": codes.cosine}
    if codes.kind == "gradient":
        return Codebook(codes.number, dimension, **shared)
    restart = codes.restart if codes.kind == "restart" else 0.0
    return AveragedCodebook(codes.number, dimension, decay=codes.decay, restart=restart, **shared)
