"""Few steps: flow maps, which jump where the probability flow of diffusion leads, from a trained run or from scratch.

Notable:
- Three methods in one model, `shortcut` (Frans et al. 2025), `consistency` (consistency tuning, Geng et al. 2025a) and
  `meanflow` (Geng et al. 2025b): `few_step_methods.py`. The numbers are in `conf/model/few_step.yaml`.
- With `teacher` the network, the process and the first weights are those of a trained diffusion run, averaged ones.
  A second clock, for the length of the step, ends in a layer of zeros: at the start the model is the teacher exactly.
- The teacher is borrowed: the checkpoint keeps its name, its fingerprint and its options, and none of its weights.
- Guidance is in the weights, so that a step costs one evaluation: in `shortcut` by the targets of the shortest steps,
  in `meanflow` by the velocity. `consistency` is guided, if at all, when it samples.
- The rest is `Diffusion`: conditions, latents, any sampler at the shortest step, guides, the averaged weights.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc.conditions import as_tensor
from aigc.diffusion.denoiser import Together
from aigc.diffusion.flow_maps import FlowMapDenoiser, Grid, Point, as_point, chord
from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.samplers import SAMPLERS, Denoise, Noise
from aigc.errors import UserError
from aigc.models.denoisers import TwoClocks
from aigc.models.diffusion import Diffusion, Optimizer, Sampling
from aigc.models.family import Batch
from aigc.models.few_step_methods import Consistency, Shortcut, method_named
from aigc.models.options import Average, Schedule, grouped_over, names_in
from aigc.models.parts import Borrowed, Source
from aigc.networks.ema import EMA

FACTS = ("channels", "size", "classes", "vocabulary", "condition")  # of the data, which must be the teacher's
OWN = (*FACTS, *names_in(Optimizer, Schedule, Average, Sampling), "drop", "weighting", "min_snr")  # not the teacher's


class FewStep(Diffusion):
    """A flow map in pixels or latents; the recipe's numbers are in `conf/model/few_step.yaml`."""

    parts: ClassVar[dict[str, tuple[str, ...]]] = {**Diffusion.parts, "teacher": ()}

    @grouped_over(Diffusion)
    def __init__(
        self,
        channels: int,                      # image channels
        size: Sequence[int],                # (height, width)
        *,
        method: str,                        # shortcut | consistency | meanflow
        methods: dict[str, dict[str, int | float]],  # options of each method, by its name
        teacher: Source | None = None,      # a trained diffusion run: network, process and first weights are its
        **rest: Any,                        # what `Diffusion` takes
    ):
        self.method = method_named(method, methods)
        self.teacher = None if teacher is None else Borrowed(
            teacher, option="teacher", family=Diffusion, without=OWN,
            facts={"channels": channels, "size": list(size), **{name: rest.get(name) for name in FACTS[2:]}},
        )
        taken = {} if self.teacher is None else self.teacher.options
        if taken and isinstance(rest.get("first_stage"), str):
            raise UserError("model.first_stage is that of model.teacher: leave it out")
        super().__init__(channels, size, **{**rest, **taken})
        first_stage = self.hparams["first_stage"]          # already described, if there is one
        self.hparams.update(taken, first_stage=first_stage)
        if self.hparams.weighting != "own":
            raise UserError(f"model.weighting={self.hparams.weighting} has no place in model.method={method}: leave "
                            "it out")
        self.method.check(self.hparams.process, self.hparams.prediction)
        self.grid = Grid(self.process, self.method.base if isinstance(self.method, Shortcut) else 1)
        learned = self.teacher.borrowed if self.teacher is not None else None
        if learned is not None:
            self.network.load_state_dict(learned.ema.network.state_dict())
            self.moments.copy_(learned.moments)
            if self.first_stage is not None:
                self.first_stage.load_state_dict(learned.first_stage.state_dict())
        if self.method.stepping:
            self.network: Any = TwoClocks(self.network)    # the second one tells the length of the step
        self.ema = EMA(self.network, halflife_images=self.ema.halflife_images, ramp=self.ema.ramp)
        if self.teacher is not None:
            self.teacher.borrowed = None
            self.hparams["teacher"] = self.teacher.description

    def fingerprints(self) -> dict[str, str | None]:
        """Of the runs inside and of the teacher, in whose place no option counts that was taken from it."""
        taken = {} if self.teacher is None else dict.fromkeys(self.teacher.options)
        return {**taken, **super().fingerprints()}

    # ---- training ----

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of the method; `loss` is its own."""
        images, labels = self.noised(batch, measure=True), as_tensor(self.condition_of(batch), self.network.encoder)
        self.measure(images)
        drop = None if labels is None else torch.rand(len(images), device=images.device) < self.hparams.drop
        return self.method.losses(self, images, labels, drop)

    def errors(
        self, network: nn.Module, images: Tensor, labels: Tensor | None, *, u: Tensor, noise: Tensor,
        drop: Tensor | None = None,
    ) -> Tensor:
        """Errors `(n,)` of the method, which validation averages."""
        return self.method.errors(self, network, images, labels, u=u, noise=noise, drop=drop)

    def scales(self, t: Tensor) -> Point:
        """(alpha, sigma) at times t `(n,)`, for images."""
        return as_point(torch.stack(self.process.scales(t), dim=1), t.device)

    def parametrisation(self) -> Parametrisation:
        """What the network predicts."""
        return Parametrisation(self.hparams.prediction, self.sigma_data())

    def guidance(self) -> tuple[float, Sequence[float] | None]:
        """The guidance scale that goes into the weights, and where it acts."""
        texts = (self.condition == "text" and self.hparams.text_sampling) or {}
        options = {**self.hparams, **texts}
        return options["guidance"], options["guidance_interval"]

    # ---- sampling ----

    def check_sampler(self, name: Any, options: dict[str, Any]) -> None:
        """As of `Diffusion`; consistency models step by `euler` alone, or by a sampler of one's own.

        Raises:
            UserError: another one.
        """
        if self.method.samplers and name in SAMPLERS and name not in self.method.samplers:
            raise UserError(f"A consistency model knows no velocity for sampler={name}: choose sampler=euler, which "
                            "adds noise again at every step")
        super().check_sampler(name, options)

    def settings(self, options: dict[str, Any]) -> dict[str, Any]:
        """As of `Diffusion`, without guidance where it is in the weights.

        Raises:
            UserError: another guidance than that.
        """
        settings = super().settings(options)
        if isinstance(self.method, Consistency):
            return {**settings, "guidance": options.get("guidance", 1.0)}
        if not self.method.guided_already(settings["sampler"], settings["steps"]):
            return settings
        w, _ = self.guidance()
        if self.condition != "none" and options.get("guidance", w) != w:
            raise UserError(f"guidance={options['guidance']} comes too late: {w} is in the weights, by model.guidance "
                            "in training; leave it out")
        return {**settings, "guidance": 1.0}

    def points(self, settings: dict[str, Any]) -> Tensor:
        """The method's own path; any other that is asked for."""
        asked = super().points(settings)
        return self.method.points(self, settings["steps"]) if settings["spacing"] == "own" else asked

    def build_denoiser(self, labels: Tensor | None, together: Together, *further: Tensor) -> FlowMapDenoiser:
        """The network as samplers ask it, which also say where a step ends."""
        def answers(names: Sequence[str], x: Tensor, t: Tensor) -> list[Tensor]:
            length = self.method.length(self, made.here, made.to)
            lengths = [torch.full_like(t, length)] if self.method.stepping else []
            return self.answers(names, x, t, labels, *lengths, *further)

        made = FlowMapDenoiser(self.process, self.parametrisation(), answers, together)
        return made

    def guided(self, labels: Tensor | None, settings: dict[str, Any], *further: Tensor, noise: Noise) -> Denoise:
        """As of `Diffusion`; a consistency model jumps to the image, and noise is added again (Song et al. 2023)."""
        answer = super().guided(labels, settings, *further, noise=noise)
        if not isinstance(self.method, Consistency):
            return answer

        def renoised(x: Tensor, alpha: Tensor, sigma: Tensor, to: Point | None = None) -> Tensor:
            image = answer(x, alpha, sigma)
            if to is None or to[1] == 0:
                return image
            return chord(x, to[0] * image + to[1] * noise(*x.shape[1:]), (alpha, sigma), to)

        return renoised
