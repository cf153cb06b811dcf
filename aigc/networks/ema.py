"""Exponential moving average of a network's weights, with its horizon in images."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from aigc.networks.spectral_norm import iterate, spectral_norms


class EMA(nn.Module):
    """Averaged copy of `network`: beta = 0.5^(batch / halflife), halflife = min(halflife_images, ramp * images seen).

    Counted in images as in Karras et al. 2020 (StyleGAN2-ADA) and Karras et al. 2022 (EDM), so the horizon does
    not change with the batch size. Parameters are averaged in float32; buffers (batch-norm statistics) are copied,
    except the vectors of spectral norms: those of the averaged weights are other ones, and iterate after each update.
    The copy is a submodule: it is saved, moved and loaded with its family.
    """

    def __init__(self, network: nn.Module, *, halflife_images: float, ramp: float = 0.05):
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.halflife_images = halflife_images
        self.ramp = ramp

    def train(self, mode: bool = True) -> "EMA":
        """The averaged copy is only used for evaluation: it stays in eval mode."""
        return super().train(False)

    def follow(self, source: nn.Module) -> Callable[[int, int], None]:
        """`update` for a fixed `source`, whose tensors are looked up once instead of at every step (0.7 ms)."""
        averaged, current = ([p.detach() for p in net.parameters()] for net in (self.network, source))
        parts = any(hasattr(p, "full_tensor") for p in current)  # trainer=fsdp: each device holds a shard of each
        spectral = spectral_norms(self.network)
        own = {id(vector) for norm, _ in spectral for vector in norm.buffers()}
        pairs = list(zip(self.network.buffers(), source.buffers(), strict=True))
        kept = [buffer for buffer, _ in pairs if id(buffer) not in own]
        measured = [other for buffer, other in pairs if id(buffer) not in own]

        @torch.no_grad()
        def move(images_seen: int, batch: int) -> None:
            halflife = min(self.halflife_images, self.ramp * images_seen)
            beta = 0.5 ** (batch / max(halflife, 1e-8))
            values = [p.full_tensor() for p in current] if parts else current  # type: ignore[attr-defined]
            torch._foreach_lerp_(averaged, values, 1 - beta)
            if kept:
                torch._foreach_copy_(kept, measured)
            iterate(spectral)

        return move

    def update(self, source: nn.Module, images_seen: int, batch: int) -> None:
        """Moves the average towards `source`, which has just trained on `batch` images, `images_seen` in total."""
        self.follow(source)(images_seen, batch)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The averaged network's forward."""
        return self.network(*args, **kwargs)
