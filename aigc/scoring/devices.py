"""The devices that share a scoring: evaluation has one, training as many as it trains on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Devices:
    """This process's place among those that score together; alone, unless Lightning's strategy is given."""

    rank: int = 0
    world: int = 1
    device: torch.device | None = None      # where the strategy's sums are taken
    strategy: Any = None

    @property
    def first(self) -> bool:
        """Whether this one keeps the real side and computes the scores."""
        return self.rank == 0

    @property
    def share(self) -> dict[str, int]:
        """The arguments that give this one's share of items."""
        return {"rank": self.rank, "world": self.world}

    def broadcast(self, value: Any) -> Any:
        """The first one's value, on all."""
        return value if self.strategy is None else self.strategy.broadcast(value, src=0)

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` returns on each; the first one trains or downloads, and the others find it in the cache."""
        made: list[T] = []
        for turn in (True, False):
            if self.first == turn:
                made.append(make())
            if self.strategy is not None:
                self.strategy.barrier()
        return made[0]

    def collect(self, numbers: Sequence[int], parts: Sequence[Mapping[str, Tensor]], n: int) -> dict[str, Tensor]:
        """The values of n items that all hold shares of, on all, in the order of the items, each in its own type.

        Args:
            numbers: of this one's items, in the order of the rows of its parts.
            parts: tensors `(m, ...)` by name, the same names and shapes everywhere.
            n: number of items; rows of those that nobody has are left out.
        """
        mine = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]} if parts else {}
        kinds = {name: (value.shape[1:], value.dtype) for name, value in mine.items()}
        own = torch.zeros(n, dtype=torch.uint8)
        own[list(numbers)] = 1
        there = self._total(own) > 0
        found = {}
        for name, (shape, dtype) in next(filter(None, self.gather(kinds)), {}).items():
            table = torch.zeros(n, *shape, dtype=dtype)
            if mine:
                table[list(numbers)] = mine[name]
            found[name] = self._total(table)[there]
        return found

    def _total(self, table: Tensor) -> Tensor:
        if self.world == 1:
            return table
        sent = table.to(self.device, torch.uint8 if table.dtype == torch.bool else table.dtype)
        return self.strategy.reduce(sent, reduce_op="sum").cpu().to(table.dtype)


ALONE = Devices()
