"""Quantisers: straight through, which term beta weighs, averages, restarts, two ranks, finite scalars, cosine."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from aigc.networks.quantisers import AveragedCodebook, Codebook, FiniteScalars, perplexity, straight_through

KINDS = {
    "gradient": lambda **options: Codebook(8, 3, beta=0.25, **options),
    "ema": lambda **options: AveragedCodebook(8, 3, beta=0.25, **options),
    "restart": lambda **options: AveragedCodebook(8, 3, beta=0.25, restart=0.1, **options),
    "fsq": lambda: FiniteScalars([8, 6, 5]),
}
CASES = [*((kind, {}) for kind in KINDS), ("gradient", {"cosine": True}), ("ema", {"cosine": True})]


def made(kind: str, options: dict | None = None):
    """A quantiser in training, and outputs of an encoder `(4, 3, 5, 6)` that need gradients."""
    torch.manual_seed(0)
    return KINDS[kind](**(options or {})), torch.randn(4, 3, 5, 6, requires_grad=True)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_gradient_to_latents_is_exactly_that_to_the_codes_vectors(kind, options):
    quantiser, z = made(kind, options)
    weight = torch.randn(4, 3, 5, 6)
    latents = quantiser.project(z.detach()).requires_grad_()
    quantised = quantiser.snap(latents)[0].detach()
    passed = straight_through(latents, quantised)
    assert torch.equal(passed, quantised), "the decoder sees the code's vector, not one that is off by rounding"
    (passed * weight).sum().backward()
    assert torch.equal(latents.grad, weight)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_it_replaces_latents_by_the_vectors_of_their_codes(kind, options):
    quantiser, z = made(kind, options)
    quantiser(z)                                           # initialises
    quantiser.eval()
    passed = quantiser(z)
    assert passed.codes.shape == (4, 5, 6) and passed.codes.dtype == torch.int64
    assert int(passed.codes.min()) >= 0 and int(passed.codes.max()) < quantiser.codes
    assert torch.equal(passed.latents, quantiser.lookup(passed.codes))
    vectors, codes = quantiser.snap(quantiser.project(z))
    assert torch.equal(codes, passed.codes) and torch.equal(vectors, passed.latents)
    again = quantiser.snap(quantiser.lookup(codes))
    assert torch.equal(again[0], vectors) and torch.equal(again[1], codes), "codes are where they are"
    if kind != "fsq":
        table, flat = quantiser.table(), quantiser.project(z).movedim(1, -1).flatten(0, 2)
        assert torch.equal(torch.cdist(flat, table).argmin(1), codes.flatten())


def test_beta_weighs_the_encoders_term_and_the_codebooks_has_weight_one():
    quantiser, z = made("gradient")
    quantiser(z)
    passed = quantiser(z)
    vectors = quantiser.lookup(passed.codes).detach()
    apart = F.mse_loss(z, vectors).item()
    assert passed.cost.item() == pytest.approx(1.25 * apart, rel=1e-6)
    assert passed.logs["codes/commitment"].item() == pytest.approx(apart, rel=1e-6)
    passed.cost.backward()
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z.detach() - vectors) / z.numel())
    flat, codes = z.detach().movedim(1, -1).flatten(0, 2), passed.codes.flatten()
    pull = torch.zeros(8, 3).index_add_(0, codes, 2 * (quantiser.vectors.detach()[codes] - flat) / z.numel())
    torch.testing.assert_close(quantiser.vectors.grad, pull)
    averaged, z = made("ema")
    averaged(z)
    vectors = averaged.vectors.clone()
    passed = averaged(z)
    assert passed.cost.item() == pytest.approx(0.25 * F.mse_loss(z, F.embedding(passed.codes, vectors)
                                                                 .movedim(-1, 1)).item(), rel=1e-6)
    assert not list(averaged.parameters())


def test_averages_move_by_their_formula_with_laplace_smoothing():
    quantiser, z = made("ema", {"decay": 0.9, "epsilon": 0.01})
    quantiser(z)
    counts, sums = quantiser.counts.clone(), quantiser.sums.clone()
    flat = z.detach().movedim(1, -1).flatten(0, 2)
    hot = F.one_hot(quantiser(z).codes.flatten(), 8).float()
    counts, sums = 0.9 * counts + 0.1 * hot.sum(0), 0.9 * sums + 0.1 * hot.T @ flat
    torch.testing.assert_close(quantiser.counts, counts)
    torch.testing.assert_close(quantiser.sums, sums)
    total = counts.sum()
    smoothed = (counts + 0.01) / (total + 8 * 0.01) * total
    torch.testing.assert_close(quantiser.vectors, sums / smoothed[:, None])
    quantiser.counts.copy_(torch.tensor([0.0, 10, 0, 0, 0, 0, 0, 0]))
    assert float(quantiser.smoothed()[0]) == pytest.approx(0.01 / 10.08 * 10)
    assert float(quantiser.smoothed().sum()) == pytest.approx(10)
    before = quantiser.vectors.clone()
    quantiser.eval()(z)
    assert torch.equal(quantiser.vectors, before), "nothing moves outside training"


@pytest.mark.parametrize("kind", ["gradient", "ema", "restart"])
def test_the_first_batch_initialises_the_codebook_with_its_own_latents(kind):
    quantiser, z = made(kind)
    assert not quantiser.initialised
    quantiser.initialise(z.detach().movedim(1, -1).flatten(0, 2))
    flat = z.detach().movedim(1, -1).flatten(0, 2)
    assert float(torch.cdist(quantiser.vectors.detach(), flat).min(1).values.max()) < 1e-3
    assert len(quantiser.vectors.unique(dim=0)) == 8 and quantiser.initialised
    before = quantiser.vectors.detach().clone()
    quantiser.initialise(torch.zeros(9, 3))
    assert torch.equal(quantiser.vectors, before), "once"
    reloaded = KINDS[kind]()
    reloaded.load_state_dict(quantiser.state_dict())
    reloaded.initialise(torch.zeros(9, 3))
    assert torch.equal(reloaded.vectors, before), "a resumed run neither"


def test_a_dead_code_becomes_a_latent_of_the_batch_and_its_averages_start_anew():
    quantiser, z = made("restart")
    quantiser(z)
    quantiser.vectors[3] = 100.0                           # nothing is near it
    quantiser.counts[3], quantiser.sums[3] = 1e-3, 0.1
    passed = quantiser(z)
    assert passed.logs["codes/restarted"].item() == 1
    flat = z.detach().movedim(1, -1).flatten(0, 2)
    assert float((flat - quantiser.vectors[3]).norm(dim=1).min()) < 1e-3
    mean = float(quantiser.counts[[k for k in range(8) if k != 3]].sum() + 1e-3 * 0.99) / 8
    assert float(quantiser.counts[3]) == pytest.approx(mean, rel=1e-4)
    torch.testing.assert_close(quantiser.sums[3], quantiser.vectors[3] * quantiser.counts[3], rtol=1e-4, atol=1e-4)
    unused, _ = made("ema")
    unused(z)
    unused.vectors[3] = 100.0
    unused.counts[3], unused.sums[3] = 1e-3, 0.1
    assert unused(z).logs["codes/restarted"].item() == 0
    assert float((flat - unused.vectors[3]).norm(dim=1).min()) > 10, "without restarts it stays dead"


def test_restarts_keep_a_codebook_in_use_that_would_collapse():
    """Latents in a corner of what the codebook was initialised with: averages lose codes, restarts bring them back."""
    used = {}
    for kind in ("ema", "restart"):
        torch.manual_seed(0)
        quantiser = AveragedCodebook(64, 2, beta=0.25, decay=0.9, restart=0.1 if kind == "restart" else 0.0)
        for step in range(60):
            z = torch.randn(8, 2, 8, 8) * (1 if step == 0 else 0.02)
            codes = quantiser(z).codes
        used[kind] = len(codes.unique())
    assert used["ema"] < 16 and used["restart"] > 56, used


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)                                # draws of their own
    quantiser = AveragedCodebook(8, 3, beta=0.25, restart=0.3)
    batches = torch.load(f"{folder}/batches.pt", weights_only=True)
    told = [quantiser(batch[rank::2]).logs["codes/restarted"].item() for batch in batches]
    torch.save({**quantiser.state_dict(), "told": told}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_one_codebook_to_the_last_bit_of_the_statistics_of_both(tmp_path: Path):
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 4, 4) * (1 + step % 3) for step in range(8)]
    torch.save(batches, tmp_path / "batches.pt")
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.pop("told") == second.pop("told") and first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert float(first["counts"].sum()) > 32, "of both ranks: 64 latents a step"


def test_finite_scalars_round_trip_over_all_codes_and_reach_every_level():
    quantiser = FiniteScalars([8, 6, 5])
    codes = torch.arange(240).view(1, 12, 20)
    vectors, again = quantiser.snap(quantiser.lookup(codes))
    assert torch.equal(codes, again) and torch.equal(vectors, quantiser.lookup(codes)) and quantiser.codes == 240
    assert len(quantiser.lookup(codes).flatten(2).squeeze(0).T.unique(dim=0)) == 240
    z = torch.linspace(-4, 4, 4001).expand(1, 3, 1, -1)
    latents = quantiser.project(z)
    for k, levels in enumerate((8, 6, 5)):
        seen = quantiser.snap(latents)[0][0, k].unique()
        assert len(seen) == levels and float(seen.min()) == -1, (levels, seen)
        torch.testing.assert_close(seen.diff(), torch.full((levels - 1,), 1 / (levels // 2)))


def test_finite_scalars_shift_even_levels_by_atanh():
    """By the formula, and 0 stays 0 in spite of the offset of half a level: with the listing's tan it would not."""
    quantiser = FiniteScalars([8, 6, 5])
    assert float(quantiser.project(torch.zeros(1, 3, 1, 1)).abs().max()) < 1e-7
    z = torch.tensor(0.7).expand(1, 3, 1, 1)
    for k, levels in enumerate((8, 6, 5)):
        reach, offset = (levels - 1) * 1.001 / 2, 0.5 if levels % 2 == 0 else 0.0
        expected = (math.tanh(0.7 + math.atanh(offset / reach)) * reach - offset) / (levels // 2)
        assert float(quantiser.project(z)[0, k]) == pytest.approx(expected, abs=1e-6)


def test_finite_scalars_snap_any_latents_to_a_level():
    quantiser = FiniteScalars([4, 5])
    vectors, codes = quantiser.snap(torch.tensor([[-9.0, 9.0], [0.1, -0.2], [9.0, -9.0]])[:, :, None, None])
    assert vectors.squeeze().tolist() == [[-1.0, 1.0], [0.0, 0.0], [0.5, -1.0]]
    assert codes.flatten().tolist() == [0 + 4 * 4, 2 + 4 * 2, 3 + 4 * 0]


def test_cosine_codes_compare_directions():
    quantiser, z = made("gradient", {"cosine": True})
    quantiser(z)
    assert quantiser.project(z).norm(dim=1).allclose(torch.ones(4, 5, 6))
    assert quantiser.table().norm(dim=1).allclose(torch.ones(8))
    assert torch.equal(quantiser(z).codes, quantiser(7 * z).codes)
    flat = z.detach().movedim(1, -1).flatten(0, 2)
    alike = F.cosine_similarity(flat[:, None], quantiser.table()[None], dim=2)
    assert torch.equal(alike.argmax(1), quantiser(z).codes.flatten())


def test_perplexity_counts_equally_frequent_codes():
    assert float(perplexity(torch.tensor([5, 5, 5, 5, 0]))) == pytest.approx(4)
    assert float(perplexity(torch.tensor([9, 0, 0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([3, 1]))) == pytest.approx(4 / 3**0.75)
    assert float(perplexity(torch.zeros(3))) == pytest.approx(1)
