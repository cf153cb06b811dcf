"""Spectral norm: an iteration a training forward, none in eval, largest singular values 1; averages have their own."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from aigc.networks.ema import EMA
from aigc.networks.spectral_norm import iterate, normalise, spectral_norms


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 5))
    normalise(made)
    return made


def largest(made: nn.Module) -> list[float]:
    """The largest singular values of the weights that a forward in eval mode uses."""
    made.eval()
    return [torch.linalg.matrix_norm(module.weight.flatten(1), 2).item() for module in made.modules()
            if is_parametrized(module)]


def vectors(made: nn.Module) -> list[torch.Tensor]:
    return [vector.clone() for norm, _ in spectral_norms(made) for vector in norm.buffers()]


def shake(made: nn.Module) -> None:
    """Other weights than those that u and v were found for."""
    with torch.no_grad():
        for _, weight in spectral_norms(made):
            weight.copy_(torch.randn_like(weight))


def test_normalise_reaches_convolutions_linear_layers_and_embeddings_but_those_left_out():
    made = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.Linear(2, 2), *(nn.Embedding(2, 2) for _ in "ab"), nn.BatchNorm2d(2)])
    normalise(made, leave=[made[3], None])
    assert [is_parametrized(module) for module in made] == [True, True, True, False, False]
    assert len(spectral_norms(made)) == 3


def test_largest_singular_value_is_one_once_the_iteration_has_converged():
    made = network()
    shake(made)
    assert max(abs(value - 1) for value in largest(made)) > 0.1
    made.train()
    for _ in range(100):
        made(torch.zeros(2, 3, 4, 4))
    assert largest(made) == pytest.approx([1, 1], rel=0.01)
    _, weight = spectral_norms(made)[0]
    torch.testing.assert_close(made[0].weight, weight / torch.linalg.matrix_norm(weight.flatten(1), 2),
                               rtol=0.01, atol=1e-4)


def test_a_training_forward_iterates_once_and_an_evaluating_one_never():
    made = network()
    shake(made)
    u, v = (vector.clone() for vector in spectral_norms(made)[1][0].buffers())
    weight = spectral_norms(made)[1][1]
    before = vectors(made)
    made.eval()(torch.zeros(2, 3, 4, 4))
    assert all(torch.equal(a, b) for a, b in zip(vectors(made), before, strict=True))
    made.train()(torch.zeros(2, 3, 4, 4))
    u = nn.functional.normalize(weight @ v, dim=0)
    expected = [u, nn.functional.normalize(weight.T @ u, dim=0)]
    torch.testing.assert_close(list(spectral_norms(made)[1][0].buffers()), expected)


def test_iterate_leaves_the_mode_and_the_weights_alone():
    made, other = network(), network()
    for one in (made, other):
        torch.manual_seed(1)
        shake(one)
    made.eval()
    weights = [weight.clone() for _, weight in spectral_norms(made)]
    iterate(spectral_norms(made))
    assert not any(norm.training for norm, _ in spectral_norms(made))
    assert all(torch.equal(weight, old) for (_, weight), old in zip(spectral_norms(made), weights, strict=True))
    other.train()(torch.zeros(2, 3, 4, 4))
    torch.testing.assert_close(vectors(made), vectors(other))


def test_an_average_has_vectors_of_its_own_weights():
    """The source's belong to other weights: with them the average would divide by another number than its norm."""
    source = network()
    average = EMA(source, halflife_images=2000, ramp=1e9)
    torch.manual_seed(1)
    for step in range(1, 300):
        shake(source)
        source.train()(torch.randn(2, 3, 4, 4))
        average.update(source, images_seen=step * 8, batch=8)
    assert largest(average.network) == pytest.approx([1, 1], rel=0.01)
    copied = deepcopy(average.network)
    for (norm, _), (theirs, _) in zip(spectral_norms(copied), spectral_norms(source), strict=True):
        norm.load_state_dict(theirs.state_dict())
    assert max(abs(value - 1) for value in largest(copied)) > 0.2
    assert torch.equal(average.network[1].running_mean, source[1].running_mean)    # batch norm's are copied
    again = EMA(network(), halflife_images=64)
    again.load_state_dict(average.state_dict())
    torch.testing.assert_close(vectors(again.network), vectors(average.network), rtol=0, atol=0)
