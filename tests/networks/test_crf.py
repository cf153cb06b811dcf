"""Dense CRFs: against sums over all pairs, in windows whose error is known, their gradients, and what they are for."""

import math

import pytest
import torch

from aigc.networks.crf import DenseCRF, missed


def brute_force(costs, image, crf: DenseCRF) -> list[list[float]]:
    """Mean field by loops over all pairs of pixels, in Python's own numbers."""
    labels, h, w = costs.shape
    pixels = [(y, x) for y in range(h) for x in range(w)]
    smooth, alike = crf.weights.tolist()

    def kernel(a, b):
        apart = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
        colours = sum((image[c][a].item() - image[c][b].item()) ** 2 for c in range(len(image)))
        return smooth * math.exp(-apart / (2 * crf.spread**2)) + alike * math.exp(
            -apart / (2 * crf.reach**2) - colours / (2 * crf.contrast**2))

    def normalised(energies):
        likely = [math.exp(-energy) for energy in energies]
        return [one / sum(likely) for one in likely]

    q = {p: normalised([costs[a][p].item() for a in range(labels)]) for p in pixels}
    for _ in range(crf.iterations):
        new = {}
        for i in pixels:
            sent = [sum(kernel(i, j) * q[j][b] for j in pixels if j != i) for b in range(labels)]
            new[i] = normalised([costs[a][i].item() + sum(crf.compatibility[a, b].item() * sent[b]
                                                          for b in range(labels)) for a in range(labels)])
        q = new
    return [[q[y, x][a] for y in range(h) for x in range(w)] for a in range(labels)]


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_sums_over_all_pairs(channels):
    torch.manual_seed(channels)
    costs, images = torch.rand(2, 3, 3, 3), torch.rand(2, channels, 3, 3) * 2 - 1
    crf = DenseCRF(3, smooth=0.7, alike=1.3, contrast=0.5, iterations=4, radius=2)   # every pair of a 3 x 3 grid
    with torch.no_grad():
        crf.compatibility += 0.2 * torch.rand(3, 3)                                  # no longer Potts
        made = crf(costs, images)
    for one in range(2):
        wanted = torch.tensor(brute_force(costs[one], images[one], crf)).view(3, 3, 3)
        torch.testing.assert_close(made[one], wanted, atol=1e-5, rtol=0)


def test_a_window_leaves_out_what_it_says():
    spread, far = 1.5, 12
    crf = DenseCRF(2, spread=spread, reach=spread, radius=far, iterations=1)
    point = torch.zeros(1, 2, 2 * far + 1, 2 * far + 1)
    point[0, :, far, far] = 1.0
    whole = crf.smoothed(point)[0, 0].sum()
    for radius in (1, 2, 4):
        crf.radius = radius
        inside = crf.smoothed(point)[0, 0].sum()
        assert 1 - float(inside / whole) == pytest.approx(missed(spread, radius), abs=1e-5)
        torch.testing.assert_close(crf.gathered(point, crf.pairs(torch.zeros(1, 1, 25, 25)))[0, 0].sum(), inside)
    assert missed(3.0, DenseCRF(2, reach=3.0).radius) < 0.012 < missed(3.0, 5)


def test_gradients_reach_costs_pictures_and_weights():
    torch.manual_seed(0)
    crf = DenseCRF(2, contrast=0.6, iterations=2, radius=1).double()
    costs, images = torch.rand(1, 2, 3, 3).double().requires_grad_(), torch.rand(1, 1, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b, *_: crf(a, b), (costs, images, crf.weights, crf.compatibility))


def test_each_picture_of_a_batch_is_by_itself():
    torch.manual_seed(0)
    crf, costs, images = DenseCRF(3), torch.rand(3, 3, 7, 9), torch.rand(3, 3, 7, 9)
    torch.testing.assert_close(crf(costs, images)[1:2], crf(costs[1:2], images[1:2]))


def test_a_noisy_mask_is_cleaned_along_the_pictures_edges():
    """A disc that costs know with a fifth of the pixels wrong: the picture's edge tells where it ends."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((y - 15) ** 2 + (x - 13) ** 2 < 81).float()
    image = (disc * 1.2 - 0.6 + 0.05 * torch.randn(32, 32, generator=generator))[None, None]
    wrong = torch.rand(32, 32, generator=generator) < 0.2
    said = torch.where(wrong, 1 - disc, disc)
    costs = torch.stack([said, 1 - said])[None] * 1.5
    with torch.no_grad():
        cleaned = DenseCRF(2)(costs, image)[0].argmax(0)
    assert int(wrong.sum()) > 150 and int((cleaned != disc).sum()) == 0
