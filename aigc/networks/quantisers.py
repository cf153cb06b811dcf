"""Quantisers of latents: a codebook, learned by gradient or by moving averages, and finite scalars without any.

Notable:
- One interface, that of any bottleneck between an encoder and a decoder: `project` turns the encoder's output into
  latents, `forward` is what training sees of it (`Passed`), and `snap` moves latents to their nearest codes.
- Straight through (van den Oord et al. 2017): the decoder sees exactly the code's vector, and its gradient reaches the
  encoder as it is.
- beta weighs the encoder's term, the commitment, as in the paper; by default taming-transformers weighs the other.
- Statistics are summed over all devices, and the first one draws what is random: codebooks stay equal to the last bit.

Shape suffixes: N batch, D length of a code's vector, H height, W width, K codes, B vectors (N * H * W).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.ranks import distributed, sum_over_ranks


class Passed(NamedTuple):
    """What leaves a bottleneck in training."""

    latents: Tensor                          # (N, D, H, W) for the decoder
    cost: Tensor                             # scalar that the bottleneck adds to the loss
    logs: dict[str, Tensor]                  # scalars, detached
    codes: Tensor | None                     # (N, H, W) int64; None: there are none


def straight_through(latents: Tensor, quantised: Tensor) -> Tensor:
    """Exactly `quantised`, with the gradient of `latents`; both of one shape."""
    return quantised.detach() + (latents - latents.detach())


def perplexity(usage: Tensor) -> Tensor:
    """exp(entropy) of how often codes are used `(K,)`, from 1 to K: as many equally frequent codes carry as much."""
    share = usage.double() / usage.sum().clamp(min=1e-30)
    return torch.exp(-torch.xlogy(share, share).sum()).float()


class Codebook(nn.Module):
    """K vectors, the nearest of which replaces a latent; they follow the loss (van den Oord et al. 2017, equation 3).

    The first training batch initialises them with its own latents. With `cosine` (Yu et al. 2022, ViT-VQGAN) latents
    and vectors have length 1, so that the nearest is the one at the smallest angle.
    """

    vectors: Tensor                          # (K, D)
    initialised: Tensor                      # () bool

    def __init__(self, codes: int, dimension: int, *, beta: float, cosine: bool = False):
        super().__init__()
        self.inputs = self.dimension = dimension
        self.codes, self.beta, self.cosine = codes, beta, cosine
        self._keep(self._unit(torch.randn(codes, dimension)))
        self.register_buffer("initialised", torch.tensor(False))
        self._known = False                  # to be initialised: the device is not asked at every step

    def _keep(self, vectors: Tensor) -> None:
        self.vectors = nn.Parameter(vectors)

    def _unit(self, vectors: Tensor, dim: int = -1) -> Tensor:
        return F.normalize(vectors, dim=dim) if self.cosine else vectors

    def project(self, z_NDHW: Tensor) -> Tensor:
        """The encoder's output as latents, of the same shape, float32."""
        return self._unit(z_NDHW.float(), dim=1)

    def table(self) -> Tensor:
        """The codes' vectors, `(K, D)`."""
        return self._unit(self.vectors)

    def nearest(self, latents_BD: Tensor) -> Tensor:
        """The nearest code of each latent, `(B,)` int64."""
        table = self.table().detach()
        with torch.autocast(table.device.type, enabled=False):
            apart = torch.addmm(table.square().sum(1), latents_BD.detach().float(), table.T, beta=1, alpha=-2)
        return apart.argmin(1)

    def snap(self, latents_NDHW: Tensor) -> tuple[Tensor, Tensor]:
        """The latents' nearest vectors, of the same shape, and their codes `(N, H, W)` int64."""
        n, _, h, w = latents_NDHW.shape
        codes = self.nearest(latents_NDHW.movedim(1, -1).flatten(0, 2)).view(n, h, w)
        return self.lookup(codes), codes

    def lookup(self, codes_NHW: Tensor) -> Tensor:
        """The vectors of codes, `(N, D, H, W)` float32."""
        return F.embedding(codes_NHW, self.table()).movedim(-1, 1)

    def forward(self, z_NDHW: Tensor) -> Passed:
        """The encoder's output, quantised; the cost is codebook term + beta x commitment, means over all values."""
        latents = self.project(z_NDHW)
        self.initialise(latents.detach().movedim(1, -1).flatten(0, 2))
        quantised, codes = self.snap(latents)
        codebook = F.mse_loss(quantised, latents.detach())
        commitment = F.mse_loss(latents, quantised.detach())
        logs = {"codes/commitment": commitment.detach()}
        return Passed(straight_through(latents, quantised), codebook + self.beta * commitment, logs, codes)

    @torch.no_grad()
    def initialise(self, latents_BD: Tensor) -> bool:
        """Takes latents of the first training batch as vectors, without repeats where there are enough.

        Returns:
            Whether it did.
        """
        if not self.training or self._known:
            return False
        fresh, self._known = not self.initialised, True
        if fresh:
            self.vectors.copy_(self.drawn(latents_BD))
            self.initialised.fill_(True)
        return fresh

    def drawn(self, latents_BD: Tensor) -> Tensor:
        """K latents at random, of the first device: `(K, D)`, the same on all."""
        few = len(latents_BD) < self.codes
        rows = torch.randint(len(latents_BD), (self.codes,), device=latents_BD.device) if few else \
            torch.randperm(len(latents_BD), device=latents_BD.device)[: self.codes]
        found = latents_BD[rows].contiguous()
        if distributed():
            torch.distributed.broadcast(found, src=0)
        return found


class AveragedCodebook(Codebook):
    """Vectors that are moving averages of the latents they replace (van den Oord et al. 2017, appendix A.1).

    With `restart`, a code whose average use falls below this share of the mean use becomes a latent of the batch, and
    its averages start anew with it (Dhariwal et al. 2020, Jukebox, section 3.1).
    """

    counts: Tensor                           # (K,) average use in a step, of all devices
    sums: Tensor                             # (K, D) average sum of the latents

    def __init__(
        self,
        codes: int,
        dimension: int,
        *,
        beta: float,                         # weight of the commitment
        cosine: bool = False,
        decay: float = 0.99,                 # of the averages, a step
        epsilon: float = 1e-5,               # of Laplace smoothing
        restart: float = 0.0,                # share of the mean use below which a code is dead, 0: never
    ):
        super().__init__(codes, dimension, beta=beta, cosine=cosine)
        self.decay, self.epsilon, self.restart = decay, epsilon, restart
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dimension))

    def _keep(self, vectors: Tensor) -> None:
        self.register_buffer("vectors", vectors)

    def forward(self, z_NDHW: Tensor) -> Passed:
        """The encoder's output, quantised; the cost is beta x commitment. In training the averages move afterwards."""
        latents = self.project(z_NDHW)
        flat = latents.detach().movedim(1, -1).flatten(0, 2)
        self.initialise(flat)
        quantised, codes = self.snap(latents)
        commitment = F.mse_loss(latents, quantised)
        logs = {"codes/commitment": commitment.detach()}
        if self.training:
            logs["codes/restarted"] = self.follow(flat, codes.flatten())
        return Passed(straight_through(latents, quantised), self.beta * commitment, logs, codes)

    @torch.no_grad()
    def initialise(self, latents_BD: Tensor) -> bool:
        """As a codebook's; every vector then stands for the mean use."""
        fresh = super().initialise(latents_BD)
        if fresh:
            world = torch.distributed.get_world_size() if distributed() else 1
            self.counts.fill_(world * len(latents_BD) / self.codes)
            self.sums.copy_(self.vectors * self.counts[:, None])
        return fresh

    @torch.no_grad()
    def follow(self, latents_BD: Tensor, codes_B: Tensor) -> Tensor:
        """Moves the averages towards a step's latents of all devices, restarts dead codes; returns how many."""
        step = latents_BD.new_zeros(self.codes, 1 + self.dimension)
        step.index_add_(0, codes_B, torch.cat([torch.ones_like(latents_BD[:, :1]), latents_BD], dim=1))
        step = sum_over_ranks(step)
        self.counts.lerp_(step[:, 0], 1 - self.decay)
        self.sums.lerp_(step[:, 1:], 1 - self.decay)
        use = self.counts.mean()
        dead = self.counts < self.restart * use
        if self.restart:
            self.counts.copy_(torch.where(dead, use, self.counts))
            self.sums.copy_(torch.where(dead[:, None], use * self.drawn(latents_BD), self.sums))
        self.vectors.copy_(self._unit(self.sums / self.smoothed()[:, None]))
        return dead.sum().float()

    def smoothed(self) -> Tensor:
        """(n + eps) / (N + K eps) * N of the average uses n `(K,)`: none is 0, and their sum stays N."""
        total = self.counts.sum()
        return (self.counts + self.epsilon) / (total + self.codes * self.epsilon) * total


class FiniteScalars(nn.Module):
    """Every value of a latent rounded to one of a few levels (Mentzer et al. 2024, section 3.1 and appendix A).

    Nothing is learned and no term is added. Latents are bounded by tanh, and scaled so that levels lie in [-1, 1]. For
    an even number of levels tanh is shifted by atanh, which puts 0 on a level; the paper's listing has tan there.
    """

    levels: Tensor                           # (D,) int64
    halves: Tensor                           # (D,) levels // 2: from the middle to the lowest
    basis: Tensor                            # (D,) weight of each value in a code

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.inputs = self.dimension = len(levels)
        self.codes = math.prod(levels)
        every = torch.tensor(list(levels))
        self.register_buffer("levels", every, persistent=False)
        self.register_buffer("halves", every // 2, persistent=False)
        self.register_buffer("basis", torch.cat([torch.ones(1).long(), every.cumprod(0)[:-1]]), persistent=False)

    def project(self, z_NDHW: Tensor) -> Tensor:
        """The encoder's output as latents: bounded, of the same shape, float32."""
        reach = (self.levels - 1) * (1 + 1e-3) / 2             # a little beyond the outermost levels
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift, halves = (offset / reach).atanh()[:, None, None], self.halves[:, None, None]
        return ((z_NDHW.float() + shift).tanh() * reach[:, None, None] - offset[:, None, None]) / halves

    def snap(self, latents_NDHW: Tensor) -> tuple[Tensor, Tensor]:
        """The latents on their nearest levels, of the same shape, and their codes `(N, H, W)` int64."""
        halves = self.halves[:, None, None]
        places = (latents_NDHW * halves).round() + halves
        places = places.clamp(min=0).minimum(self.levels[:, None, None] - 1)
        codes = (places.long() * self.basis[:, None, None]).sum(1)
        return places / halves - 1, codes

    def lookup(self, codes_NHW: Tensor) -> Tensor:
        """The values of codes, `(N, D, H, W)` float32."""
        places = codes_NHW[:, None] // self.basis[:, None, None] % self.levels[:, None, None]
        return places / self.halves[:, None, None] - 1

    def forward(self, z_NDHW: Tensor) -> Passed:
        """The encoder's output, quantised at no cost."""
        latents = self.project(z_NDHW)
        quantised, codes = self.snap(latents)
        return Passed(straight_through(latents, quantised), latents.new_zeros(()), {}, codes)
