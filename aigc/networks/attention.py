"""Attention, in the precision that is fastest on the device."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def differentiable_forwards() -> Iterator[None]:
    """Where attention has derivatives in forward mode (`torch.func.jvp`): fused kernels have none."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script`", category=FutureWarning)  # its own use
        yield


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, causal: bool = False, kept: bool = False
) -> Tensor:
    """`scaled_dot_product_attention` of `(n, heads, tokens, width)`; `mask` is True for tokens to attend to.

    With `causal`, query i attends to keys 0 to i; it takes no `mask` then. With `kept`, keys and values are views into
    a cache and are read where they lie: for one query, laying 256 of them out anew would take as long again.

    Always in float32 on a CPU: forward and backward of 64 images with 64 positions and two heads of 32 take 7 ms in
    float32 and 11 to 18 ms in bf16 there (one core, torch 2.14).
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        layout = torch.preserve_format if kept else torch.contiguous_format
        q, k, v = (x.to(torch.float32, memory_format=layout) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class AttentionPool(nn.Module):
    """A map to one vector: its mean asks all of its places, which know where they are (Radford et al. 2021, 2.4)."""

    def __init__(self, width: int, places: int, *, heads: int):
        super().__init__()
        self.heads = heads
        self.places = nn.Parameter(width**-0.5 * torch.randn(places + 1, width))
        self.norm = nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, width, h, w)` to `(n, width)`."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)) + self.places
        n, length, width = tokens.shape
        q = self.query(tokens[:, :1]).view(n, 1, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(tokens).view(n, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return attend(q, k, v).transpose(1, 2).reshape(n, width)
