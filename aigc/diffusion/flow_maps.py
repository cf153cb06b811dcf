"""Flow maps: what few-step models learn, where the probability flow takes x in one step, however long.

A step of `euler` from (alpha, sigma) to (alpha', sigma') is right for exactly one image x_0, which `chord` finds. So a
network that is also told where the step ends predicts what it predicts otherwise, for that image: with flow matching,
the mean velocity of the step. In the limit of no step this is the expected image of diffusion.

Points are pairs (alpha, sigma) of tensors that broadcast with images.
"""

import torch
from torch import Tensor

from aigc.diffusion.denoiser import Denoiser
from aigc.diffusion.schedules import Process

Point = tuple[Tensor, Tensor]          # (alpha, sigma)


def step(x: Tensor, x0: Tensor, here: Point, there: Point) -> Tensor:
    """Where a step from x at `here` with the image x0 leads; the same line as in samplers."""
    (alpha, sigma), (alpha_there, sigma_there) = here, there
    return x + (alpha_there - alpha) * x0 + (sigma_there - sigma) * (x - alpha * x0) / sigma


def chord(x: Tensor, end: Tensor, here: Point, there: Point) -> Tensor:
    """The image with which a step from x at `here` leads to `end` at `there`: the inverse of `step`."""
    shrunk = there[1] / here[1]
    return (end - shrunk * x) / (there[0] - shrunk * here[0])


def as_point(points: Tensor, device: torch.device) -> Point:
    """Points `(n, 2)` as a pair that broadcasts with images, each `(n, 1, 1, 1)`."""
    alpha, sigma = points.to(device).view(-1, 2, 1, 1, 1).unbind(1)
    return alpha, sigma


class Grid:
    """The points of a process's own path in `base` steps, a power of two, from noise (place 0) to the image.

    Steps of 2^k of its intervals have level k, up to `levels`.
    """

    def __init__(self, process: Process, base: int):
        self.base, self.levels = base, base.bit_length() - 1
        alpha, sigma = process.scales(process.times(base))
        self.points = torch.stack([alpha, sigma], dim=1)   # (base + 1, 2)
        self._turns = torch.atan2(self.points[:, 1], self.points[:, 0])  # falls from pi / 2 at most to 0

    def path(self, steps: int) -> Tensor:
        """`steps` + 1 of its points, `(steps + 1, 2)`, evenly spread."""
        return self.points[torch.linspace(0, self.base, steps + 1).round().long()]

    def place(self, alpha: Tensor, sigma: Tensor) -> float:
        """Where a noise level lies, from 0 to `base`, linear in the angle between two points."""
        turn = float(torch.atan2(sigma, alpha))
        turns = self._turns
        right = int((turns > turn).sum().clamp(1, self.base))
        between = (turns[right - 1] - turn) / (turns[right - 1] - turns[right])
        return right - 1 + float(between.clamp(0, 1))

    def level(self, here: Point, there: Point) -> int:
        """The level nearest to a step between two points."""
        length = max(self.place(*there) - self.place(*here), 1.0)
        return min(round(float(torch.tensor(length).log2())), self.levels)


class FlowMapDenoiser(Denoiser):
    """A denoiser whose answer depends on where the step ends; without `to` it is that of the shortest step.

    `predict` is asked for predictions at the current `here` and `to`, which it finds here.
    """

    here: Point
    to: Point | None = None

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, to: Point | None = None) -> Tensor:
        """The image with which a step to `to` is right."""
        if to is not self.to:
            self._point = None
        self.here, self.to = (alpha, sigma), to
        return super().__call__(x, alpha, sigma)
