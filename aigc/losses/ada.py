"""Adaptive discriminator augmentation (Karras et al. 2020b, ADA): the paper's transforms, as often as is needed.

Real and generated images are transformed in both players' steps, each image by each transform with probability p:
pixel blitting, geometric and colour transforms. Where the discriminator is too sure of real images, it memorizes them,
and p rises; where it is less sure than the target, p falls. All are differentiable twice in the image.
"""

from math import pi, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.networks.ranks import sum_over_ranks
from aigc.networks.resample import downsample, upsample

SYM6 = (0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
        0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
        0.0017677118642428036, -0.007800708325034148)      # low-pass filter around the geometric transforms
SHIFT, SCALE = 0.125, 0.2                                  # of the sides; deviation of log2 of the factor
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0           # deviations; of log2 for the latter two


class AdaptiveAugment(nn.Module):
    """Transforms images with probability `p`, which follows the signs of logits of real images.

    `p` and the sums of signs since its last change are in the checkpoint.
    """

    p: Tensor                                              # () the probability of each transform
    signs: Tensor                                          # (2,) sum and number of the signs since p changed

    def __init__(
        self,
        *,
        target: float,                                     # of the mean sign of logits of real images
        images: float,                                     # in which p would go from 0 to 1
        limit: float,                                      # of p: beyond, augmentations leak into generated images
    ):
        super().__init__()
        self.target, self.images, self.limit = target, images, limit
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("signs", torch.zeros(2))
        self._known: float | None = None                   # p, without waiting for the device

    def forward(self, images: Tensor) -> Tensor:
        """Transformed images `(n, c, h, w)`, float32; at p = 0 the images themselves. Values may leave [-1, 1]."""
        if self._known is None:
            self._known = float(self.p)
        if not self._known:
            return images
        with torch.autocast(images.device.type, enabled=False):
            images = images.float()
            images = warped(images, geometric_matrices(len(images), images.shape[2:], self.p))
            return coloured(images, colour_matrices(len(images), self.p))

    @torch.no_grad()
    def observe(self, logits: Tensor) -> None:
        """Takes notice of the signs of logits `(n,)` of real images, of all ranks."""
        signs = logits.float().sign()
        self.signs += sum_over_ranks(torch.stack([signs.sum(), torch.ones_like(signs).sum()]))

    @torch.no_grad()
    def adjust(self) -> None:
        """Moves p by the share of `images` that were noticed since: up if their mean sign is above the target."""
        total, count = self.signs
        step = (total / count.clamp(min=1) - self.target).sign() * count / self.images
        self.p.add_(step).clamp_(0, self.limit)
        self.signs.zero_()
        self._known = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = None


# ---- pixel blitting and geometry ----


def geometric_matrices(n: int, size: Any, p: Tensor) -> Tensor:
    """`(n, 3, 3)`: from a place in the result to the place in the image that is seen there, in pixels from its middle.

    In this order: mirroring, quarter turns and shifts by whole pixels; isotropic scaling, rotation, anisotropic
    scaling, rotation again and fractional shifts. Each with probability p, one or both rotations together.
    """
    h, w = size
    device, rotated = p.device, 1 - (1 - p).sqrt()
    matrices = torch.eye(3, device=device).expand(n, 3, 3)

    def chosen(value: Tensor, otherwise: float, probability: Tensor = p) -> Tensor:
        taken = torch.rand(n, device=device) < probability
        return torch.where(taken.view(-1, *[1] * (value.dim() - 1)), value, otherwise)

    def uniform(*more: int) -> Tensor:
        return torch.rand(n, *more, device=device)

    def normal(*more: int) -> Tensor:
        return torch.randn(n, *more, device=device)

    sides = torch.tensor([w, h], device=device)
    mirrored = 1 - 2 * chosen(uniform().mul(2).floor(), 0)
    matrices = matrices @ scaling(mirrored, torch.ones_like(mirrored))
    matrices = matrices @ rotation(pi / 2 * chosen(uniform().mul(4).floor(), 0))
    matrices = matrices @ translation(-(chosen((2 * uniform(2) - 1) * SHIFT, 0) * sides).round())
    factor = chosen((SCALE * normal()).exp2(), 1)
    matrices = matrices @ scaling(1 / factor, 1 / factor)
    matrices = matrices @ rotation(chosen((2 * uniform() - 1) * pi, 0, rotated))
    factor = chosen((SCALE * normal()).exp2(), 1)
    matrices = matrices @ scaling(1 / factor, factor)
    matrices = matrices @ rotation(chosen((2 * uniform() - 1) * pi, 0, rotated))
    return matrices @ translation(-chosen(SHIFT * normal(2), 0) * sides)


def warped(images: Tensor, matrices: Tensor) -> Tensor:
    """Images `(n, c, h, w)` seen through `geometric_matrices`; beyond their borders they are mirrored.

    They are sampled bilinearly at twice the resolution, between two passes of a wavelet's low-pass filter.
    """
    n, c, h, w = images.shape
    edge = len(SYM6) // 4                                  # of the filter, in pixels
    middle = images.new_tensor([(w - 1) / 2, (h - 1) / 2])
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], device=images.device)
    corners[:, :2] *= middle
    seen = (matrices @ corners.t())[:, :2]                 # (n, 2, 4)
    reach = torch.stack([-seen.amin((0, 2)), seen.amax((0, 2))]) - middle + 2 * edge
    most = torch.tensor([w - 1, h - 1], device=images.device)
    (left, top), (right, bottom) = reach.ceil().clamp(min=0).minimum(most).int().tolist()
    x = upsample(F.pad(images, (left, right, top, bottom), mode="reflect"), SYM6)
    at = torch.eye(3, device=images.device)
    to_padded = translation(images.new_tensor([[(left - right) / 2, (top - bottom) / 2]]))
    half = translation(images.new_tensor([[-0.5, -0.5]]))  # between the middles of pixels and of their halves
    at = half @ scaling(*images.new_full((2, 1), 2.0)) @ to_padded @ matrices
    at = at @ scaling(*images.new_full((2, 1), 0.5)) @ translation(images.new_tensor([[0.5, 0.5]]))
    out = (2 * (h + 2 * edge), 2 * (w + 2 * edge))
    at = scaling(*images.new_tensor([[2 / x.shape[3]], [2 / x.shape[2]]])) @ at
    at = at @ scaling(*images.new_tensor([[out[1] / 2], [out[0] / 2]]))
    grid = F.affine_grid(at[:, :2], [n, c, *out], align_corners=False)
    return downsample(Bilinear.apply(x, grid), SYM6)[:, :, edge : edge + h, edge : edge + w]


class Bilinear(torch.autograd.Function):
    """`grid_sample` with zeros outside, for which the gradient by the image has a gradient too."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        """`images` `(n, c, h, w)` at `grid` `(n, h', w', 2)`."""
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return F.grid_sample(images, grid, align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """By the image; the grid is drawn, not learned."""
        return _BilinearBack.apply(gradients[0], ctx.saved_tensors[0], ctx.shape), None


class _BilinearBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        like = gradient.new_zeros(1).expand(shape)         # only its shape is used
        back = torch.ops.aten.grid_sampler_2d_backward
        return back(gradient.contiguous(), like, grid, 0, 0, False, [True, False])[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return Bilinear.apply(gradients[0], ctx.saved_tensors[0]), None, None


def translation(by: Tensor) -> Tensor:
    """`(n, 3, 3)`, for `by` `(n, 2)`: x and y."""
    matrices = torch.eye(3, device=by.device).repeat(len(by), 1, 1)
    matrices[:, :2, 2] = by
    return matrices


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """`(n, 3, 3)`, for factors `(n,)`."""
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def rotation(angle: Tensor) -> Tensor:
    """`(n, 3, 3)`, for angles `(n,)`."""
    matrices = torch.diag_embed(torch.stack([angle.cos(), angle.cos(), torch.ones_like(angle)], dim=1))
    matrices[:, 0, 1], matrices[:, 1, 0] = -angle.sin(), angle.sin()
    return matrices


# ---- colour ----


def colour_matrices(n: int, p: Tensor) -> Tensor:
    """`(n, 4, 4)` on red, green, blue and 1: brightness, contrast, inverted luma, hue and saturation in this order."""
    device = p.device
    one = torch.eye(4, device=device)
    luma = torch.tensor([1, 1, 1, 0], device=device) / sqrt(3)     # axis of grey
    along = luma[:, None] * luma

    def chosen(value: Tensor, otherwise: float) -> Tensor:
        return torch.where(torch.rand(n, device=device) < p, value, otherwise)

    brightness = chosen(BRIGHTNESS * torch.randn(n, device=device), 0)
    contrast = chosen((CONTRAST * torch.randn(n, device=device)).exp2(), 1)
    inverted = chosen(torch.rand(n, device=device).mul(2).floor(), 0)
    hue = chosen((2 * torch.rand(n, device=device) - 1) * pi, 0)
    saturation = chosen((SATURATION * torch.randn(n, device=device)).exp2(), 1)

    matrices = one.repeat(n, 1, 1)
    matrices[:, :3, 3] = brightness[:, None]
    matrices[:, :3] *= contrast[:, None, None]
    matrices = (one - 2 * along * inverted[:, None, None]) @ matrices
    matrices = _about(luma[:3], hue) @ matrices
    return (along + (one - along) * saturation[:, None, None]) @ matrices


def _about(axis: Tensor, angle: Tensor) -> Tensor:
    """Rotations `(n, 4, 4)` about a unit vector, by Rodrigues' formula."""
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], device=angle.device)
    turned = torch.eye(4, device=angle.device).repeat(len(angle), 1, 1)
    s, c = angle.sin()[:, None, None], angle.cos()[:, None, None]
    turned[:, :3, :3] = c * torch.eye(3, device=angle.device) + s * cross + (1 - c) * axis[:, None] * axis
    return turned


def coloured(images: Tensor, matrices: Tensor) -> Tensor:
    """Images `(n, c, h, w)` by `colour_matrices`: three channels as colours, else the first as grey; others stay."""
    if images.shape[1] >= 3:
        colours, rest = images[:, :3], images[:, 3:]
        seen = torch.einsum("nij,njhw->nihw", matrices[:, :3, :3], colours) + matrices[:, :3, 3, None, None]
    else:
        grey, rest = images[:, :1], images[:, 1:]
        row = matrices[:, :3].mean(1)                      # (n, 4)
        seen = grey * row[:, :3].sum(1).view(-1, 1, 1, 1) + row[:, 3].view(-1, 1, 1, 1)
    return torch.cat([seen, rest], dim=1)
