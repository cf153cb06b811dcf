"""The methods of few-step models, a class each: what is learned, and how it samples. The family is `few_step.py`.

Notable:
- `Shortcut` (Frans et al. 2025): the target of a long step is the mean of two half steps of the averaged network.
- `Consistency` (consistency tuning, Geng et al. 2025a): the same image from two noise levels of the same noise.
- `MeanFlow` (Geng et al. 2025b): the target of a step follows from the network's derivative along the flow.

`model` is the `FewStep`. Times, quantiles and lengths are `(n,)`, noise levels t, r, s are sigma / alpha, and points
are pairs (alpha, sigma).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc.config.functions import check_known
from aigc.diffusion.flow_maps import Point, as_point, chord, step
from aigc.diffusion.schedules import Flow, normal_quantile, path, stratified
from aigc.errors import UserError, choices
from aigc.models.diffusion import Diffusion
from aigc.networks.attention import differentiable_forwards

MOST_NOISE = 80.0                      # noise level at which consistency starts (Karras et al. 2022)
Labels = Tensor | None
Drop = Tensor | None                   # (n,) whose condition is dropped


class Method:
    """How a few-step model learns and samples."""

    stepping: ClassVar[bool] = True    # whether the network is told the length of the step
    samplers: ClassVar[tuple[str, ...]] = ()  # the only ones of the package that fit; empty: all

    def losses(self, model: Any, images: Tensor, labels: Labels, drop: Drop) -> dict[str, Tensor]:
        """Scalars of a training step on images `(n, c, h, w)`; `loss` is minimized."""
        raise NotImplementedError

    def errors(
        self, model: Any, network: nn.Module, images: Tensor, labels: Labels, *, u: Tensor, noise: Tensor,
        drop: Drop = None,
    ) -> Tensor:
        """Errors `(n,)` for held-out images at quantiles u: those of diffusion, at the shortest step."""
        return Diffusion.errors(model, network, images, labels, u=u, noise=noise, drop=drop)

    def length(self, model: Any, here: Point, to: Point | None) -> float:
        """The length of a step as the network sees it; without an end the shortest, 0."""
        return 0.0

    def points(self, model: Any, steps: int) -> Tensor:
        """The path of `steps` steps, `(steps + 1, 2)`."""
        return path(model.process, steps)

    def guided_already(self, sampler: str, steps: int) -> bool:
        """Whether guidance is in the weights for such a path."""
        return False

    def check(self, process: str, prediction: str) -> None:
        """Refuses a process or a prediction that the method does not fit."""


@dataclass(frozen=True, kw_only=True)
class Shortcut(Method):
    """Frans et al. 2025: two steps of the averaged network are the target of one twice as long."""

    base: int                          # shortest steps of a path, a power of two; the shortest is diffusion
    tuning: float                      # share of the batch that learns from two steps, with a teacher ...
    scratch: float                     # ... and without one
    weight: float                      # of its squared errors, which are far smaller than those of denoising

    def __post_init__(self) -> None:
        if not isinstance(self.base, int) or self.base < 2 or self.base & (self.base - 1):
            raise UserError(f"model.methods.shortcut.base={self.base} is no power of two: give 16, 32 or another one")

    def losses(self, model: Any, images: Tensor, labels: Labels, drop: Drop) -> dict[str, Tensor]:
        """One pass for both parts of the batch: the first k images learn from two steps, the others denoise."""
        n, noise = len(images), torch.randn_like(images)
        share = self.scratch if model.teacher is None else self.tuning
        k = min(max(round(share * n), 1), max(n - 1, 1))
        x, t, length, target = self.two_steps(model, images[:k], None if labels is None else labels[:k], noise[:k])
        denoised = model.process.quantile(stratified(n - k, images.device))
        alpha, sigma = model.scales(denoised)
        drop = None if drop is None else drop & (torch.arange(n, device=drop.device) >= k)
        prediction = model.predict(
            model.network, torch.cat([x, alpha * images[k:] + sigma * noise[k:]]), torch.cat([t, denoised]), labels,
            drop, torch.cat([length, torch.zeros_like(denoised)]),
        )
        wanted = torch.cat([target, model.parametrisation().target(images[k:], noise[k:], alpha, sigma)])
        errors = (prediction - wanted).square().mean((1, 2, 3))
        loss = (self.weight * errors[:k].sum() + errors[k:].sum()) / n
        return {"loss": loss, "two_steps": errors[:k].detach().mean()}

    @torch.no_grad()
    def two_steps(
        self, model: Any, images: Tensor, labels: Labels, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy images, times, lengths, and what the network should say there: the mean of two half steps (eq. 5).

        The lengths, 2 to `base` shortest steps, are spread evenly over the images, the places on the grid at random.
        """
        n, grid, device = len(images), model.grid, images.device
        level = 1 + (torch.arange(n) + torch.randint(grid.levels, ())) % grid.levels
        width = 2**level
        place = width * (torch.rand(n) * (grid.base // width)).long()
        points = [grid.points[place + width * i // 2] for i in range(3)]
        here, middle, end = (as_point(one, device) for one in points)
        half = (level - 1.0) / grid.levels
        x = here[0] * images + here[1] * noise
        between = step(x, self.image(model, x, points[0], half, labels), here, middle)
        there = step(between, self.image(model, between, points[1], half, labels), middle, end)
        x0 = chord(x, there, here, end)
        target = model.parametrisation().target(x0, (x - here[0] * x0) / here[1], *here)
        t = model.process.time(points[0][:, 1] / points[0][:, 0])
        return x, t.to(device), (level / grid.levels).to(device), target

    @staticmethod
    def image(model: Any, x: Tensor, here: Tensor, length: Tensor, labels: Labels) -> Tensor:
        """The averaged network's images for steps of `length` from points `here` `(n, 2)`, both on the CPU.

        The shortest steps are guided, so that all others are (section 4.1).
        """
        w, interval = model.guidance()
        s = here[:, 1] / here[:, 0]
        t, lengths = model.process.time(s).to(x.device), length.to(x.device)
        prediction = model.predict(model.ema, x, t, labels, None, lengths)
        rows = (length == 0) & within(interval, s)
        if labels is not None and w != 1 and rows.any():
            rows = rows.nonzero()[:, 0].to(x.device)
            drop = torch.ones(len(rows), dtype=torch.bool, device=x.device)
            alone = model.predict(model.ema, x[rows], t[rows], labels[rows], drop, lengths[rows])
            prediction[rows] = torch.lerp(alone, prediction[rows], w)
        return model.parametrisation().x0(prediction, x, *as_point(here, x.device))

    def length(self, model: Any, here: Point, to: Point | None) -> float:
        """The nearest length that was trained, in doublings of the shortest."""
        return 0.0 if to is None else model.grid.level(here, to) / model.grid.levels

    def points(self, model: Any, steps: int) -> Tensor:
        """Points of the grid that was trained on, where the steps divide it."""
        return model.grid.path(steps) if self.base % steps == 0 else path(model.process, steps)

    def guided_already(self, sampler: str, steps: int) -> bool:
        """In all but the shortest steps."""
        return sampler in ("euler", "ddim") and steps < self.base


@dataclass(frozen=True, kw_only=True)
class Consistency(Method):
    """Geng et al. 2025a (ECT): the image from more noise is that from a little less of the same noise."""

    mean: float                        # P_mean of ln t in training
    std: float                         # P_std
    q: float                           # the step from t down to r is t / q at first, and shrinks by q ...
    stages: int                        # ... in so many equal stages of the budget
    k: float                           # it is 1 + k sigmoid(-b t) times longer, ...
    b: float                           # ... mostly at low noise, where it reaches the data

    stepping: ClassVar[bool] = False
    samplers: ClassVar[tuple[str, ...]] = ("euler",)

    def less(self, t: Tensor, fraction: float) -> Tensor:
        """The lower noise level r for t at a spent `fraction` of the budget (eq. 14); 0 is the data."""
        stage = min(int(fraction * self.stages), self.stages - 1)
        return (t * (1 - self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * t)))).clamp(min=0)

    def losses(self, model: Any, images: Tensor, labels: Labels, drop: Drop) -> dict[str, Tensor]:
        """The mean error."""
        u, noise = stratified(len(images), images.device), torch.randn_like(images)
        return {"loss": self.errors(model, model.network, images, labels, u=u, noise=noise, drop=drop).mean()}

    def errors(
        self, model: Any, network: nn.Module, images: Tensor, labels: Labels, *, u: Tensor, noise: Tensor,
        drop: Drop = None,
    ) -> Tensor:
        """Distances of the images from t and from r, times 1 / (t - r); noise, dropout and conditions are the same.

        A network that does not train is asked across the last, shortest gap, so that validation losses compare.
        """
        t = (self.mean + self.std * normal_quantile(u)).exp().clamp(max=MOST_NOISE)
        r = self.less(t, model.progress.fraction if network.training else 1.0)
        seed = int(torch.randint(2**62, ())) if network.training else None
        image = self.image(model, network, images, t, labels, noise=noise, drop=drop, seed=seed)
        with torch.no_grad():
            wanted = self.image(model, network, images, r, labels, noise=noise, drop=drop, seed=seed)
        squares = (image - torch.where(r[:, None, None, None] > 0, wanted, images)).square().mean((1, 2, 3))
        return (squares + 1e-12).sqrt() / (t - r)          # with a gradient where both are equal, too

    @staticmethod
    def image(
        model: Any, network: nn.Module, images: Tensor, s: Tensor, labels: Labels, *, noise: Tensor, drop: Drop,
        seed: int | None,
    ) -> Tensor:
        """The network's images at noise levels s: x itself without noise, where its output is multiplied by 0."""
        t = model.process.time(s)
        alpha, sigma = model.scales(t)
        x = alpha * images + sigma * noise
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else [], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            prediction = model.predict(network, x, t, labels, drop)
        return model.parametrisation().x0(prediction, x, alpha, sigma)

    def points(self, model: Any, steps: int) -> Tensor:
        """The noise levels of a straight path, from the highest that is trained."""
        points = path(Flow(), steps)
        s = (points[:-1, 1] / points[:-1, 0]).clamp(max=MOST_NOISE)
        return torch.cat([torch.stack(model.process.scales(model.process.time(s)), dim=1), points[-1:]])

    def check(self, process: str, prediction: str) -> None:
        """Refuses a prediction whose factor is not 0 without noise."""
        if prediction == "x0":
            raise UserError("model.method=consistency with model.prediction=x0 would change images without noise: "
                            "choose another prediction, or model.method=shortcut")


@dataclass(frozen=True, kw_only=True)
class MeanFlow(Method):
    """Geng et al. 2025b: the mean velocity u of a step obeys u = v + length du/dt, which needs no second step."""

    mean: float                        # of the logit of sigma, at both ends of a step
    std: float
    share: float                       # of the batch whose steps have a length; the rest is diffusion
    power: float                       # p of the adaptive weight 1 / (squared error + c)^p
    c: float

    def losses(self, model: Any, images: Tensor, labels: Labels, drop: Drop) -> dict[str, Tensor]:
        """Regression to a target without a gradient."""
        n, noise = len(images), torch.randn_like(images)
        ends = torch.sigmoid(self.mean + self.std * torch.randn(n, 2, device=images.device))
        t, end = 1 - ends.amax(1), 1 - ends.amin(1)
        k = min(n, max(1, round(self.share * n)))
        length = (end - t) * (torch.arange(n, device=t.device) < k)
        alpha, sigma = model.scales(t)
        x = alpha * images + sigma * noise
        target = self.guided(model, images - noise, x, t, labels, drop)
        target = torch.cat([
            self.target(model, model.network, x[:k], t[:k], length[:k], target[:k], *(
                None if one is None else one[:k] for one in (labels, drop))), target[k:],
        ])
        squares = (model.predict(model.network, x, t, labels, drop, length) - target).square().flatten(1)
        weight = (squares.detach().sum(1) + self.c) ** -self.power
        return {"loss": (weight * squares.sum(1)).mean(), "squares": squares.detach().mean()}

    @torch.no_grad()
    def guided(self, model: Any, velocity: Tensor, x: Tensor, t: Tensor, labels: Labels, drop: Drop) -> Tensor:
        """The velocity under guidance: w v + (1 - w) u without the condition (eq. 19), where that is not dropped."""
        w, interval = model.guidance()
        if labels is None or drop is None or w == 1:
            return velocity
        rows = ~drop & within(interval, (1 - t) / t)
        alone = model.predict(model.network, x, t, labels, torch.ones_like(drop), torch.zeros_like(t))
        return torch.where(rows[:, None, None, None], torch.lerp(alone, velocity, w), velocity)

    @staticmethod
    @torch.no_grad()
    def target(
        model: Any, network: nn.Module, x: Tensor, t: Tensor, length: Tensor, velocity: Tensor, labels: Labels,
        drop: Drop,
    ) -> Tensor:
        """The velocity + length du/dt, along the flow and with the end of the step held (eq. 10).

        In forward mode, float32 and without fused attention: fused kernels, and bf16 on a CPU, have no such mode.

        Raises:
            UserError: a layer has none either.
        """
        def mean_velocity(x: Tensor, t: Tensor, length: Tensor) -> Tensor:
            return model.predict(network, x, t, labels, drop, length)

        ahead = (velocity, torch.ones_like(t), -torch.ones_like(t))
        try:
            with torch.autocast(x.device.type, enabled=False), differentiable_forwards():
                _, change = torch.func.jvp(mean_velocity, (x, t, length), ahead)  # type: ignore[misc]
        except NotImplementedError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError("model.method=meanflow needs a derivative in forward mode, which this network has not on "
                            f"this device ({reason}): choose model.method=shortcut") from error
        return velocity + length[:, None, None, None] * change

    def length(self, model: Any, here: Point, to: Point | None) -> float:
        """The time of flow matching between the two."""
        return 0.0 if to is None else float(to[0] / (to[0] + to[1]) - here[0] / (here[0] + here[1]))

    def guided_already(self, sampler: str, steps: int) -> bool:
        """Always."""
        return True

    def check(self, process: str, prediction: str) -> None:
        """Refuses all but velocities of flow matching."""
        if (process, prediction) != ("flow", "flow"):
            raise UserError("model.method=meanflow learns velocities of flow matching: choose a teacher that is one, "
                            "model.process=flow with model.prediction=flow, or model.method=shortcut")


METHODS: dict[str, type[Method]] = {"shortcut": Shortcut, "consistency": Consistency, "meanflow": MeanFlow}


def method_named(name: str, options: Mapping[str, Mapping[str, int | float]]) -> Method:
    """The method called `name` with its `options`.

    Raises:
        UserError: an unknown name or option, or one that is missing.
    """
    if name not in METHODS:
        raise UserError(f"There is no model.method '{name}': {choices(name, METHODS)}")
    known, given = [one.name for one in fields(METHODS[name])], options.get(name, {})  # type: ignore[arg-type]
    check_known(given, known, f"model.methods.{name}")
    if missing := [option for option in known if option not in given]:
        raise UserError(f"model.methods.{name} needs the option '{missing[0]}': give it a value")
    return METHODS[name](**given)  # type: ignore[arg-type]


def within(interval: Any, s: Tensor) -> Tensor:
    """Whether noise levels lie in `interval` (Kynkäänniemi et al. 2024); None is everywhere."""
    return torch.ones_like(s, dtype=torch.bool) if interval is None else (s >= interval[0]) & (s <= interval[1])
