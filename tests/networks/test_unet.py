"""The U-Net: sizes, modulation, and where it starts."""

import pytest
import torch

from aigc.networks.unet import Attention, UNet, clock_features, groups_for


def excited(**options):
    """A small U-Net whose zero-initialised outputs are woken up."""
    torch.manual_seed(0)
    network = UNet(options.pop("channels", 1), 16, **{"vector": 16, **options}).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("size", [(28, 28), (17, 23), (8, 8), (1, 5)])
@pytest.mark.parametrize("patch", [1, 2])
def test_any_size_comes_back_as_it_was(size, patch):
    network = excited(channels=3, multipliers=[1, 2, 2], patch=patch)
    x = torch.randn(2, 3, *size)
    assert network(x, torch.rand(2)).shape == x.shape


def test_starts_as_zero_and_learns_in_every_parameter():
    torch.manual_seed(0)
    network = UNet(1, 16, multipliers=[1, 2], attention=[1], vector=16)
    x, clock, vector = torch.randn(2, 1, 8, 8), torch.rand(2), torch.randn(2, 16)
    assert float(network(x, clock, vector).detach().abs().max()) == 0
    network = excited(multipliers=[1, 2], attention=[1])
    network(x, clock, vector).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_time_and_condition_modulate_each_image_alone():
    network = excited()
    x, clock, vector = torch.randn(1, 1, 8, 8).repeat(3, 1, 1, 1), torch.tensor([0.1, 0.1, 0.9]), torch.zeros(3, 16)
    same = network(x, clock, vector)
    torch.testing.assert_close(same[0], same[1])
    assert float((same[0] - same[2]).abs().max()) > 1e-3
    other = network(x, clock, torch.cat([vector[:1], torch.ones(1, 16), vector[:1]]))
    torch.testing.assert_close(other[0], same[0])
    assert float((other[1] - same[1]).abs().max()) > 1e-3


def test_further_channels_are_seen_and_not_returned_and_skips_are_scaled():
    network = excited(channels=3, joined=2, multipliers=[1, 2], patch=2)
    x = torch.randn(2, 5, 8, 8)
    made = network(x, torch.rand(1).expand(2))
    assert made.shape == (2, 3, 8, 8)
    x[:, 3:] += 1
    assert float((network(x, torch.rand(1).expand(2)) - made).abs().max()) > 1e-3
    plain, scaled = excited(), excited(skip_scale=0.5)
    seen = {}
    for name, one in (("plain", plain), ("scaled", scaled)):
        one.up[0][0].register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        one.up[1][0].register_forward_pre_hook(lambda _, args, name=name: seen.update({name + " first": args[0]}))
        one(torch.ones(1, 1, 8, 8), torch.zeros(1))
    first = seen["plain first"].chunk(2, dim=1)
    torch.testing.assert_close(seen["scaled first"], torch.cat([first[0], 0.5 * first[1]], dim=1))


def test_two_halvings_at_28_px_need_no_padding():
    assert UNet(1, 16, multipliers=[1, 2], patch=2, vector=16).multiple == 4
    assert UNet(1, 16, multipliers=[1, 2, 2], vector=16).multiple == 4


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    attention = Attention(8, heads=2)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = attention.qkv(attention.norm(x)).view(2, 3, 2, 4, 15).unbind(1)
    weights = ((q.transpose(2, 3) @ k) / 4**0.5).softmax(-1)
    mixed = (v @ weights.transpose(2, 3)).reshape(2, 8, 3, 5)
    torch.testing.assert_close(attention(x), x + attention.out(mixed), atol=1e-5, rtol=1e-5)


def test_clock_features_tell_nearby_times_apart():
    features = clock_features(torch.tensor([0.0, 0.002, 0.5]), 32)
    assert features.shape == (3, 32)
    torch.testing.assert_close(features[0], torch.cat([torch.ones(16), torch.zeros(16)]))
    assert float((features[0] - features[1]).abs().max()) > 0.3


@pytest.mark.parametrize(("channels", "groups"), [(24, 1), (32, 4), (48, 2), (64, 8), (256, 32), (6, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert groups_for(channels) == groups
    assert channels % groups == 0


@pytest.mark.parametrize("options", [{"blocks": [1]}, {"attention": [2]}, {"blocks": 0}])
def test_impossible_layouts_are_refused(options):
    with pytest.raises(AssertionError):
        UNet(1, 16, multipliers=[1, 2], **options)
