"""Precision, recall, density and coverage: against torch-fidelity, the papers' sentences and sets one can see."""

import pytest
import torch

from aigc.scoring.bootstrap import draws
from aigc.scoring.scores.manifold import NAMES, Manifold, radii


def cloud(n, shift=0.0, seed=0, d=8):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def compared(real, fake, k=5):
    return {name: value.item() for name, value in Manifold(real, k=k).compare(fake)[0].items()}


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall_are_torch_fidelitys(k):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, fake = cloud(300), cloud(250, 0.6, seed=1) * 0.8
    found = compared(real, fake, k)
    precision, recall = calculate_precision_recall_full(fake.double(), real.double(), neighborhood=k)
    assert (found["precision"], found["recall"]) == pytest.approx((precision, recall), abs=1e-6)
    assert 0.1 < found["recall"] < found["precision"] < 0.99


def test_density_and_coverage_are_the_papers_sentences(monkeypatch):
    monkeypatch.setattr("aigc.scoring.scores.manifold.ROWS", 37)            # in parts, as large sets are
    real, fake, k = cloud(120).double(), cloud(90, 0.5, seed=1).double(), 5
    apart = torch.cdist(real, real)
    radius = apart.sort(dim=1).values[:, k]                          # 0 is the image itself
    inside = torch.cdist(fake, real) <= radius
    found = compared(real.float(), fake.float(), k)
    assert found["density"] == pytest.approx(inside.double().sum().item() / (k * len(fake)), rel=1e-6)
    assert found["coverage"] == pytest.approx(inside.any(0).double().mean().item(), rel=1e-6)
    torch.testing.assert_close(radii(real.float(), k), radius.float())


def test_sets_one_can_see():
    real = cloud(400)
    assert compared(real, real) == pytest.approx(dict.fromkeys(NAMES, 1.0), abs=0.2)
    assert compared(real, real)["precision"] == pytest.approx(compared(real, real)["recall"]) == pytest.approx(1)
    assert compared(real, cloud(400, 50.0, seed=1)) == dict.fromkeys(NAMES, 0.0)
    one_mode = compared(torch.cat([cloud(200), cloud(200, 9.0, seed=1)]), cloud(400, seed=2))
    assert one_mode["precision"] > 0.9 and one_mode["recall"] < 0.55 and one_mode["coverage"] < 0.55


def test_resamples_are_those_of_the_rows_drawn():
    real, fake = cloud(150), cloud(100, 0.4, seed=1)
    drawn = draws(100, 6, seed=3)
    again = Manifold(real, k=5).compare(fake, drawn)[1]
    inside = torch.cdist(fake.double(), real.double()) <= radii(real.double(), 5)
    rows = torch.arange(100).repeat_interleave(drawn[2].long())
    assert again["density"][2].item() == pytest.approx(inside[rows].double().sum(1).mean().item() / 5, rel=1e-6)
    assert again["coverage"][2].item() == pytest.approx(inside[rows].any(0).double().mean().item(), rel=1e-6)
