"""Numbers that all ranks must agree on, and rows that all of them look at."""

from typing import Any

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


def of_first_rank(number: float, device: torch.device) -> float:
    """The first rank's number, on every rank; `number` itself where there is one process."""
    if not distributed():
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return shared.item()


def ranks() -> int:
    """How many processes train together."""
    return torch.distributed.get_world_size() if distributed() else 1


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of every rank's `x`, detached."""
    total = sum_over_ranks(x)
    return total / torch.distributed.get_world_size() if distributed() else total


class _Gather(torch.autograd.Function):
    """All ranks' rows, one rank after the other; their gradients come back to the rank they belong to, summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient)
        return gradient.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]


def gather_over_ranks(x: Tensor) -> Tensor:
    """Every rank's `x` `(n, ...)`, equally many of each, as `(ranks * n, ...)`; gradients pass to all of them.

    A loss over all rows whose mean over ranks counts has the gradients that one process would have: what a rank's own
    rows do to the others' losses comes back to it, and averaging over ranks (DDP) does the rest.
    """
    return _Gather.apply(x) if distributed() else x  # type: ignore[no-any-return]
