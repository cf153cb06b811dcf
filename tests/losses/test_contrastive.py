"""PatchNCE against a direct computation and its limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from aigc.losses.contrastive import patch_nce


def vectors(n=3, places=7, width=5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return F.normalize(torch.randn(n, places, width), dim=2), F.normalize(torch.randn(n, places, width), dim=2)


def test_equals_a_direct_computation():
    query, key = vectors()
    expected = []
    for q, k in zip(query.tolist(), key.tolist(), strict=True):
        terms = []
        for place, vector in enumerate(q):
            scores = [math.exp(sum(x * y for x, y in zip(vector, other, strict=True)) / 0.07) for other in k]
            terms.append(-math.log(scores[place] / sum(scores)))
        expected.append(sum(terms) / len(terms))
    assert patch_nce(query, key, temperature=0.07).tolist() == pytest.approx(expected, rel=1e-5)


def test_is_log_places_where_all_places_look_alike_and_zero_where_each_is_itself():
    alike = F.normalize(torch.ones(1, 16, 4), dim=2)
    assert patch_nce(alike, alike, temperature=0.07).item() == pytest.approx(math.log(16), rel=1e-5)
    own = torch.eye(16)[None]
    assert patch_nce(own, own, temperature=0.01).item() == pytest.approx(0, abs=1e-6)


def test_other_images_are_no_negatives_and_the_source_learns_nothing():
    query, key = (x.requires_grad_() for x in vectors())
    together = patch_nce(query, key, temperature=0.07)
    assert together[1].item() == pytest.approx(patch_nce(query[1:2], key[1:2], temperature=0.07).item(), rel=1e-6)
    together.sum().backward()
    assert key.grad is None
    assert query.grad.abs().sum() > 0


def test_is_float32_under_autocast():
    query, key = vectors()
    with torch.autocast("cpu", torch.bfloat16):
        low = patch_nce(query, key, temperature=0.07)
    assert torch.equal(low, patch_nce(query, key, temperature=0.07))
