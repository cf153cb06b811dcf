"""AdamW as transformers are trained with it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def adamw(
    network: nn.Module, *, lr: float, betas: Sequence[float], weight_decay: float, **more: Any
) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019) of all parameters; biases, gains and single vectors do not decay."""
    parameters = list(network.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
              {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=True, **more)
