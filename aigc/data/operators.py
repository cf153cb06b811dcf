"""What degradations do to a batch of images, as operators: A x, and for linear ones A^T y and A^+ y.

Images are float32 in [0, 1]; parameters are drawn already, one for each image (`data/degradation.py`).

Shape suffixes: N batch, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aigc.data.jpeg import compress
from aigc.errors import UserError
from aigc.networks.resample import resize
from aigc.noise import normal

LUMA = (0.299, 0.587, 0.114)                               # ITU-R BT.601, as JPEG has it
TRUNCATE = 4.0                                             # standard deviations of a Gaussian kernel, on each side
CUTOFF = 1e-3                                              # singular values below this share of the largest are zero


class Operator:
    """What became of a batch of images: parameters are drawn, one for each image."""

    name: ClassVar[str] = ""
    linear: ClassVar[bool] = True                          # apart from noise

    def __call__(self, x: Tensor) -> Tensor:
        """Degraded images of `x` `(N, C, H, W)` in [0, 1]."""
        return self.apply(x)

    def apply(self, x: Tensor) -> Tensor:
        """A x: without noise."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y.

        Raises:
            UserError: this degradation is not linear.
        """
        raise UserError(f"'{self.name}' is not linear: it has neither an adjoint nor a pseudo-inverse, and a solver "
                        "that needs them cannot undo it")

    def inverse(self, y: Tensor) -> Tensor:
        """A^+ y, by the pseudo-inverse.

        Raises:
            UserError: this degradation is not linear.
        """
        return self.adjoint(y)


class Projection(Operator):
    """One that is its own adjoint and its own pseudo-inverse: A = A^T = A A."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A y."""
        return self.apply(y)


@dataclass
class Noise(Projection):
    """White Gaussian noise on top: A is the identity."""

    name: ClassVar[str] = "noise"
    sigma_N: Tensor                                        # standard deviation, in units of [0, 1]
    seeds_N: Tensor
    purpose: int

    def __call__(self, x: Tensor) -> Tensor:
        """Images with noise: x + sigma n."""
        drawn = normal(self.seeds_N, self.purpose, x[0].numel()).view_as(x)
        return x + self.sigma_N[:, None, None, None] * drawn

    def apply(self, x: Tensor) -> Tensor:
        """The images themselves."""
        return x


@dataclass
class Separable(Operator):
    """One linear map of rows and one of columns: A x = R x C^T."""

    rows: Tensor                                           # R (N or 1, H', H)
    columns: Tensor                                        # C (N or 1, W', W)

    def apply(self, x: Tensor) -> Tensor:
        """R x C^T."""
        return self.rows[:, None] @ x @ self.columns[:, None].mT

    def adjoint(self, y: Tensor) -> Tensor:
        """R^T y C."""
        return self.rows[:, None].mT @ y @ self.columns[:, None]

    def inverse(self, y: Tensor) -> Tensor:
        """R^+ y C^+T; singular values below 0.001 of the largest count as zero."""
        back = [torch.linalg.pinv(one.double(), rtol=CUTOFF).float() for one in (self.rows, self.columns)]
        return back[0][:, None] @ y @ back[1][:, None].mT


class Blur(Separable):
    """By a Gaussian of each image's own width."""

    name = "blur"


class Downscale(Separable):
    """Smaller by a factor, by the one antialiased bicubic resize."""

    name = "downscale"


@dataclass
class Jpeg(Operator):
    """What a JPEG file keeps (`data/jpeg.py`)."""

    name: ClassVar[str] = "jpeg"
    linear: ClassVar[bool] = False
    quality_N: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The images as files of this quality hold them."""
        return compress(x, self.quality_N)


@dataclass
class Mask(Projection):
    """Holes: A x is x where `keep` is 1, and black elsewhere."""

    name: ClassVar[str] = "boxes"
    keep: Tensor                                           # (N, 1, H, W), 1 kept and 0 lost

    def apply(self, x: Tensor) -> Tensor:
        """What is kept."""
        return x * self.keep


@dataclass
class Grey(Operator):
    """Luma in all three channels; grey images stay."""

    name: ClassVar[str] = "grey"
    channels: int

    def apply(self, x: Tensor) -> Tensor:
        """The luma, in every channel."""
        if self.channels != 3:
            return x
        return (x * self._weights(x)).sum(1, keepdim=True).expand_as(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The sum of the channels, weighed as luma weighs each."""
        return y if self.channels != 3 else self._weights(y) * y.sum(1, keepdim=True)

    def inverse(self, y: Tensor) -> Tensor:
        """The smallest image of this luma: not the grey one, as channels weigh differently."""
        if self.channels != 3:
            return y
        weights = self._weights(y)
        return weights / weights.square().sum() * y.mean(1, keepdim=True)

    def _weights(self, x: Tensor) -> Tensor:
        return x.new_tensor(LUMA)[:, None, None]


@dataclass
class Chain(Operator):
    """Several, one after the other."""

    operators: list[Operator]

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether all of them are."""
        return all(one.linear for one in self.operators)

    def __call__(self, x: Tensor) -> Tensor:
        """Degraded images."""
        for one in self.operators:
            x = one(x)
        return x

    def apply(self, x: Tensor) -> Tensor:
        """A x of all, without noise."""
        for one in self.operators:
            x = one.apply(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoints, last one first."""
        for one in reversed(self.operators):
            y = one.adjoint(y)
        return y

    def inverse(self, y: Tensor) -> Tensor:
        """The pseudo-inverses, last one first: of one operator the pseudo-inverse, of several an approximation."""
        for one in reversed(self.operators):
            y = one.inverse(y)
        return y

    def level(self, n: int) -> Tensor:
        """Standard deviation of the noise of each image `(n,)`, in units of [0, 1]; 0 without any."""
        squares = [one.sigma_N.square() for one in self.operators if isinstance(one, Noise)]
        return torch.stack(squares).sum(0).sqrt() if squares else torch.zeros(n)

    def kept(self) -> Tensor | None:
        """What no mask took `(N, 1, H, W)`, 1 kept and 0 lost; None without masks."""
        masks = [one.keep for one in self.operators if isinstance(one, Mask)]
        return torch.stack(masks).prod(0) if masks else None


# ---- matrices ----


def gaussian_matrix(sigma_N: Tensor, side: int, *, most: float) -> Tensor:
    """Gaussian blur along a line as matrices `(N, side, side)`: mirrored at the ends, cut at four sigma.

    Sigma is at most `most`; 0 is the identity.
    """
    reach = max(1, int(TRUNCATE * most + 0.5))
    offset = torch.arange(-reach, reach + 1, device=sigma_N.device)
    sigma = sigma_N[:, None].clamp(min=1e-3)
    kernel = (-0.5 * (offset / sigma).square()).exp() * (offset.abs() <= (TRUNCATE * sigma + 0.5).floor())
    kernel = kernel / kernel.sum(1, keepdim=True)
    place = (torch.arange(side, device=sigma_N.device)[:, None] + offset) % (2 * side)
    place = torch.minimum(place, 2 * side - 1 - place)     # d c b a | a b c d | d c b a
    n, index = len(sigma_N), place.expand(len(sigma_N), -1, -1)
    return torch.zeros(n, side, side, device=sigma_N.device).scatter_add_(
        2, index, kernel[:, None].expand(n, side, -1).contiguous())


def resize_matrix(side: int, to: int, device: torch.device | str = "cpu") -> Tensor:
    """The antialiased bicubic `resize` along a line as a matrix `(to, side)`."""
    lines = torch.eye(side, device=device)[None, None]     # column k: what becomes of pixel k
    return resize(lines, (to, side))[0, 0]
