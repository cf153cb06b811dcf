"""Muon: orthogonal updates, torch's own for matrices, AdamW for the rest, and a state that resumes to the bit."""

import copy

import pytest
import torch
from torch import nn

from aigc.networks.muon import Muon, hidden_matrices, orthogonalized


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (32, 32)])
def test_all_singular_values_come_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(0, -1, shape[1])
    made = orthogonalized(matrix)
    values = torch.linalg.svdvals(made)
    assert made.shape == shape and values.min() > 0.6 and values.max() < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert float((made * (left @ right)).sum() / (made.norm() * (left @ right).norm())) > 0.98    # the polar factor
    torch.testing.assert_close(orthogonalized(1e-4 * matrix), made, atol=1e-3, rtol=1e-3)          # whatever the scale


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 3, 1))


def steps(model, optimizer, n, *, first=0):
    for k in range(first, first + n):
        torch.manual_seed(k)
        optimizer.zero_grad()
        model(torch.randn(8, 3, 6, 6)).square().mean().backward()
        optimizer.step()


def muon(model, **options):
    matrices = hidden_matrices(model, without=[model[0], model[3]])
    return Muon(model.parameters(), matrices, **{"matrix_lr": 0.02, "lr": 1e-3, **options})


def test_hidden_matrices_are_the_kernels_between_the_first_layer_and_the_last():
    model = network()
    found = hidden_matrices(model, without=[model[0], model[3]])
    assert [p.shape for p in found] == [(32, 16, 3, 3), (16, 32, 1, 1)]
    assert len(hidden_matrices(model)) == 3                       # the last layer has too few rows anyhow


def test_matrices_move_as_by_torchs_muon_and_the_rest_as_by_adamw(monkeypatch):
    torch.manual_seed(0)
    matrix, theirs = torch.randn(32, 144), torch.optim._muon._zeropower_via_newtonschulz
    found = theirs(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()                    # in bfloat16
    assert float((found - orthogonalized(matrix)).norm()) < 0.03 * float(found.norm())
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda g, *_: orthogonalized(g))
    ours, theirs = network(), network()
    optimizer = muon(ours, weight_decay=0.1)
    matrices = [theirs[1].weight, theirs[2].weight]
    flat = [nn.Parameter(p.detach().flatten(1).clone()) for p in matrices]
    reference = torch.optim.Muon(flat, lr=0.02, weight_decay=0.1, momentum=0.95)
    rest = torch.optim.AdamW([p for p in theirs.parameters() if all(p is not m for m in matrices)], lr=1e-3,
                             weight_decay=0.1, fused=True)
    for k in range(4):
        torch.manual_seed(k)
        theirs.zero_grad()
        theirs(torch.randn(8, 3, 6, 6)).square().mean().backward()
        for p, q in zip(matrices, flat, strict=True):
            q.grad = p.grad.flatten(1).clone()
        reference.step()
        rest.step()
        with torch.no_grad():
            for p, q in zip(matrices, flat, strict=True):
                p.copy_(q.view_as(p))
        steps(ours, optimizer, 1, first=k)
    for p, q, start in zip(ours.parameters(), theirs.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)
        assert not torch.equal(p, start)


def test_a_saved_state_goes_on_to_the_bit():
    whole, parts = network(), network()
    steps(whole, muon(whole), 5)
    optimizer = muon(parts)
    steps(parts, optimizer, 3)
    kept = copy.deepcopy((parts.state_dict(), optimizer.state_dict()))
    again = network()
    again.load_state_dict(kept[0])
    resumed = muon(again)
    resumed.load_state_dict(kept[1])
    steps(again, resumed, 2, first=3)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_parameter_without_a_gradient_stays():
    model = network()
    optimizer = muon(model)
    steps(model, optimizer, 1)
    kept = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept, strict=True))
