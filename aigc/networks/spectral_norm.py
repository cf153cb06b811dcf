"""Spectral norm (Miyato et al. 2018) of whole networks: weights divided by their largest singular value.

Torch's parametrization estimates it by one power iteration a training forward, from vectors u and v that it keeps as
buffers; in eval mode it iterates no more.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

WEIGHTED = (nn.Conv2d, nn.Linear, nn.Embedding)


def normalise(network: nn.Module, *, leave: Iterable[nn.Module | None] = ()) -> None:
    """Puts spectral norm on every convolution, linear layer and embedding, except those of `leave`."""
    left = {id(module) for module in leave}
    for module in list(network.modules()):
        if isinstance(module, WEIGHTED) and id(module) not in left:
            parametrizations.spectral_norm(module)


def own_weight(layer: Any) -> Tensor:
    """A layer's weight `(out, ...)` itself, before spectral norm divides it."""
    return layer.parametrizations.weight.original if is_parametrized(layer, "weight") else layer.weight


def spectral_norms(network: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """The network's spectral norms, each with the weight `(out, ...)` that it divides."""
    layers: list[Any] = [module for module in network.modules() if is_parametrized(module, "weight")]
    pairs = [(layer.parametrizations.weight[0], own_weight(layer)) for layer in layers]
    return [(norm, weight) for norm, weight in pairs if isinstance(norm, parametrizations._SpectralNorm)]


@torch.no_grad()
def iterate(norms: Iterable[tuple[nn.Module, Tensor]]) -> None:
    """One power iteration of each of these spectral norms on its weight, whatever mode its network is in."""
    for norm, weight in norms:
        mode = norm.training
        norm.train()(weight)
        norm.train(mode)
