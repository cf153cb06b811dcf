"""Intervals: the error that is stated is how far scores really move from one set of samples to another."""

import pytest
import torch

from aigc.scoring import bootstrap
from aigc.scoring.bootstrap import bounded
from aigc.scoring.scores.frechet import frechet_resamples
from aigc.scoring.scores.inception_score import InceptionScore, inception_resamples
from aigc.scoring.scores.kernel import kernel_resamples
from aigc.scoring.suite import Suite
from tests.scoring.test_suite import D, Network

N, REPEATS = 240, 60


def clouds(n, shift=0.3):
    for seed in range(REPEATS):
        yield torch.randn(n, D, generator=torch.Generator().manual_seed(100 + seed)) + shift


@pytest.fixture(scope="module")
def suite():
    made = Suite(Network(), kd_subsets=10, kd_subset_size=N)
    made.add_real(torch.randn(2000, D, generator=torch.Generator().manual_seed(0)))
    return made


def resampled(suite, drawn):
    return frechet_resamples(suite.kept(real=False), drawn, *suite.frechet.real_moments())


@pytest.fixture(scope="module")
def moved(suite):
    """Over fresh sets of samples: how far each score really moves, and the mean of the errors that are stated."""
    values, errors = [], []
    drawn = bootstrap.draws(N, 80, seed=1)
    for fake in clouds(N):
        logits = 2 * fake
        scores = suite.compute(fake, logits)
        kernel, kept = kernel_resamples(fake, suite.kept(real=True), 80, seed=1)
        values.append(scores)
        errors.append({
            "fd_tiny": bootstrap.standard_error(resampled(suite, drawn), kept=N, n=N),
            "kd_tiny": bootstrap.standard_error(kernel, kept=kept, n=N),
            "is_tiny": bootstrap.standard_error(inception_resamples(logits, drawn), kept=N, n=N),
        })
    names = values[0]
    true = {name: torch.tensor([one[name] for one in values]).std().item() for name in names}
    stated = {name: sum(one[name] for one in errors) / len(errors) for name in names}
    return true, stated


@pytest.mark.parametrize("name", ["fd_tiny", "kd_tiny", "is_tiny"])
def test_the_stated_error_is_how_far_scores_move(moved, name):
    true, stated = moved
    assert stated[name] == pytest.approx(true[name], rel=0.3)      # 60 sets know a deviation to a tenth


def test_resampled_distances_are_those_of_the_rows(suite):
    fake = next(clouds(50))
    suite.compute(fake)
    drawn = bootstrap.draws(50, 3, seed=4)
    rows = torch.arange(50).repeat_interleave(drawn[1].long())
    assert resampled(suite, drawn)[1].item() == pytest.approx(suite.distance_to_real(fake[rows]), rel=1e-6)


def test_draws_keep_their_number_and_their_strata():
    drawn = bootstrap.draws(90, 50, seed=0)
    assert (drawn.sum(1) == 90).all() and (drawn == 0).float().mean().item() == pytest.approx(0.37, abs=0.02)
    strata = torch.arange(90) % 3
    within = bootstrap.draws(90, 50, seed=0, strata=strata)
    assert all((within[:, strata == value].sum(1) == 30).all() for value in range(3))
    assert drawn[:, strata == 0].sum(1).std() > 2
    assert torch.equal(drawn, bootstrap.draws(90, 50, seed=0))


def test_an_interval_stays_within_what_a_score_can_be():
    assert bootstrap.interval(0.5, 0.1) == pytest.approx((0.5 - 0.196, 0.5 + 0.196), abs=1e-4)
    assert bootstrap.interval(0.99, 0.1, least=0, most=1) == pytest.approx((0.794, 1), abs=1e-3)


def test_inception_resamples_of_small_and_uneven_splits_are_numbers():
    logits = 3 * torch.randn(101, 7, generator=torch.Generator().manual_seed(0))
    drawn = bootstrap.draws(101, 200, seed=0)
    drawn[0, :11] = 0                                          # a split without any image
    values = inception_resamples(logits, drawn)
    assert values.isfinite().all() and values.std() > 0.01
    assert bounded("is_tiny", 2.0, float("nan")) == (None, None)


def test_inception_score_of_a_stream_needs_no_whole():
    logits = 3 * torch.randn(330, 7, generator=torch.Generator().manual_seed(0))
    whole, parts = InceptionScore(330, seed=2), InceptionScore(330, seed=2)
    whole.update(logits)
    for part in logits.split(64):
        parts.update(part)
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)
