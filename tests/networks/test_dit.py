"""The diffusion transformer: patches, positions, and where it starts."""

import pytest
import torch

from aigc.networks.dit import DiT, patchify, sine_positions, unpatchify


def excited(**options):
    """A small transformer whose zero-initialised layers are woken up."""
    torch.manual_seed(0)
    network = DiT(options.pop("channels", 3), options.pop("size", (8, 12)), 16, **{"layers": 2, "heads": 2, **options})
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_squares_of_the_image_row_by_row_and_go_back(patch):
    x = torch.randn(2, 3, 8, 12)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, 96 // patch**2, 3 * patch**2)
    assert torch.equal(tokens[1, 1].view(3, patch, patch), x[1, :, :patch, patch : 2 * patch])
    assert torch.equal(unpatchify(tokens, patch, (8 // patch, 12 // patch)), x)


def test_positions_are_fixed_sines_of_rows_and_of_columns():
    places = sine_positions(3, 5, 16).view(3, 5, 16)
    assert torch.equal(places[..., :8], places[:, :1, :8].expand(3, 5, 8))              # of the row alone
    assert torch.equal(places[..., 8:], places[:1, :, 8:].expand(3, 5, 8))
    torch.testing.assert_close(places[2, 0, :8], torch.cat([f(2 * 10000.0 ** -(torch.arange(4) / 4))
                                                            for f in (torch.sin, torch.cos)]))
    assert torch.equal(places[0, 0], torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4))
    apart = torch.cdist(places.flatten(0, 1), places.flatten(0, 1)) + torch.eye(15)
    assert float(apart.min()) > 0.3
    network = excited()
    assert not any("places" in name for name in [*dict(network.named_parameters()), *network.state_dict()])


def test_every_block_is_the_identity_and_the_output_zero_at_first():
    torch.manual_seed(0)
    network, x, clock = DiT(3, (8, 12), 16, layers=3, heads=2, context=6), torch.randn(2, 3, 8, 12), torch.rand(2)
    text = torch.randn(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
    assert not network(x, clock, torch.randn(2, 16), text).any()
    tokens, given = torch.randn(2, 24, 16), torch.randn(2, 16)
    for block in network.blocks:
        assert torch.equal(block(tokens, vector_NV=given, text=text), tokens)
    assert not torch.equal(network.stem.weight, torch.zeros_like(network.stem.weight))


def test_it_learns_in_every_parameter():
    network = excited(context=6)
    text = torch.randn(2, 4, 6), torch.tensor([[True] * 2 + [False] * 2, [True] * 4])
    network(torch.randn(2, 3, 8, 12), torch.rand(2), torch.randn(2, 16), text).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("size", "patch"), [((8, 12), 2), ((7, 5), 4), ((1, 1), 1), ((28, 28), 4)])
def test_any_size_comes_back_as_it_was(size, patch):
    network, x = excited(size=size, patch=patch), torch.randn(2, 3, *size)
    assert network(x, torch.rand(2)).shape == x.shape
    with pytest.raises(AssertionError, match="for a grid of"):
        network(torch.randn(2, 3, size[0] + patch, size[1]), torch.rand(2))


def test_time_and_condition_modulate_each_image_alone_and_words_are_read():
    network = excited(context=6)
    x, clock, vector = torch.randn(1, 3, 8, 12).repeat(3, 1, 1, 1), torch.tensor([0.1, 0.1, 0.9]), torch.zeros(3, 16)
    tokens, mask = torch.randn(1, 4, 6).repeat(3, 1, 1), torch.tensor([[True, True, False, False]] * 3)
    same = network(x, clock, vector, (tokens, mask))
    torch.testing.assert_close(same[0], same[1])
    assert float((same[0] - same[2]).detach().abs().max()) > 1e-3
    other = network(x, clock, torch.cat([vector[:1], torch.ones(1, 16), vector[:1]]), (tokens, mask))
    torch.testing.assert_close(other[0], same[0])
    assert float((other[1] - same[1]).detach().abs().max()) > 1e-3
    changed = tokens.clone()
    changed[0, 0], changed[1, 3] = 9.0, 9.0                            # a word that is read, one that is masked
    read = network(x, clock, vector, (changed, mask))
    assert float((read[0] - same[0]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(read[1], same[1])
    with pytest.raises(AssertionError, match="built to read texts"):
        network(x, clock, vector)
