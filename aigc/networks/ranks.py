"""Numbers that all ranks must agree on."""

import torch
from torch import Tensor


def distributed() -> bool:
    """Whether several processes train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every rank's `x`, detached; `x` itself where there is one process."""
    x = x.detach()
    if distributed():
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of every rank's `x`, detached."""
    total = sum_over_ranks(x)
    return total / torch.distributed.get_world_size() if distributed() else total
