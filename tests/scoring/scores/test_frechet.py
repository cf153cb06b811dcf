"""Fréchet distance against its closed form, scipy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from aigc.scoring.scores.frechet import FrechetDistance, frechet_distance, matrix_root
from aigc.scoring.suite import HandThrough


def covariance(d: int, seed: int, rank: int | None = None) -> torch.Tensor:
    factor = torch.randn(d, rank or 2 * d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T / factor.shape[1]


def test_commuting_covariances_have_the_closed_form():
    mean1, mean2 = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    std1, std2 = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([3.0, 0.5, 0.1])
    expected = (mean1 - mean2).square().sum() + (std1 - std2).square().sum()
    distance = frechet_distance(mean1, std1.square().diag(), mean2, std2.square().diag())
    assert distance.item() == pytest.approx(expected.item(), rel=1e-6)


def test_non_commuting_two_by_two_has_the_closed_form():
    # tr of the root of a 2 x 2 matrix P with positive eigenvalues: sqrt(tr P + 2 sqrt(det P))
    cov1 = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    cov2 = torch.tensor([[0.7, -0.3], [-0.3, 1.5]], dtype=torch.float64)
    product = cov1 @ cov2
    root_trace = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (cov1.trace() + cov2.trace() - 2 * root_trace).item()
    zero = torch.zeros(2)
    assert frechet_distance(zero, cov1, zero, cov2).item() == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(zero, cov2, zero, cov1).item() == pytest.approx(expected, rel=1e-12)


def test_agrees_with_scipy():
    mean1, mean2 = torch.randn(2, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    cov1, cov2 = covariance(24, 1), covariance(24, 2)
    root = np.real(sqrtm((cov1 @ cov2).numpy()))
    expected = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root)
    assert frechet_distance(mean1, cov1, mean2, cov2).item() == pytest.approx(expected.item(), rel=1e-9)


def test_singular_covariances_are_no_exception():
    mean, cov1, cov2 = torch.zeros(32), covariance(32, 1, rank=5), covariance(32, 2, rank=4)
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T  # singular values of root @ factor are what is summed
    factor = torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) / 2
    expected = cov1.trace() + cov2.trace() - 2 * torch.linalg.svdvals(root @ factor).sum()
    assert frechet_distance(mean, cov1, mean, cov2).item() == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(mean, cov1, mean, cov1).item() == pytest.approx(0, abs=1e-6)


def test_root_squares_to_its_matrix():
    cov = covariance(16, 5)
    root = matrix_root(cov)
    torch.testing.assert_close(root @ root, cov)
    torch.testing.assert_close(root, root.T)


def test_metric_agrees_with_torchmetrics_and_keeps_the_real_side():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 12, generator=generator)
    fakes = [torch.randn(200, 12, generator=generator) * scale + 0.3 for scale in (1.0, 2.0)]
    ours = FrechetDistance(HandThrough(12))
    theirs = FrechetInceptionDistance(HandThrough(12), reset_real_features=False)
    for metric in (ours, theirs):
        metric.update(real, real=True)
    for fake in fakes:
        for metric in (ours, theirs):
            metric.reset()
            metric.update(fake, real=False)
        assert ours.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-9)
    by_hand = frechet_distance(real.double().mean(0), real.double().T.cov(), fakes[1].double().mean(0),
                               fakes[1].double().T.cov())
    assert ours.compute().item() == pytest.approx(by_hand.item(), rel=1e-9)
