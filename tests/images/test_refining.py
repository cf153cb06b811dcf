"""Rough masks follow the picture's own edges, at any size, and others stay as they are."""

import pytest
import torch

from aigc.images.masks import grown
from aigc.images.refining import refined


def scene(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy picture of a disc, and where the disc is."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = (y - 0.5 * side) ** 2 + (x - 0.45 * side) ** 2 < (0.27 * side) ** 2
    noise = 6 * torch.randn(3, side, side, generator=torch.Generator().manual_seed(0))
    colours = torch.where(disc, torch.tensor([200.0, 60.0, 50.0])[:, None, None], torch.tensor(110.0))
    return (colours + noise).clamp(0, 255).byte(), disc


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("side", [48, 400])                # looked at as it is, and made smaller
def test_a_rough_mask_comes_to_the_edges(side):
    image, disc = scene(side)
    rough = grown(disc, round(side * 0.045)).roll((side // 32, -side // 32), (0, 1))
    made = refined(rough, image)
    assert overlap(rough, disc) < 0.78 < 0.93 < overlap(made, disc)
    assert overlap(refined(disc, image), disc) > 0.98      # within a pixel of where it is looked at


def test_where_a_picture_has_no_edges_a_mask_only_becomes_rounder():
    box = torch.zeros(40, 60, dtype=torch.bool)
    box[10:30, 15:45] = True
    made = refined(box, torch.full((1, 40, 60), 90, dtype=torch.uint8))
    assert overlap(made, box) > 0.65 and not (made & ~box).any() and bool(made[20, 30])
    nothing = torch.zeros_like(box)
    assert not refined(nothing, torch.zeros(1, 40, 60, dtype=torch.uint8)).any()
