"""Going back and forth on a sampler's path, so that what is drawn comes to agree with what is known.

RePaint (Lugmayr et al. 2022, section 4.2): after `jump` steps the image is noised again to where they began, and they
are done once more, `resample` times in all. Each time the drawn part is denoised in view of known pixels of the same
noise level. A stretch of a path is a path, so every sampler goes it as it is; those that remember steps start anew.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from aigc.diffusion.samplers import Denoise, Noise, Sampler
from aigc.errors import UserError

OPTIONS = ("resample", "jump")


def resampled(sampler: Sampler, settings: Mapping[str, Any]) -> Sampler:
    """A sampler that goes each stretch of `jump` steps `resample` times; by default the sampler itself.

    Raises:
        UserError: one of these is no whole number of at least 1.
    """
    times, jump = settings.get("resample", 1), settings.get("jump", 1)
    for name, value in (("resample", times), ("jump", jump)):
        if type(value) is not int or not 1 <= value <= 1000:
            raise UserError(f"{name}={value} is no number of {'times' if name == 'resample' else 'steps'}: give one "
                            "from 1 to 1000")
    return sampler if times == 1 else partial(back_and_forth, sampler, times, jump)


def back_and_forth(
    sampler: Sampler, times: int, jump: int, denoise: Denoise, x: Tensor, path: Tensor, *, noise: Noise, **options: Any
) -> Tensor:
    """`sampler` from noise to the image, each stretch of `jump` steps gone `times` times."""
    for start in range(0, len(path) - 1, jump):
        stretch = path[start : start + jump + 1]
        for left in reversed(range(times)):
            ahead = sampler(denoise, x, stretch, noise=noise, **options)
            x = ahead if left == 0 else noised(ahead, stretch[-1], stretch[0], noise)
    return x


def noised(x: Tensor, here: Tensor, there: Tensor, noise: Noise) -> Tensor:
    """From x at `here` to a noisier point: q(x_there | x_here), of the same process; both are (alpha, sigma)."""
    (alpha, sigma), (alpha_there, sigma_there) = here, there
    kept = alpha_there / alpha
    return kept * x + (sigma_there**2 - (kept * sigma) ** 2).clamp(min=0).sqrt() * noise(*x.shape[1:])
