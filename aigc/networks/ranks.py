"""Numbers that all ranks must agree on."""

import torch
from torch import Tensor


@torch.no_grad()
def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every rank's `x`, detached; `x` itself where there is one process."""
    x = x.detach()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of every rank's `x`, detached."""
    total = sum_over_ranks(x)
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return total / torch.distributed.get_world_size() if several else total
