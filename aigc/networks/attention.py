"""Attention, in the precision that is fastest on the device."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`scaled_dot_product_attention` of `(n, heads, tokens, width)`; `mask` is True for tokens to attend to.

    Always in float32 on a CPU: forward and backward of 64 images with 64 positions and two heads of 32 take 7 ms in
    float32 and 11 to 18 ms in bf16 there (one core, torch 2.14).
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.to(torch.float32, memory_format=torch.contiguous_format) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
