"""Batch norm in generators: conditional, equal on all ranks, and with statistics of the averaged weights."""

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from aigc.networks.ranks import distributed, mean_over_ranks


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on a condition vector (de Vries et al. 2017); plain without one."""

    def __init__(self, features: int, vector: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(features)
        self.modulate = nn.Linear(vector, 2 * features) if vector else None

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """`x` `(n, features, h, w)`, `vector` `(n, vector)` or None."""
        x = self.norm(x)
        if self.modulate is None:
            return x
        gain, bias = self.modulate(vector)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        return torch.addcmul(bias + x, gain, x)


@torch.no_grad()
def share_statistics(*networks: nn.Module) -> None:
    """Averages running statistics over the ranks, in place; otherwise every rank would sample a different network."""
    if not distributed():
        return
    norms = [m for network in networks for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    running = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    if running:
        mean = mean_over_ranks(torch.cat(running))
        torch._foreach_copy_(running, list(mean.split([len(buffer) for buffer in running])))


@torch.no_grad()
def standing_statistics(network: nn.Module, batches: Iterable[tuple[Tensor | None, ...]]) -> nn.Module:
    """A copy of `network`, in eval mode, whose batch-norm statistics are plain averages over `batches` of inputs.

    Brock et al. 2019, appendix C.1: averaged weights never run in training, which thus does not measure statistics.
    """
    network = deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None                         # cumulative average
    for inputs in batches:
        network(*inputs)
    return network.eval()
