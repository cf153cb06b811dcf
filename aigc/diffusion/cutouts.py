"""Random cutouts of images, by which CLIP guidance looks at them: whole ones, and crops from inside.

As in Disco Diffusion's `MakeCutoutsDango` (Crowson and others 2021 to 2022), drawn for each image alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 5                              # random numbers a cutout
TILT = math.radians(10)                # largest rotation; of Disco's augmentation
SHIFT = 0.05                           # largest shift, as a share of the side; of the same


def uniform(normal: Tensor) -> Tensor:
    """N(0, 1) numbers as uniform ones in (0, 1)."""
    return torch.special.ndtr(normal)


def cutouts(
    images: Tensor, u: Tensor, *, overview: int, least: float = 0.8, power: float = 1.0, grey: float = 0.0
) -> Tensor:
    """Square cutouts `(cuts, n, c, s, s)` of images `(n, c, h, w)`, s the longer side; gradients pass.

    Args:
        images: the images.
        u: uniform numbers `(n, cuts, DRAWS)`.
        overview: how many of the cutouts show the whole image, the first one as it is, others a little tilted and
            shifted; the rest are crops from inside.
        least: side of the smallest crop, as a share of the shorter side.
        power: crops have sides of least + (1 - least) u^power; above 1 there are more small ones.
        grey: share of the crops without colour.
    """
    n, c, h, w = images.shape
    long, short, count = max(h, w), min(h, w), u.shape[1]
    inner = torch.arange(count, device=u.device) >= overview                     # (cuts,)
    side = torch.where(inner, short * (least + (1 - least) * u[..., 0] ** power), float(long))
    moved = torch.arange(count, device=u.device) > 0 if overview else torch.ones_like(inner)
    angle = TILT * (2 * u[..., 1] - 1) * moved
    place = [2 * u[..., 2 + k] - 1 for k in (0, 1)]
    centre = [moved * torch.where(inner, (edge - side).clamp(min=0) / 2, SHIFT * long) * where
              for edge, where in zip((w, h), place, strict=True)]
    cos, sin = side * angle.cos(), side * angle.sin()
    rows = [torch.stack([cos / w, -sin / w, 2 * centre[0] / w], dim=-1),
            torch.stack([sin / h, cos / h, 2 * centre[1] / h], dim=-1)]
    moves = torch.stack(rows, dim=-2).transpose(0, 1).reshape(-1, 2, 3).to(images)
    seen = images.expand(count, -1, -1, -1, -1).reshape(-1, c, h, w)
    grid = F.affine_grid(moves, [count * n, c, long, long], align_corners=False)
    made = F.grid_sample(seen, grid, padding_mode="border", align_corners=False).view(count, n, c, long, long)
    if grey > 0 and c > 1:
        without = (inner & (u[..., 4] < grey)).T[:, :, None, None, None]
        made = torch.where(without, made.mean(2, keepdim=True), made)
    return made
