import torch
import torch.nn.functional as F

from aigc.networks.attention import attend
from aigc.networks.unet import UNet


def test_attention_is_torchs_own_and_in_float32_on_a_cpu_under_autocast():
    q, k, v = torch.randn(2, 2, 9, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = (torch.arange(5) < torch.tensor([[3], [5]]))[:, None, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask), expected)
    with torch.autocast("cpu", torch.bfloat16):
        within = attend(q, k, v, mask)
    assert within.dtype == torch.float32
    torch.testing.assert_close(within, expected)


def test_a_unet_that_reads_ignores_masked_tokens_and_starts_silent():
    torch.manual_seed(0)
    network = UNet(1, 8, multipliers=(1, 2), vector=16, cross_attention=[1], context=6)
    x, clock, tokens = torch.randn(2, 1, 8, 8), torch.zeros(2), torch.randn(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    torch.nn.init.normal_(network.out.weight)
    blocks = [m for m in network.modules() if getattr(m, "reading", None) is not None]
    assert len(blocks) == 3                                             # down, middle and up at the lower level
    silent = network(x, clock, text=(tokens, mask))
    torch.testing.assert_close(silent, network(x, clock, text=(tokens * 9, mask)))
    for block in blocks:
        torch.nn.init.normal_(block.reading.out.weight)
    heard = network(x, clock, text=(tokens, mask))
    assert float((heard - silent).abs().max()) > 1e-3
    other = tokens.clone()
    other[0, 2:] = 99.0
    torch.testing.assert_close(network(x, clock, text=(other, mask)), heard)
    torch.testing.assert_close(network(x[:1], clock[:1], text=(tokens[:1, :2], mask[:1, :2])), heard[:1],
                               atol=1e-5, rtol=1e-5)
