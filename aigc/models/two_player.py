"""Two players in turns, generators against discriminators: what all adversarial families share besides their losses.

Notable here:
- a family names its `players`, writes their losses, and says in `training_step` who plays when:
  `with self.turn("discriminator") as backward: ... backward(loss)`
- several turns of one player, several backward passes in a turn (their gradients add up) and turns left out are plain
  Python in `training_step`
- in a generator's turn the other players' gradients are off: they are judges, not learners
- penalties may come every so many steps only, as much heavier (`lazily`)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from aigc.conditions import as_tensor
from aigc.conditions.text import Reader
from aigc.models.family import Batch, Family
from aigc.models.options import group


@group()
class Adams:
    """Of both players' optimizers."""

    generator_rate: float
    discriminator_rate: float
    betas: list[float]


@group()
class ClippedAdams(Adams):
    """The same, with clipped gradients."""

    clip: float                                            # largest gradient norm of each player, 0: no limit


class TwoPlayer(Family):
    """A family whose players learn in turns, with manual optimization.

    Hyper-parameters: `<player>_rate` for each player, `betas`, and optionally `clip`, and `text_rate`: a multiplier of
    the rates of what reads texts.
    """

    generator: Any                                         # has an `encoder` of conditions, or None

    find_unused_parameters: ClassVar[bool] = True          # each backward reaches only one of the players

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def players(self) -> Mapping[str, Sequence[nn.Module]]:
        """The networks of each player, in the order of their optimizers: `discriminator` and others."""
        raise NotImplementedError(f"{type(self).__name__} names no players")

    def judges(self) -> list[nn.Module]:
        """The discriminators."""
        return list(self.players().get("discriminator", ()))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each player; fused, except where gradients are clipped: it unscales fp16 gradients too late."""
        clip, betas = self.hparams.get("clip"), tuple(self.hparams.betas)
        how: dict[str, Any] = {"fused": True} if clip is None else {"fused": not clip, "foreach": bool(clip)}
        return [
            torch.optim.Adam(self.shares(nets, rate := self.hparams[f"{player}_rate"]), lr=rate, betas=betas, **how)
            for player, nets in self.players().items()
        ]

    def shares(self, nets: Sequence[nn.Module], rate: float) -> list[dict[str, Any]]:
        """A player's parameters in groups with their rates: those that read texts apart, if theirs is another."""
        whole, slower = nn.ModuleList(nets), self.hparams.get("text_rate", 1.0)
        readers = [module for module in whole.modules() if isinstance(module, Reader)] if slower != 1 else []
        apart = {id(parameter): parameter for reader in readers for parameter in reader.parameters()}
        rest = [parameter for parameter in whole.parameters() if id(parameter) not in apart]
        return [{"params": rest, "lr": rate}, *([{"params": [*apart.values()], "lr": slower * rate}] if apart else [])]

    def told(self, batch: Batch) -> Tensor | None:
        """What both players are told of a batch in training: labels `(n,)`, or texts `(n, L)`, some of them dropped.

        Captions belong to their images; those of generated images are a batch's own, too.
        """
        labels = as_tensor(self.condition_of(batch), self.generator.encoder)
        if labels is not None and self.condition == "text":
            labels = torch.where(torch.rand(len(labels), 1, device=self.device) < self.hparams.text_drop, -1, labels)
        return labels

    @contextmanager
    def turn(self, player: str) -> Iterator[Callable[[Tensor], None]]:
        """Inside, `player` learns from each loss that the yielded function is given; at the end its optimizer steps.

        A discriminator sees detached images, which lead to nobody else. In any other player's turn the gradients of
        the others are off. That also keeps autocast from reusing low-precision copies of their weights across their
        own step: it only caches leaves that need gradients.
        """
        players = self.players()
        optimizers = cast(LightningOptimizer | list[LightningOptimizer], self.optimizers())
        optimizer = (optimizers if isinstance(optimizers, list) else [optimizers])[list(players).index(player)]
        judges = [p for other, nets in players.items() if player not in (other, "discriminator")
                  for net in nets for p in net.parameters() if p.requires_grad]
        for parameter in judges:
            parameter.requires_grad_(False)
        optimizer.zero_grad()
        try:
            yield self.manual_backward
            optimizer.step()
        finally:
            for parameter in judges:
                parameter.requires_grad_(True)

    def lazily(self, every: int) -> int:
        """What a penalty of every `every`-th step weighs in this one: `every`, or 0, then it is not taken.

        Karras et al. 2020 (StyleGAN2), appendix B.
        """
        return every if self.progress.batches % every == 0 else 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradient norm; here rather than in the step, because fp16 gradients are unscaled here."""
        if self.hparams.get("clip"):
            parameters = [p for options in optimizer.param_groups for p in options["params"]]
            nn.utils.clip_grad_norm_(parameters, self.hparams.clip)
