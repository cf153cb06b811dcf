"""Nearest neighbours: copies are found, wherever they stand, and the picture shows them."""

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.scoring.scores.memorisation import SHARE, nearest, save_neighbours, threshold


def test_copies_are_found_among_parts_of_any_precision():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(700, 16, generator=generator) + 3
    rows = torch.tensor([5, 300, 699])
    samples = torch.cat([reference[rows] + 0.01, torch.randn(4, 16, generator=generator) + 3])
    apart, places = nearest(samples, reference.half().split(128), reference.mean(0, keepdim=True), k=3)
    assert torch.equal(places[:3, 0], rows) and (apart[:3, 0] < 0.1).all() and (apart[3:, 0] > 1).all()
    expected = torch.cdist(samples.double(), reference.double()).topk(3, largest=False)
    assert torch.equal(places[:, 0], expected.indices[:, 0])
    torch.testing.assert_close(apart.double(), expected.values, atol=0.1, rtol=0)


def test_the_limit_is_what_one_in_a_hundred_real_images_falls_below():
    held_out = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    assert (held_out < threshold(held_out)).double().mean().item() == pytest.approx(SHARE, abs=1e-3)


def test_the_picture_has_a_row_for_each_sample(tmp_path):
    samples = torch.full((2, 1, 56, 56), 255, dtype=torch.uint8)
    neighbours = torch.zeros(2, 3, 1, 56, 56, dtype=torch.uint8)
    save_neighbours(samples, neighbours, torch.tensor([0.5, 2.0]), 1.0, tmp_path / "near.png")
    pixels = np.asarray(Image.open(tmp_path / "near.png"))
    assert pixels.shape[1] == 4 * 58 - 2 and (pixels == 255).sum() >= 2 * 56 * 56
    assert (pixels[-56:, :56] == 255).all() and (pixels[-56:, 58:114] == 0).all()
