"""Tokens from logits: which may be drawn, how often they are, and how many places each step of MaskGIT fills."""

import pytest
import torch

from aigc.errors import UserError
from aigc.networks.tokens import Choice, cosine_schedule, fill, uniforms
from aigc.noise import SeededNoise

SHARES = torch.tensor([0.5, 0.3, 0.15, 0.05])
LOGITS = SHARES.log()[[2, 0, 3, 1]]                        # 0.15, 0.5, 0.05, 0.3


def kept(**options) -> list[int]:
    return Choice(**options).kept(LOGITS).isfinite().nonzero()[:, 0].tolist()


def test_top_p_keeps_the_first_token_beyond_p():
    assert kept(top_p=0.49) == [1] and kept(top_p=1e-9) == [1]
    assert kept(top_p=0.6) == [1, 3] and kept(top_p=0.79) == [1, 3]
    assert kept(top_p=0.81) == [0, 1, 3]
    assert kept(top_p=1.0) == [0, 1, 2, 3]


def test_top_k_is_exact_even_among_equals_and_one_is_argmax():
    assert [kept(top_k=k) for k in (1, 2, 3, 4, 9)] == [[1], [1, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    flat = torch.zeros(5, 7)
    assert (Choice(top_k=3).kept(flat).isfinite().sum(-1) == 3).all()
    logits, numbers = torch.randn(400, 9), torch.rand(400, dtype=torch.float64)
    for few in (Choice(top_k=1), Choice(temperature=0), Choice(top_p=1e-9)):
        assert torch.equal(few(logits, numbers), logits.argmax(-1))


def test_top_p_reads_the_shares_that_top_k_and_temperature_left():
    assert kept(top_k=2, top_p=0.62) == [1]                # 0.5 / 0.8 = 0.625
    assert kept(top_k=2, top_p=0.63) == [1, 3]
    cold = Choice(temperature=0.5).kept(LOGITS).softmax(-1)
    torch.testing.assert_close(cold, SHARES[[2, 0, 3, 1]].square() / SHARES.square().sum())


def test_a_token_is_the_inverse_of_the_cumulative_distribution():
    edges = torch.tensor([0.0, 0.149, 0.151, 0.649, 0.651, 0.699, 0.701, 1 - 1e-9], dtype=torch.float64)
    assert Choice()(LOGITS.expand(8, 4), edges).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    some = Choice(top_k=2)(LOGITS.expand(8, 4), edges)     # 0 and 2 have no share, at the very ends neither
    assert some.tolist() == [1, 1, 1, 3, 3, 3, 3, 3]
    last = Choice(top_k=1)(torch.tensor([[0.0, -1.0, -2.0]]), torch.tensor([1.0], dtype=torch.float64))
    assert last.item() == 2                                # 1 itself is never drawn, and is no error


def test_tokens_are_drawn_as_often_as_they_are_likely_and_by_their_image_alone():
    numbers = uniforms(SeededNoise(range(400)), 50)
    assert numbers.dtype == torch.float64 and float(numbers.min()) > 0 and float(numbers.max()) < 1
    drawn = Choice()(LOGITS.expand(400, 50, 4), numbers)
    found = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    torch.testing.assert_close(found, LOGITS.exp(), atol=0.01, rtol=0)     # deviation 0.0035
    alone = Choice()(LOGITS.expand(1, 50, 4), uniforms(SeededNoise([7]), 50))
    assert torch.equal(alone[0], drawn[7])


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0.0},
                                     {"top_p": 1.1}, {"temperature": float("nan")}])
def test_numbers_out_of_range_are_refused_by_name(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}=.*: give"):
        Choice(**options)


def test_the_cosine_schedule_fills_all_and_something_in_every_step():
    plan = cosine_schedule(torch.tensor([49, 256, 5, 0, 12]), 12)
    assert plan.sum(0).tolist() == [49, 256, 5, 0, 12]
    assert [int(n) for n in plan[:, 1].cumsum(0)] == [3, 9, 20, 35, 53, 75, 101, 128, 159, 190, 223, 256]
    assert (plan[:, [0, 1, 4]] >= 1).all()
    for column in plan.T:
        assert not column[int((column > 0).sum()):].any()  # and nothing after the last
    assert cosine_schedule(torch.tensor([49]), 1).tolist() == [[49]]


def test_one_step_draws_every_place_by_itself_and_known_codes_stay():
    torch.manual_seed(0)
    table, codes = torch.randn(3, 6, 5), torch.randint(5, (3, 6))
    masked = torch.tensor([[True] * 6, [True, False] * 3, [False] * 6])
    made = fill(lambda c, m: table, codes, masked, Choice(), SeededNoise([1, 2, 3]), steps=1, spread=4.5)
    alone = Choice()(table, uniforms(SeededNoise([1, 2, 3]), 2, 6)[:, 0])
    assert torch.equal(made, torch.where(masked, alone, codes))
    best = fill(lambda c, m: table, codes, masked, Choice(top_k=1), SeededNoise([1, 2, 3]), steps=1, spread=0.0)
    assert torch.equal(best, torch.where(masked, table.argmax(-1), codes))


def test_the_most_confident_places_are_filled_first_and_then_stay():
    confidence = torch.tensor([0.2, 0.9, 0.5, 0.7])        # of code 1, at each place
    logits = torch.stack([1 - confidence, confidence], dim=-1).log()[None]
    seen = []

    def answer(codes, masked):
        seen.append((masked[0].tolist(), codes[0][~masked[0]].tolist()))
        return logits

    fill(answer, torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool), Choice(top_k=1),
         SeededNoise([0]), steps=4, spread=0.0)
    assert [masked for masked, _ in seen] == [
        [True] * 4, [True, False, True, True], [False, False, True, True], [False, False, True, False]]
    assert [known for _, known in seen] == [[], [1], [0, 1], [0, 1, 1]]     # 0.8 for code 0 at the first place


def test_spread_makes_the_order_random_at_first():
    first = []
    for seed in range(200):
        orders = []
        fill(lambda c, m, o=orders: (o.append(m[0]), torch.zeros(1, 4, 3))[1], torch.zeros(1, 4, dtype=torch.int64),
             torch.ones(1, 4, dtype=torch.bool), Choice(), SeededNoise([seed]), steps=4, spread=4.5)
        first.append(int((~orders[1]).nonzero()[0, 0]))
    shares = torch.bincount(torch.tensor(first), minlength=4) / 200
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.1, rtol=0)   # deviation 0.03
