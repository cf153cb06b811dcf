"""The trained network as samplers and guides ask it: the image that it expects behind noise, in any frame."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aigc.diffusion.parametrisations import Parametrisation
from aigc.diffusion.schedules import Process

Predict = Callable[[Sequence[str], Tensor, Tensor], Sequence[Tensor]]
Together = Callable[[Tensor, Tensor], Sequence[str]]


class Denoiser:
    """`denoiser(x, alpha, sigma)` is the expected image x_0 `(n, c, h, w)` for x = alpha x_0 + sigma eps.

    alpha and sigma are scalar tensors, in any frame: x is rescaled to the point of the trained process that has the
    same sigma / alpha, so that every sampler's path fits every process. sigma must be positive.

    There may be several answers to the same question (with the condition and without it, of an early network), each
    with a name. They are remembered until the next x, so a guide asks for one again at no cost.
    """

    def __init__(
        self,
        process: Process,
        parametrisation: Parametrisation,
        predict: Predict,                            # (names, x_t, times (n,)) to a prediction each, in one batch
        together: Together,                          # names of what is asked at (alpha, sigma)
    ):
        self.process = process
        self.parametrisation = parametrisation
        self.predict = predict
        self.together = together
        self._point: tuple[Tensor, Tensor, Tensor] | None = None
        self._own: tuple[Tensor, Tensor, Tensor, Tensor]      # the same in the process's frame: x, t, alpha, sigma
        self._answers: dict[str, Tensor] = {}                 # images by name, ...
        self._predictions: list[tuple[Tensor, Tensor]] = []   # ... and (image, the prediction that it follows from)

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, to: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The expected image, wherever a sampler's step ends (`to`)."""
        names = self.together(alpha, sigma)
        return self._ask(names, x, alpha, sigma)

    def ask(self, name: str, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The answer that is called `name`: `conditional`, `unconditional` or `early`."""
        return self._ask([name], x, alpha, sigma)

    def lerp(self, start: Tensor, end: Tensor, weight: float) -> Tensor:
        """Start + weight (end - start), for images of which each may be one of the last answers.

        If both are, their predictions are mixed, from which the image follows: the same but for rounding.
        """
        found = [p for image in (start, end) for known, p in self._predictions if known is image]
        if len(found) < 2:
            return torch.lerp(start, end, weight)
        return self._image(torch.lerp(found[0], found[1], weight))

    def _ask(self, names: Sequence[str], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        last = self._point
        if last is None or not (last[0] is x and last[1] is alpha and last[2] is sigma):
            self._move(x, alpha, sigma)
        missing = [name for name in names if name not in self._answers]
        if missing:
            predictions = self.predict(missing, *self._own[:2])
            self._answers |= {name: self._image(p) for name, p in zip(missing, predictions, strict=True)}
        return self._answers[names[0]]

    def _move(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> None:
        t = self.process.time(sigma / alpha)
        own_alpha, own_sigma = self.process.scales(t)
        self._point, self._answers, self._predictions = (x, alpha, sigma), {}, []
        self._own = x * (own_sigma / sigma), t.to(x.device).expand(len(x)), own_alpha, own_sigma

    def _image(self, prediction: Tensor) -> Tensor:
        x, _, alpha, sigma = self._own
        image = self.parametrisation.x0(prediction, x, alpha, sigma)
        self._predictions.append((image, prediction))
        return image
