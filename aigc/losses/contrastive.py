"""PatchNCE (Park et al. 2020): a patch of a translation should identify the source patch that it came from."""

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(query: Tensor, key: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy, in nats, of finding each patch's place among all places of its image: `(n,)`, means per image.

    `query` (of the translation) and `key` (of the source, detached here) are unit vectors `(n, places, width)` at the
    same places. Equation 3, with negatives from the same image only, in float32.
    """
    assert query.shape == key.shape, f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ key.detach().float().transpose(1, 2) / temperature
        own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        return F.cross_entropy(logits.transpose(1, 2), own, reduction="none").mean(1)
