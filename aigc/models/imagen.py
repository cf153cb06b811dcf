"""Imagen (Saharia et al. 2022): a cascade of diffusion models, a small picture of a text and stages that enlarge it.

Notable:
- The base is a `Diffusion`, the stages that follow are `SuperResolution`s: each is a family of its own, too, and its
  recipe here is theirs with what `base`, `upscaler` and `upscalers` change. Every stage reads the condition.
- One run trains them one after the other, each for its share of the budget, with its own warm-up, decay and average.
  A step trains one stage: the others have no gradients, and the one optimizer over all of them skips what has none.
- Every stage learns from the data's own pictures, made small by the one resize that enlarging starts from, too. What a
  stage makes of another model's picture is up to the noise on it (noise-conditioning augmentation, Ho et al. 2022).
- A sample is the base's, enlarged stage by stage. Each stage draws from a seed of its own, mix(seed, STAGE, number).
- A stage that has not learned yet enlarges by the resize alone: early in a run samples are the base's, only larger.
"""

import inspect
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from aigc.errors import UserError, check_count, choices
from aigc.models.denoisers import optimizer_of
from aigc.models.diffusion import Diffusion, Optimizer
from aigc.models.family import Batch, Family
from aigc.models.imagen_sr import SuperResolution
from aigc.models.options import grouped_over, names_in
from aigc.networks.ema import EMA
from aigc.networks.ranks import of_first_rank, ranks
from aigc.networks.resample import resize
from aigc.noise import mix
from aigc.runs.progress import Progress
from aigc.wording import counted

STAGE = 0x57A6E                                            # separates the seeds of the stages
GOLDEN = (5**0.5 - 1) / 2                                  # without a budget stages take turns by its multiples
SHARED = (*names_in(Optimizer), "channels", "size", "classes", "vocabulary", "condition", "factor", "first_stage")


@dataclass
class Share(Progress):
    """The progress of a stage: its own images, and how much of its share of the budget is spent."""

    spent: float = 0.0

    @property
    def fraction(self) -> float:
        """The spent part of its share, in [0, 1]; 0 without a budget."""
        return self.spent


class Imagen(Family):
    """A base and stages that enlarge; the recipe's numbers are in `conf/model/imagen.yaml`.

    Raises:
        UserError: see `Diffusion` and `SuperResolution`; stages that do not fit each other.
    """

    conditions: ClassVar[tuple[str, ...]] = ("none", "label", "text")
    find_unused_parameters: ClassVar[bool] = True          # a step trains one stage
    seen: Tensor                                           # images that each stage has learned from

    @grouped_over(Diffusion)
    def __init__(
        self,
        channels: int,                      # image channels
        size: Sequence[int],                # (height, width) of what the last stage makes
        *,
        factors: Sequence[int],             # of the stages that enlarge, from small to large
        shares: Sequence[float],            # of the budget, the base's first; in any unit
        base: dict[str, Any],               # options of the base that are others than those beside it
        upscaler: dict[str, Any],           # the same of all stages that enlarge, with what they take besides
        upscalers: Sequence[dict[str, Any]],  # and of each of them
        **rest: Any,                        # what `Diffusion` takes: of all stages
    ):
        super().__init__()
        self.save_hyperparameters()
        check_stages(factors, shares, upscalers, rest)
        sizes = [tuple(size)]
        for factor in reversed(factors):
            sizes = [tuple(-(-side // factor) for side in sizes[0]), *sizes]
        stages: list[Any] = [Diffusion(channels, sizes[0], **changed(rest, Diffusion, base=base))]
        for factor, larger, own in zip(factors, sizes[1:], upscalers, strict=True):
            options = changed(rest, SuperResolution, upscaler=upscaler, upscalers=own)
            stages.append(SuperResolution(channels, larger, **options, factor=factor))
        for stage in stages:
            stage.progress = Share()
        self.stages: Any = nn.ModuleList(stages)
        self.names = ["base", *(f"upscaler{k}" for k in range(1, len(stages)))]
        self.ends = [end / sum(shares) for end in accumulate(shares)]
        self.register_buffer("seen", torch.zeros(len(self.stages), dtype=torch.int64))
        self.active = 0                                    # the stage that learns

    def averages(self) -> list[tuple[EMA, nn.Module]]:
        """The averaged network of each stage."""
        return [(stage.ema, stage.network) for stage in self.stages]

    def learned_images(self) -> list[int | None]:
        """Those of the stage that learns, alone."""
        return [stage.progress.images if k == self.active else None for k, stage in enumerate(self.stages)]

    def sampling_networks(self) -> list[nn.Module]:
        """Those of all stages."""
        return [network for stage in self.stages for network in stage.sampling_networks()]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One for all stages, as of `Diffusion`: what has no gradients stays as it is."""
        return optimizer_of([stage.network for stage in self.stages], self.hparams)

    # ---- training ----

    def on_train_start(self) -> None:
        """Each stage goes on with its own number of images."""
        for stage, images in zip(self.stages, self.seen.tolist(), strict=True):
            stage.progress.images = images

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Whose turn it is; sets that stage's rates."""
        self.active, spent = self.turn()
        self.stages[self.active].progress.spent = spent
        super().on_train_batch_start(batch, batch_idx)
        self.stages[self.active].keep_early()

    def turn(self) -> tuple[int, float]:
        """The stage that learns from the next batch, and the spent part of its share of the budget.

        Without a budget, which has no shares, the stages take turns: each is given its share of the steps.
        """
        progress, last = self.progress, self.ends.index(1.0)
        if progress.budget_images is None and progress.budget_seconds is None:
            return min(bisect(self.ends, progress.batches * GOLDEN % 1), last), 0.0
        fraction = progress.fraction
        if progress.budget_seconds is not None:            # clocks differ between ranks
            fraction = of_first_rank(fraction, self.device)
        stage = min(bisect(self.ends, fraction), last)
        begin = self.ends[stage - 1] if stage else 0.0
        return stage, min(1.0, (fraction - begin) / (self.ends[stage] - begin))

    def rate_factor(self) -> float:
        """That of the stage that learns."""
        return self.stages[self.active].rate_factor()

    def picture(self, images: Tensor, stage: int) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] at the size of a stage, in the steps in which they are enlarged again."""
        for larger in reversed(self.stages[stage + 1 :]):
            images = larger.small(images)
        return images

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of the stage whose turn it is; `loss` is its own, also as `loss/<stage>`."""
        stage, images = self.stages[self.active], batch["image"]
        loss = stage.training_step({**batch, "image": self.picture(images, self.active)}, batch_idx)["loss"]
        stage.progress.images += len(images) * ranks()
        self.seen[self.active] += len(images) * ranks()
        return {"loss": loss, f"loss/{self.names[self.active]}": loss.detach()}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The losses of all stages, as of theirs, and `loss`, their mean."""
        found: dict[str, Tensor] = {}
        for k, (name, stage) in enumerate(zip(self.names, self.stages, strict=True)):
            own = stage.validation_step({**batch, "image": self.picture(batch["image"], k)}, batch_idx)
            found |= {f"{score}/{name}": value for score, value in own.items()}
        losses = [found[f"loss/{name}"] for name in self.names]
        return {"loss": torch.stack(losses).mean(), **found}

    # ---- sampling ----

    def sample(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1]: the base's, enlarged by the stages that have learned, or by the resize.

        Options: those of `Diffusion.sample`, for the base; `precision` for all; `level`, of the noise on the picture
        that a stage enlarges, one or a list with one for each; `upscalers`, a dict with options of
        `SuperResolution.upscale`, or a list with one for each. Image k depends on `seeds[k]`, `condition[k]` and the
        options alone.

        Raises:
            UserError: see `Diffusion.sample` and `SuperResolution.upscale`.
        """
        return self.pictures(n, condition=condition, seeds=seeds, **options)[-1]

    def pictures(
        self, n: int, *, condition: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> list[Tensor]:
        """What each stage makes, as of `sample`: `(n, c, h, w)` from small to large."""
        seeds = self.seeds_or_fresh(n, seeds)
        base, *larger = self.stages
        own, further = self.options_of_stages(options)
        for stage, one in zip(larger, further, strict=True):
            stage.asked(one)                               # refused before any work
        if condition is None and self.condition == "label":
            condition = base.labels(None, seeds)           # all stages draw the same
        made = [base.sample(n, condition=condition, seeds=seeds, **own)]
        for k, (stage, one, learned) in enumerate(zip(larger, further, self.seen.tolist()[1:], strict=True), 1):
            size = stage.hparams.size
            made.append(stage.upscale(
                made[-1], condition=condition, size=size, seeds=[mix(int(seed), STAGE, k) for seed in seeds], **one
            ) if learned else resize(made[-1], size).clamp(-1, 1))
        return made

    def options_of_stages(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Options of `sample`, as those of the base and those of each stage that enlarges.

        Raises:
            UserError: a list of them has another length than there are stages.
        """
        base, count = dict(options), len(self.stages) - 1
        each: dict[str, list[Any]] = {}
        for name, none in (("level", None), ("upscalers", {})):
            given = base.pop(name, none)
            each[name] = list(given) if isinstance(given, list | tuple) else [given] * count
            if len(each[name]) != count:
                raise UserError(f"{name}={given} has {len(each[name])} entries for {counted(count, 'stage')} that "
                                "enlarge: give one for each, or one for all")
        for one in each["upscalers"]:
            if not isinstance(one, Mapping):
                raise UserError(f"upscalers={one} are no options: give them by name, such as {{steps: 8}}")
        common = {"precision": base["precision"]} if "precision" in base else {}
        levels = [{} if level is None else {"level": level} for level in each["level"]]
        return base, [{**common, **level, **one} for level, one in zip(levels, each["upscalers"], strict=True)]

    def upscale(self, images: Tensor, **options: Any) -> Tensor:
        """Larger pictures by the last stage: see `SuperResolution.upscale`.

        Raises:
            UserError: it has not learned yet, or as there.
        """
        if not self.seen.tolist()[-1]:
            raise UserError("the last stage of this cascade has not learned yet: train it for longer")
        return self.stages[-1].upscale(images, **options)

    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """What each stage makes for the conditions of a batch, beside each other; enlargements by the last stage."""
        n, size = len(batch["image"]), batch["image"].shape[2:]
        made = self.pictures(n, condition=self.condition_of(batch), seeds=range(n))
        shown = [nn.functional.interpolate(one, size=tuple(size)) for one in made]
        found = {"stages": torch.cat(shown, dim=3)}
        return {**found, **self.stages[-1].panels(batch)} if self.seen.tolist()[-1] else found


def check_stages(
    factors: Sequence[int], shares: Sequence[float], upscalers: Sequence[Any], common: Mapping[str, Any]
) -> None:
    """Refuses stages that do not fit each other.

    Raises:
        UserError: says which.
    """
    for factor in factors:
        check_count("model.factors", factor, least=2)
    if not factors:
        raise UserError("model.factors=[] name no stage that enlarges: give some, or train model=diffusion")
    for name, given, count in (("shares", shares, len(factors) + 1), ("upscalers", upscalers, len(factors))):
        if len(given) != count:
            raise UserError(f"model.{name} has {len(given)} entries, and model.factors={list(factors)} make it "
                            f"{count}: give as many")
    if min(shares) < 0 or sum(shares) <= 0:
        raise UserError(f"model.shares={list(shares)} divide no budget: give shares of at least 0, and one above it")
    if common.get("first_stage") is not None:
        raise UserError("model.first_stage has no place in imagen, whose stages work on pixels: leave it out")


def changed(options: Mapping[str, Any], family: type[Family], **changes: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a stage: those of all stages, and what `changes`, by the option that holds them, change.

    Raises:
        UserError: they change what all stages share, or what the family does not take.
    """
    known = [name for name in inspect.signature(cast(Any, family).__init__).parameters if name not in SHARED]
    made = dict(options)
    for where, change in changes.items():
        for name in change:
            if name in SHARED:
                raise UserError(f"model.{where}.{name}={change[name]} would be one stage's alone, and all of them "
                                f"share it: give model.{name}")
            if name not in known:
                raise UserError(f"model.{where} has no option '{name}': {choices(name, known)}")
        made = merged(made, change)
    return made


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with the values of `other`, and so on in what both hold under one name."""
    return {**one, **{name: merged(one[name], value) if isinstance(one.get(name), Mapping) and
                      isinstance(value, Mapping) else value for name, value in other.items()}}
