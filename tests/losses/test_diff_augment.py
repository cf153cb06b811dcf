"""DiffAugment: differentiable, the same for real and generated images, and each policy what it says."""

import pytest
import torch

from aigc.errors import UserError
from aigc.losses.diff_augment import POLICIES, DiffAugment


def test_no_policy_is_the_identity():
    images = torch.randn(3, 3, 9, 9)
    assert DiffAugment([]).draw(3, "cpu")(images) is images


def test_one_transform_maps_real_and_fake_alike_and_draws_differ():
    augment = DiffAugment(POLICIES)
    images = torch.rand(5, 3, 16, 12) * 2 - 1
    transform = augment.draw(5, "cpu")
    torch.testing.assert_close(transform(images), transform(images.clone()), rtol=0, atol=0)
    assert not torch.equal(transform(images), augment.draw(5, "cpu")(images))
    same = images[:1].expand(5, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in transform(same)}) == 5   # each image its own transform


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 7, 11), (2, 4, 5, 5)])
def test_gradient_is_the_finite_difference(policy, shape):
    torch.manual_seed(0)
    images = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    transform = DiffAugment([policy]).draw(2, "cpu")
    transform.draws = {name: draw.double() for name, draw in transform.draws.items()}
    assert torch.autograd.gradcheck(transform, images)


def test_translation_moves_whole_pixels_and_lets_zeros_in():
    torch.manual_seed(0)
    images = torch.rand(200, 1, 16, 24) + 1
    out = DiffAugment(["translation"]).draw(200, "cpu")(images)
    shifts = set()
    for before, after in zip(images[:, 0], out[:, 0], strict=True):
        rows, columns = (after != 0).any(1).nonzero()[:, 0], (after != 0).any(0).nonzero()[:, 0]
        top, left = int(rows[0]) - (16 - len(rows)) * (rows[0] == 0), int(columns[0]) - (24 - len(columns)) * (
            columns[0] == 0
        )
        moved = torch.zeros_like(before)
        moved[max(0, top) : 16 + min(0, top), max(0, left) : 24 + min(0, left)] = before[
            max(0, -top) : 16 - max(0, top), max(0, -left) : 24 - max(0, left)
        ]
        assert torch.equal(moved, after)
        shifts.add((int(top), int(left)))
    assert {t for t, _ in shifts} == set(range(-2, 3))     # an eighth of 16, of 24
    assert {s for _, s in shifts} == set(range(-3, 4))


def test_colour_is_affine_within_an_image_and_keeps_grey_grey():
    torch.manual_seed(0)
    grey = torch.rand(50, 1, 6, 6)
    out = DiffAugment(["colour"]).draw(50, "cpu")(grey)
    gain = (out.amax((1, 2, 3)) - out.amin((1, 2, 3))) / (grey.amax((1, 2, 3)) - grey.amin((1, 2, 3)))
    assert 0.5 <= gain.min() < 0.6
    assert 1.4 < gain.max() <= 1.5
    shift = (out - grey).mean((1, 2, 3))
    assert shift.abs().max() <= 0.5
    colour = grey.expand(-1, 3, -1, -1)
    assert DiffAugment(["colour"]).draw(50, "cpu")(colour).std(1).max() < 1e-6


def test_cutout_clears_a_hole_of_at_most_a_quarter():
    torch.manual_seed(0)
    out = DiffAugment(["cutout"]).draw(100, "cpu")(torch.ones(100, 2, 8, 8))
    cleared = (out == 0).float().mean((1, 2, 3))
    assert cleared.max() == 0.25
    assert cleared.min() > 0
    assert set(out.unique().tolist()) == {0.0, 1.0}


def test_unknown_policy_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'colour'"):
        DiffAugment(["color"])
