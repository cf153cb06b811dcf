"""The transformer: what a token sees, where it is, what is kept of it, and where learning starts."""

import pytest
import torch

from aigc.networks.transformer import Block, Transformer, grid_places, line_places, rotated, rotations

WIDTH, LENGTH = 16, 9
KINDS = {"learned": {"positions": "learned", "norm": "layer"}, "rotary": {"positions": "rotary", "norm": "rms"},
         "grid": {"positions": "rotary", "places": grid_places(2, 3, before=3)}}


def excited(**options):
    """A small transformer whose zero-initialised layers are woken up."""
    torch.manual_seed(0)
    network = Transformer(WIDTH, **{"layers": 2, "heads": 2, "length": LENGTH, **options}).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [0, 5])
def test_kept_keys_and_values_give_what_reading_everything_anew_gives(kind, context):
    network, x = excited(causal=True, context=context, **KINDS[kind]), torch.randn(3, LENGTH, WIDTH)
    text = (torch.randn(3, 4, 5), torch.tensor([[True] * 2 + [False] * 2] * 3)) if context else None
    with torch.no_grad():
        whole = network(x, text=text)
        cache = network.cache()
        pieces = [network(x[:, a:b], text=text, cache=cache) for a, b in ((0, 3), (3, 4), (4, 7), (7, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)
    assert cache.tokens == LENGTH
    with pytest.raises(AssertionError, match="10 tokens for a transformer of 9"):
        network(x[:, :1], text=text, cache=cache)


def test_two_passes_with_a_cache_each_are_right_where_a_shared_one_is_wrong():
    network = excited(causal=True)
    conditional, null = torch.randn(2, 2, LENGTH, WIDTH)
    own = (network.cache(), network.cache())
    with torch.no_grad():
        for token in range(LENGTH):
            made = [network(x[:, token, None], cache=c) for x, c in zip((conditional, null), own, strict=True)]
            for x, piece in zip((conditional, null), made, strict=True):     # also at the third token and beyond
                torch.testing.assert_close(piece[:, 0], network(x[:, : token + 1])[:, -1], atol=1e-5, rtol=0)
        shared = network.cache()
        network(conditional[:, :1], cache=shared)
        assert float((network(null[:, :1], cache=shared) - network(null[:, :1])).abs().max()) > 1e-2
        with pytest.raises(AssertionError, match="belongs to the one pass"):
            network(null[:1, :1], cache=shared)


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_token_changes_nothing_before_it_and_all_after_it(kind):
    network, x = excited(causal=True, **KINDS[kind]), torch.randn(1, LENGTH, WIDTH)
    changed = x.clone()
    changed[0, 4] = torch.randn(WIDTH)
    before, after = network(x)[0], network(changed)[0]
    assert torch.equal(before[:4], after[:4])
    assert ((before - after).abs().amax(1)[4:] > 1e-4).all()
    everywhere = excited(**KINDS[kind])
    assert ((everywhere(x) - everywhere(changed))[0].abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("causal", [False, True])
def test_masked_tokens_are_not_looked_at(causal):
    network, x = excited(causal=causal), torch.randn(2, LENGTH, WIDTH)
    mask = torch.arange(LENGTH) < torch.tensor([[5], [LENGTH]])
    other = x.clone()
    other[0, 5:] = 99.0
    seen, again = network(x, mask_NL=mask), network(other, mask_NL=mask)
    assert torch.equal(seen[0, :5], again[0, :5])
    torch.testing.assert_close(seen[0, :5], network(x[:1, :5])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], network(x[1:])[0], atol=1e-5, rtol=0)


def test_rotary_products_depend_on_differences_of_places_in_each_axis():
    q, k = torch.randn(8), torch.randn(8)
    places = grid_places(7, 7)
    turn = rotations(places, 8)
    turned_q, turned_k = (rotated(x.expand(1, 1, 49, 8), turn)[0, 0].view(7, 7, 8) for x in (q, k))
    torch.testing.assert_close(turned_q.square().sum(-1), q.square().sum().expand(7, 7))
    products = [turned_q[r, c] @ turned_k[r + 2, c + 1] for r in range(5) for c in range(6)]
    torch.testing.assert_close(torch.stack(products), products[0].expand(30), atol=1e-5, rtol=0)
    assert abs(float(products[0] - turned_q[0, 0] @ turned_k[1, 2])) > 1e-3        # the axes are told apart
    torch.testing.assert_close(rotated(q.expand(1, 1, 1, 8), rotations(line_places(1), 8))[0, 0, 0], q)


def test_places_of_a_grid_follow_those_of_a_line():
    assert grid_places(2, 2, before=2).tolist() == [[0, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3]]


@pytest.mark.parametrize("vector", [0, 8])
@pytest.mark.parametrize("context", [0, 5])
def test_a_block_is_the_identity_at_first_and_learns_in_every_parameter(vector, context):
    torch.manual_seed(0)
    x, given = torch.randn(2, 4, WIDTH), {"vector_NV": torch.randn(2, 8) if vector else None}
    given["text"] = (torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)) if context else None
    block = Block(WIDTH, heads=2, vector=vector, context=context).start_as_identity()
    assert torch.equal(block(x, **given), x)
    block(x, **given).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in block.parameters()), "it leaves the identity"
    network = excited(vector=vector, context=context)
    network(x, **given).pow(3).sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_modulation_is_that_of_the_paper():
    """Peebles and Xie 2023, figure 3: x + gate * part(norm(x) * (1 + scale) + shift), of both parts."""
    torch.manual_seed(0)
    block, x, vector = Block(WIDTH, heads=2, vector=8), torch.randn(2, 4, WIDTH), torch.randn(2, 8)
    torch.nn.init.normal_(block.modulation.weight, std=0.3)
    made = block(x, vector_NV=vector)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(vector)[:, None].chunk(6, -1)
    normed = torch.nn.functional.layer_norm(x, (WIDTH,))
    y = x + gate1 * block._attention(normed * (1 + scale1) + shift1, None, False, None, None)
    normed = torch.nn.functional.layer_norm(y, (WIDTH,))
    y = y + gate2 * block.back(torch.nn.functional.gelu(block.hidden(normed * (1 + scale2) + shift2)))
    torch.testing.assert_close(made, y, atol=1e-5, rtol=1e-5)
    assert float((made[0] - block(x, vector_NV=vector.flip(0))[0]).detach().abs().max()) > 1e-2


def test_dropout_acts_in_training_only():
    network, x = excited(dropout=0.5), torch.randn(1, LENGTH, WIDTH)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def test_positions_are_what_tells_tokens_apart():
    x = torch.randn(1, 1, WIDTH).expand(1, LENGTH, WIDTH).contiguous()
    same = excited(positions="none")(x)[0]
    torch.testing.assert_close(same, same[:1].expand(LENGTH, WIDTH))
    assert float((excited()(x)[0, 0] - excited()(x)[0, 1]).abs().max()) > 1e-3
    y = torch.randn(1, LENGTH, WIDTH)
    shuffled = torch.randperm(LENGTH)
    for kind, equal in (({"positions": "none"}, True), ({"positions": "rotary"}, False)):
        network = excited(**kind)
        assert torch.allclose(network(y)[:, shuffled], network(y[:, shuffled]), atol=1e-5) == equal


def test_impossible_settings_are_refused():
    with pytest.raises(AssertionError, match="does not divide into 3 heads"):
        excited(heads=3)
    with pytest.raises(AssertionError, match="4 places for 9 tokens"):
        excited(positions="rotary", places=grid_places(2, 2))
    with pytest.raises(AssertionError, match="cannot be kept"):
        excited().cache()
