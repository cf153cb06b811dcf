"""Filtered resampling: known pixels, and both ways to compute it agree, with all derivatives."""

import pytest
import torch

from aigc.losses.ada import SYM6
from aigc.networks.resample import TAPS, Resample, blur, downsample, shifted_sum, upsample

WAYS = [  # ours, (up, down, padding) for TAPS, and for SYM6
    (upsample, (2, 1, 2, 1), (2, 1, 6, 5)), (downsample, (1, 2, 1, 1), (1, 2, 5, 5)),
    (lambda x, taps: blur(x, 2, taps), (1, 1, 2, 2), (1, 1, 2, 2)),
]


def test_constant_images_stay_and_a_pixel_spreads_as_the_taps_say():
    flat = torch.ones(1, 2, 8, 8)
    assert torch.allclose(upsample(flat)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    assert torch.allclose(downsample(flat)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))
    one = torch.zeros(1, 1, 5, 5)
    one[..., 2, 2] = 64
    line = torch.tensor([1.0, 3, 3, 1])
    assert torch.equal(upsample(one)[0, 0, 3:7, 3:7], 4 * line[:, None] * line)
    assert torch.equal(blur(one, 2)[0, 0, 1:5, 1:5], line[:, None] * line)
    assert torch.equal(downsample(one)[0, 0], line[[3, 1]][:, None] * line[[3, 1]])


@pytest.mark.parametrize("size", [(5, 8), (16, 17)])
@pytest.mark.parametrize(("ours", "short", "long"), WAYS)
@pytest.mark.parametrize("taps", [TAPS, SYM6])
def test_the_form_for_gpus_equals_the_convolution_and_so_do_its_first_two_derivatives(ours, short, long, taps, size):
    up, down, first, last = short if taps == TAPS else long
    if min(size) + first + last < len(taps):
        return
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    order = tuple(taps)[::-1] if up == 2 else tuple(taps)

    def theirs(x):
        return up**2 * Resample.apply(x, order, up, down, (first, last, first, last))

    found = []
    for way in (lambda x: ours(x, taps), theirs):
        inputs = x.clone().requires_grad_()
        y = way(inputs)
        (gradient,) = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), inputs)
        found.append((y, gradient, second))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_form_for_gpus_compiles_whole():
    compiled = torch.compile(shifted_sum, backend="eager", fullgraph=True, dynamic=True)
    for size in (6, 9):
        x = torch.randn(1, 2, size, size)
        assert torch.equal(compiled(x, TAPS, 2, 1, (2, 1, 2, 1)), shifted_sum(x, TAPS, 2, 1, (2, 1, 2, 1)))


def test_under_autocast_it_is_computed_in_float32():
    x = torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(upsample(x), upsample(x.clone())) and upsample(x).dtype == torch.float32
        assert downsample(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(downsample(x.bfloat16()), downsample(x.bfloat16().float()).bfloat16())
