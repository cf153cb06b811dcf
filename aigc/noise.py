"""Random numbers per image, so that image k never depends on the batch in which it is made."""

from collections.abc import Sequence

import torch
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads consecutive seeds


def mix(*numbers: int) -> int:
    """One 63-bit seed from several integers, e.g. (run seed, rank, step), by splitmix64's finalizer."""
    state = 0
    for number in numbers:
        state = (state + _MIX + number) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class SeededNoise:
    """Streams of standard normal noise, one CPU generator per image.

    Successive calls continue each image's own stream (initial noise, then the noise of every sampling step).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.generators = [torch.Generator().manual_seed(mix(int(seed))) for seed in seeds]
        self.device = device

    def __call__(self, *shape: int) -> Tensor:
        """The next noise: `(len(seeds), *shape)`, float32, N(0, 1)."""
        draws = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device) if draws else torch.empty(0, *shape, device=self.device)
