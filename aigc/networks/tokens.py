"""Tokens from logits: which are drawn, and in which order places are filled.

Notable:
- A token is the inverse of the cumulative distribution at one uniform number, so it depends on nothing but its own
  logits and its own number: not on the batch, and not on what else is drawn.
- Places in order are drawn after everything before them, read once by each pass of guidance (`draw_in_order`).
- Logits that are left out are -inf: no rounding can bring their tokens back.
- Masked places are filled over several steps by MaskGIT's cosine schedule (Chang et al. 2022, section 3.2), the most
  confident first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, inf, pi

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.noise import SeededNoise

Logits = Callable[[Tensor, Tensor], Tensor]  # of codes (n, L) and the places (n, L) among them that are masked
Pass = Callable[[Tensor], Tensor]            # tokens (n, k) that follow those read before to logits (n, K) of the next


@dataclass(frozen=True)
class Choice:
    """How a token is drawn from its logits.

    Raises:
        UserError: a number is out of its range.
    """

    temperature: float = 1.0   # logits are divided by it; 0: the likeliest token
    top_k: int = 0             # among the k likeliest only (Fan et al. 2018); 0: all
    top_p: float = 1.0         # of these, the likeliest that together reach this probability (Holtzman et al. 2020)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} is below 0: give 1 for the model itself, less for "
                            "likelier tokens")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise UserError(f"top_k={self.top_k} is no number of tokens: give a whole number, 0 for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is no probability above 0: give one up to 1, which is all")

    def kept(self, logits: Tensor) -> Tensor:
        """Logits `(..., K)`, float32, at this temperature; those of tokens that may not be drawn are -inf.

        The token with which `top_p` is reached is kept: the likeliest one always is.
        """
        logits = logits.float()
        few = 1 if self.temperature == 0 else self.top_k
        if self.temperature > 0:
            logits = logits / self.temperature
        if not few and self.top_p == 1:
            return logits
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        if few:
            ordered[..., few:] = -inf
        if self.top_p < 1:
            shares = ordered.softmax(-1)
            ordered = ordered.masked_fill(shares.cumsum(-1) - shares >= self.top_p, -inf)
        return torch.full_like(logits, -inf).scatter(-1, places, ordered)

    def __call__(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Tokens `(...)` int64 for logits `(..., K)` and numbers `(...)` float64 in [0, 1)."""
        reached = self.kept(logits).double().softmax(-1).cumsum(-1)
        wanted = uniforms[..., None] * reached[..., -1:]
        return torch.searchsorted(reached, wanted, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


def uniforms(noise: SeededNoise, *shape: int) -> Tensor:
    """The next uniform numbers `(n, *shape)`, float64 in (0, 1), of each image's own stream."""
    return torch.special.ndtr(noise(*shape).double())


def hidden(count: Tensor, numbers: Tensor) -> Tensor:
    """Which of L places are masked, `(n, L)` bool: `count` `(n,)` of each row, where `numbers` `(n, L)` are least."""
    return numbers.argsort(dim=1).argsort(dim=1) < count[:, None]


def guided(answers: Sequence[Tensor], w: float) -> Tensor:
    """Logits u + w (c - u) of a conditional and a null pass, or those of the only pass (Ho and Salimans 2022)."""
    return answers[0] if len(answers) == 1 else answers[1] + w * (answers[0] - answers[1])


def draw_in_order(
    passes: Sequence[Pass], w: float, codes: Tensor, masked: Tensor, choice: Choice, numbers: Tensor
) -> Tensor:
    """Codes `(n, L)` in which the `masked` `(n, L)` ones are drawn, one place after the other; the others stay.

    Args:
        passes: the conditional and the null one, or the only one; each remembers what it has read.
        w: scale of guidance.
        codes: int64; those that are masked are not looked at.
        masked: which are drawn.
        choice: how.
        numbers: `(n, L)`, in [0, 1), that decide.
    """
    places = masked.any(0).nonzero()[:, 0].tolist()
    codes, read = codes.clone(), 0
    for place in range(places[0], places[-1] + 1) if places else ():
        fresh, read = codes[:, read:place], place          # all that are known at first, then one at a time
        logits = guided([follow(fresh) for follow in passes], w)
        codes[:, place] = torch.where(masked[:, place], choice(logits, numbers[:, place]), codes[:, place])
    return codes


def cosine_schedule(masked: Tensor, steps: int) -> Tensor:
    """How many places each step fills, `(steps, n)` int64, of `masked` `(n,)` places; every column sums to `masked`.

    After step t of T, floor(masked * cos(pi t / 2 T)) are left, and at least one is filled while any is (as in the
    code of Chang et al. 2022).
    """
    left, filled = masked, []
    for step in range(1, steps + 1):
        share = cos(pi / 2 * step / steps) if step < steps else 0.0
        after = torch.minimum((masked.double() * share).floor().to(masked.dtype), left - 1).clamp(min=0)
        filled.append(left - after)
        left = after
    return torch.stack(filled)


def fill(
    logits: Logits, codes: Tensor, masked: Tensor, choice: Choice, noise: SeededNoise, *, steps: int, spread: float
) -> Tensor:
    """Codes `(n, L)` with the `masked` `(n, L)` ones drawn; the others stay as they are (Chang et al. 2022, fig. 3).

    Every step draws all masked codes, each by itself, and keeps those of the highest confidence: log probability plus
    `spread` times Gumbel noise, which fades as the steps go on.
    """
    plan = cosine_schedule(masked.sum(1).cpu(), steps)
    for step, count in enumerate(plan, 1):
        if not count.any():
            break
        found = logits(codes, masked).float()
        numbers = uniforms(noise, 2, codes.shape[1])
        drawn = choice(found, numbers[:, 0])
        confidence = found.log_softmax(-1).gather(-1, drawn[..., None])[..., 0].double()
        confidence = confidence - spread * (1 - step / steps) * (-numbers[:, 1].log()).log()
        rank = confidence.masked_fill(~masked, -inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = masked & (rank < count.to(rank.device)[:, None])
        codes, masked = torch.where(kept, drawn, codes), masked & ~kept
    return codes
