"""The state in which a family is measured during training, so that measuring changes nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from aigc.models.family import Family


@contextmanager
def evaluating(pl_module: Family) -> Iterator[None]:
    """Clock paused, evaluation mode, float32, no gradients; afterwards modes and random states are as before."""
    device = pl_module.device
    modes = [(module, module.training) for module in pl_module.modules()]
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with pl_module.progress.paused(), forked, torch.no_grad(), torch.autocast(device.type, enabled=False):
        pl_module.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
