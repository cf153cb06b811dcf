"""Random numbers per image, so that image k never depends on the batch in which it is made."""

import math
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


# ---- by a counter, in tensors on any device: no stream to continue, and no batch to depend on ----


def _shift(x: Tensor, by: int) -> Tensor:
    """The unsigned right shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def bits(seeds_N: Tensor, purpose: int, count: int) -> Tensor:
    """`(N, count)` random int64, entry k a function of (seed, purpose, k): splitmix64's finalizer."""
    place = torch.arange(count, dtype=torch.int64, device=seeds_N.device)
    x = (seeds_N[:, None] ^ (purpose * 0x632BE59BD9B4E019 & 0x7FFFFFFFFFFFFFFF)) + (place + 1) * -0x61C8864680B583EB
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def uniform(seeds_N: Tensor, purpose: int, count: int) -> Tensor:
    """`(N, count)` numbers between 0 and 1, neither included; float32."""
    return (_shift(bits(seeds_N, purpose, count), 41).float() + 0.5) * 2.0**-23


def normal(seeds_N: Tensor, purpose: int, count: int) -> Tensor:
    """`(N, count)` standard normal numbers, by Box and Muller; float32."""
    both = bits(seeds_N, purpose, (count + 1) // 2)
    radius = (-2 * ((_shift(both, 41).float() + 0.5) * 2.0**-23).log()).sqrt()
    angle = ((both & 0xFFFFFF).float()) * (2 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]
