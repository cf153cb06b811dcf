"""How much faster codes are drawn with kept keys and values than by reading all codes before each anew.

    python experiments/prior/cached.py [--rounds 3] [--images 64]

The network is the recipe's, with its first weights: what it draws costs no more once it is trained.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from aigc.models.prior import CodeTransformer, Network
from aigc.networks.tokens import Choice

CODES = 256


def uncached(network: CodeTransformer, grid: tuple[int, int], labels: Tensor, numbers: Tensor) -> Tensor:
    """Codes `(n, L)`: every code before is read again for each."""
    codes, given, choice = labels.new_zeros(len(labels), 0), network.under(labels, n=len(labels)), Choice()
    for place in range(grid[0] * grid[1]):
        drawn = choice(network(codes, given)[:, -1], numbers[:, place])
        codes = torch.cat([codes, drawn[:, None]], dim=1)
    return codes


def cached(network: CodeTransformer, grid: tuple[int, int], labels: Tensor, numbers: Tensor) -> Tensor:
    """The same codes: each is read once."""
    fresh, given, choice = labels.new_zeros(len(labels), 0), network.under(labels, n=len(labels)), Choice()
    cache, codes = network.transformer.cache(), [fresh]
    for place in range(grid[0] * grid[1]):
        fresh = choice(network(fresh, given, cache=cache)[:, -1], numbers[:, place])[:, None]
        codes.append(fresh)
    return torch.cat(codes, dim=1)


def seconds(work: Callable[[], Tensor]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    """Prints a line for each grid and number of images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{'codes':>7} {'images':>6} {'anew, s':>8} {'kept, s':>8} {'ratio':>6}  between")
    for grid in ((7, 7), (16, 16)):
        for n in (1, args.images):
            torch.manual_seed(0)
            shape = Network(width=128, layers=4, heads=4, positions="learned", dropout=0.1)
            network = CodeTransformer(CODES, grid, shape, order="causal", condition="label",
                                      facts={"classes": 10, "vocabulary": None}, text={}).eval().to(device)
            torch.nn.init.normal_(network.logits.weight, std=0.05)
            labels = torch.arange(n, device=device) % 10
            numbers = torch.rand(n, grid[0] * grid[1], dtype=torch.float64, device=device)
            both = [lambda f=f: f(network, grid, labels, numbers) for f in (uncached, cached)]  # noqa: B023
            same = (both[0]() == both[1]()).float().mean()
            assert same > 0.99, f"only {same:.1%} of the codes are the same"
            times = [[seconds(work) for work in both] for _ in range(args.rounds)]
            ratios = sorted(slow / fast for slow, fast in times)
            slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{grid[0]:>3} x{grid[1]:>2} {n:>6} {slow:>8.3f} {fast:>8.3f} {statistics.median(ratios):>6.1f}"
                  f"  {ratios[0]:.1f} to {ratios[-1]:.1f}", flush=True)


if __name__ == "__main__":
    main()
