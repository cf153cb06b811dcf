"""Noise schedules: the diffusion processes by which an image turns into noise, with their times for training and use.

Every process is x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, 1), and the noise level relative to the image is
s = sigma / alpha (the sigma of Karras et al. 2022).

Each process has its own clock t: `Cosine` runs from 0 (image) to 1 (noise), `Karras` from sigma_min to sigma_max,
`Flow` from 0 (noise) to 1 (image), each as in its paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from aigc.diffusion.parametrisations import PARAMETRISATIONS
from aigc.errors import UserError, choices

Pair = tuple[Tensor, Tensor]           # (alpha, sigma)
GOLDEN = 0.6180339887498949            # steps of the golden ratio cover [0, 1] evenly


def normal_quantile(u: Tensor) -> Tensor:
    """The quantile of the standard normal distribution at `u` in (0, 1)."""
    return torch.special.ndtri(u.double().clamp(1e-9, 1 - 1e-9)).float()


def stratified(n: int, device: torch.device) -> Tensor:
    """Random quantiles `(n,)` that cover [0, 1) evenly (Kingma et al. 2021, appendix I.1)."""
    return (torch.rand((), device=device) + torch.arange(n, device=device) / n) % 1


def evenly(index: Tensor) -> Tensor:
    """Fixed quantiles of images, by their numbers `(n,)`: any consecutive ones cover [0, 1) evenly."""
    return ((index.double() + 0.5) * GOLDEN % 1).float()


class Process(Protocol):
    """A noise schedule with its distribution of training times."""

    def scales(self, t: Tensor) -> Pair:
        """(alpha, sigma) at times t."""
        ...

    def time(self, s: Tensor) -> Tensor:
        """The time at which sigma / alpha is s, clipped to the trained range; s may be infinite."""
        ...

    def quantile(self, u: Tensor) -> Tensor:
        """The quantile function of the training-time distribution: the time at share u (in noise or in t)."""
        ...

    def clock(self, t: Tensor) -> Tensor:
        """The time as the network sees it, in about [-1, 1]."""
        ...

    def times(self, steps: int) -> Tensor:
        """`steps` + 1 times from pure noise to the image, spaced for sampling as in the paper."""
        ...


@dataclass(frozen=True)
class Cosine:
    """DDPM's variance-preserving process, cosine schedule: alpha = cos(pi t / 2) (Nichol and Dhariwal 2021).

    `terminal_alpha` is alpha at t = 1: 0 is zero terminal SNR (Lin et al. 2024).
    """

    terminal_alpha: float = 0.0

    @property
    def _angle(self) -> float:
        return math.acos(self.terminal_alpha)

    def scales(self, t: Tensor) -> Pair:
        """(cos, sin) of the angle at t in [0, 1]."""
        angle = t * self._angle
        alpha = torch.where(t >= 1, self.terminal_alpha, angle.cos())  # exactly 0, not -4e-8
        return alpha, angle.sin()

    def time(self, s: Tensor) -> Tensor:
        """The share of the angle."""
        return (s.atan() / self._angle).clamp(0, 1)

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform, but never without any noise."""
        return u.clamp(min=1e-4)

    def clock(self, t: Tensor) -> Tensor:
        """The share t itself, in [0, 1]."""
        return t

    def times(self, steps: int) -> Tensor:
        """Evenly spaced."""
        return torch.linspace(1, 0, steps + 1)


@dataclass(frozen=True)
class Karras:
    """EDM's variance-exploding process: alpha = 1, sigma = t, log-normal training noise (Karras et al. 2022)."""

    mean: float = -1.2         # P_mean: mean of ln sigma in training
    std: float = 1.2           # P_std
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def scales(self, t: Tensor) -> Pair:
        """(1, t)."""
        return torch.ones_like(t), t

    def time(self, s: Tensor) -> Tensor:
        """Sigma itself."""
        return s.clamp(self.sigma_min, self.sigma_max)

    def quantile(self, u: Tensor) -> Tensor:
        """Log-normal."""
        return (self.mean + self.std * normal_quantile(u)).exp().clamp(self.sigma_min, self.sigma_max)

    def clock(self, t: Tensor) -> Tensor:
        """c_noise: ln(sigma) / 4, in [-1.6, 1.1]."""
        return t.log() / 4

    def times(self, steps: int) -> Tensor:
        """Eq. 5, rho 7, and a last step to 0."""
        return torch.cat([karras_noises(max(steps, 1), self.sigma_min, self.sigma_max), torch.zeros(1)])


@dataclass(frozen=True)
class Flow:
    """Flow matching, alpha = t, sigma = 1 - t (Lipman et al. 2023), logit-normal in training (Esser et al. 2024)."""

    mean: float = 0.0          # mean of logit(t) in training; larger is less noise
    std: float = 1.0

    def scales(self, t: Tensor) -> Pair:
        """(t, 1 - t)."""
        return t, 1 - t

    def time(self, s: Tensor) -> Tensor:
        """From s = (1 - t) / t."""
        return 1 / (1 + s)

    def quantile(self, u: Tensor) -> Tensor:
        """Logit-normal."""
        return torch.sigmoid(self.mean + self.std * normal_quantile(u)).clamp(max=1 - 1e-4)

    def clock(self, t: Tensor) -> Tensor:
        """The share t itself, in [0, 1]."""
        return t

    def times(self, steps: int) -> Tensor:
        """Evenly spaced."""
        return torch.linspace(0, 1, steps + 1)


def karras_noises(steps: int, low: float, high: float, *, rho: float = 7.0) -> Tensor:
    """`steps` noise levels from `high` to `low`, evenly spaced in sigma^(1 / rho) (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return ((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho).float()


PROCESSES: dict[str, Callable[..., Process]] = {"ddpm": Cosine, "edm": Karras, "flow": Flow}


def build_process(name: str, prediction: str, options: dict[str, float]) -> Process:
    """The process called `name` with its `options`, for a network that predicts `prediction`.

    Raises:
        UserError: an unknown name or option, or eps predicted where pure noise holds no trace of the image.
    """
    if name not in PROCESSES:
        raise UserError(f"There is no process '{name}' for model.process: {choices(name, PROCESSES)}")
    if prediction not in PARAMETRISATIONS:
        raise UserError(f"There is no model.prediction '{prediction}': {choices(prediction, PARAMETRISATIONS)}")
    known = list(PROCESSES[name].__dataclass_fields__)  # type: ignore[attr-defined]
    for option in options:
        if option not in known:
            raise UserError(f"The process '{name}' has no option '{option}': {choices(option, known or ['none'])}")
    process = PROCESSES[name](**options)
    alpha, _ = process.scales(process.times(1)[:1])
    if prediction == "eps" and float(alpha) == 0:
        raise UserError(
            f"model.prediction=eps cannot start from the pure noise of process '{name}' (zero terminal SNR): "
            "choose model.prediction=v, or model.process=ddpm model.processes.ddpm.terminal_alpha=0.01"
        )
    return process


def path(process: Process, steps: int, *, spacing: str = "own") -> Tensor:
    """(alpha, sigma) at `steps` + 1 points from noise to the image (1, 0), shape `(steps + 1, 2)`, on the CPU.

    `own`: the process's times; `karras`: noise levels of Karras et al. 2022 from 80 to 0.002, then 0;
    `logsnr`: evenly spaced in log SNR over the same range.

    Raises:
        UserError: an unknown spacing, or no steps.
    """
    if steps < 1:
        raise UserError(f"Sampling with sampler.steps={steps} makes no image: give at least 1")
    if spacing == "own":
        alpha, sigma = process.scales(process.times(steps))
    elif spacing in ("karras", "logsnr"):
        rho = 7.0 if spacing == "karras" else 1e4
        alpha, sigma = process.scales(process.time(karras_noises(steps, 0.002, 80.0, rho=rho)))
        alpha, sigma = torch.cat([alpha, torch.ones(1)]), torch.cat([sigma, torch.zeros(1)])
    else:
        raise UserError(f"There is no sampler.spacing '{spacing}': {choices(spacing, ['own', 'karras', 'logsnr'])}")
    return torch.stack([alpha, sigma], dim=1)
