"""What identifies the weights of a network."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights: names, shapes and values, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
