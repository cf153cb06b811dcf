"""How much faster codes are drawn with kept keys and values than by reading all codes before each anew.

    python experiments/prior/cached.py [--rounds 3] [--images 64] [--family prior]

The network is the recipe's, of a prior under labels or of a DALL-E under captions of 16 places, with its first
weights: what it draws costs no more once it is trained.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from aigc.models import dalle, prior
from aigc.networks.tokens import Choice
from aigc.networks.transformer import Cache

CODES, WORDS, PLACES = 256, 30, 16
Follow = Callable[[Tensor, Cache | None], Tensor]   # codes (n, k) after those in the cache to logits of the next


def under_labels(grid: tuple[int, int], n: int, device: str) -> tuple[Follow, Callable[[], Cache]]:
    """A prior's logits of the next code, and a new cache for it."""
    shape = prior.Network(width=128, layers=4, heads=4, positions="learned", dropout=0.1)
    network = prior.CodeTransformer(CODES, grid, shape, order="causal", condition="label",
                                    facts={"classes": 10, "vocabulary": None}, text={}).eval().to(device)
    torch.nn.init.normal_(network.logits.weight, std=0.05)
    given = network.under(torch.arange(n, device=device) % 10, n=n)
    return lambda codes, cache: network(codes, given, cache=cache)[:, -1], network.transformer.cache


def under_captions(grid: tuple[int, int], n: int, device: str) -> tuple[Follow, Callable[[], Cache]]:
    """A DALL-E's logits of the next code, and a new cache for it."""
    shape = dalle.Network(width=128, layers=4, heads=4, dropout=0.1)
    network = dalle.TextImageTransformer([str(k) for k in range(WORDS)], CODES, grid, shape, words="words",
                                         tokens=PLACES).eval().to(device)
    torch.nn.init.normal_(network.code_logits.weight, std=0.05)
    text = network.padded(torch.randint(WORDS, (n, 5), device=device))
    first = torch.zeros(n, dtype=torch.bool, device=device)

    def follow(codes: Tensor, cache: Cache | None) -> Tensor:
        tokens = codes + network.first_code
        if cache is None or not cache.tokens:
            tokens = torch.cat([text, tokens], dim=1)
        return network.code_logits(network(tokens, first, cache=cache)[:, -1])

    return follow, network.transformer.cache


def uncached(follow: Follow, fresh: Callable[[], Cache], numbers: Tensor) -> Tensor:
    """Codes `(n, L)`: every code before is read again for each."""
    codes, choice = torch.zeros(len(numbers), 0, dtype=torch.int64, device=numbers.device), Choice()
    for place in range(numbers.shape[1]):
        drawn = choice(follow(codes, None), numbers[:, place])
        codes = torch.cat([codes, drawn[:, None]], dim=1)
    return codes


def cached(follow: Follow, fresh: Callable[[], Cache], numbers: Tensor) -> Tensor:
    """The same codes: each is read once."""
    new = torch.zeros(len(numbers), 0, dtype=torch.int64, device=numbers.device)
    cache, codes, choice = fresh(), [new], Choice()
    for place in range(numbers.shape[1]):
        new = choice(follow(new, cache), numbers[:, place])[:, None]
        codes.append(new)
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
    parser.add_argument("--family", choices=("prior", "dalle"), default="prior")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    build, grids = {"prior": (under_labels, ((7, 7), (16, 16))), "dalle": (under_captions, ((8, 8), (16, 16)))}[
        args.family]
    print(f"{'codes':>7} {'images':>6} {'anew, s':>8} {'kept, s':>8} {'ratio':>6}  between")
    for grid in grids:
        for n in (1, args.images):
            torch.manual_seed(0)
            follow, fresh = build(grid, n, device)
            numbers = torch.rand(n, grid[0] * grid[1], dtype=torch.float64, device=device)
            both = [partial(draw, follow, fresh, numbers) for draw in (uncached, cached)]
            same = (both[0]() == both[1]()).float().mean()
            assert same > 0.99, f"only {same:.1%} of the codes are the same"
            times = [[seconds(work) for work in both] for _ in range(args.rounds)]
            ratios = sorted(slow / fast for slow, fast in times)
            slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{grid[0]:>3} x{grid[1]:>2} {n:>6} {slow:>8.3f} {fast:>8.3f} {statistics.median(ratios):>6.1f}"
                  f"  {ratios[0]:.1f} to {ratios[-1]:.1f}", flush=True)


if __name__ == "__main__":
    main()
