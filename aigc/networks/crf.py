"""Dense conditional random fields by mean field (Krähenbühl and Koltun 2011; as a layer: Zheng et al. 2015).

Every pixel has a label. The energy of a labelling is the sum of each pixel's own cost and, over all pairs of pixels,
mu(a, b) k(i, j) for labels a, b: two pixels that k holds for alike should agree. Two Gaussian kernels (equation 3):

    k(i, j) = smooth exp(-|p_i - p_j|^2 / 2 spread^2)
            + alike exp(-|p_i - p_j|^2 / 2 reach^2 - |I_i - I_j|^2 / 2 contrast^2)

with positions p in pixels and the picture's channels I in [-1, 1]. Notable here:
- pairs are cut off beyond a window (Teichmann and Cipolla 2018) in place of the permutohedral lattice: plain PyTorch,
  exact within the window, batched, differentiable by costs, picture and weights. `missed` tells what it leaves out
- the smoothness kernel is separable; that of the picture is summed place by place of the window
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REACH = 2.5                                                # radius of the window in standard deviations, unless told


def missed(spread: float, radius: int) -> float:
    """The share of a Gaussian kernel's sum over the plane that lies beyond a window, the pixel itself left out.

    The kernel of the picture is nowhere above its Gaussian, so it loses no more than that share of the Gaussian's sum.
    """
    far = max(radius, math.ceil(12 * spread))
    line = [math.exp(-(d**2) / (2 * spread**2)) for d in range(-far, far + 1)]
    inside = sum(line[far - radius : far + radius + 1])
    return 1 - (inside**2 - 1) / (sum(line) ** 2 - 1)


class DenseCRF(nn.Module):
    """Marginals of labels under their own costs and a picture's pairs; its weights can be learned."""

    def __init__(
        self,
        labels: int,
        *,
        smooth: float = 1.0,               # weight of the smoothness kernel
        spread: float = 1.5,               # its standard deviation, pixels
        alike: float = 1.0,                # weight of the kernel of the picture
        reach: float = 3.0,                # its standard deviation in space, pixels
        contrast: float = 0.2,             # and in the picture's values, which lie in [-1, 1]
        iterations: int = 5,
        normalised: bool = False,          # over the sum of a pixel's kernel values (Krähenbühl's own code): weights
                                           # then do not depend on the window, nor on how many pixels are alike
        radius: int | None = None,         # of the window, pixels; None: 2.5 of the wider kernel's deviations
    ):
        super().__init__()
        assert labels > 1 and iterations > 0 and min(spread, reach, contrast) > 0, (labels, iterations)
        self.spread, self.reach, self.contrast, self.iterations = spread, reach, contrast, iterations
        self.normalised = normalised
        self.radius = math.ceil(REACH * max(spread, reach)) if radius is None else radius
        self.weights = nn.Parameter(torch.tensor([smooth, alike]))
        self.compatibility = nn.Parameter(1 - torch.eye(labels))  # mu: Potts, until it is learned

    def forward(self, costs: Tensor, images: Tensor) -> Tensor:
        """Marginals `(n, labels, h, w)`, which sum to 1 over labels.

        Args:
            costs: of each label at each pixel, `(n, labels, h, w)`: the negative logarithm of its probability, up to
                a constant a pixel.
            images: `(n, c, h, w)` in [-1, 1].
        """
        pairs, one = self.pairs(images), torch.ones_like(costs[:, :1])
        smooth, alike = self.weights
        if self.normalised:
            smooth, alike = smooth / self.smoothed(one), alike / pairs.sum(1, keepdim=True).clamp(min=1e-6)
        marginals = (-costs).softmax(1)
        for _ in range(self.iterations):
            sent = smooth * self.smoothed(marginals) + alike * self.gathered(marginals, pairs)
            marginals = (-costs - torch.einsum("ab,nbhw->nahw", self.compatibility, sent)).softmax(1)
        return marginals

    def smoothed(self, marginals: Tensor) -> Tensor:
        """Sums over the window by the smoothness kernel, the pixel itself left out, `(n, labels, h, w)`."""
        place = torch.arange(-self.radius, self.radius + 1, device=marginals.device, dtype=marginals.dtype)
        line = (-(place**2) / (2 * self.spread**2)).exp().expand(marginals.shape[1], 1, 1, -1)
        count, r = marginals.shape[1], self.radius
        rows = F.conv2d(marginals, line, padding=(0, r), groups=count)
        return F.conv2d(rows, line.transpose(2, 3), padding=(r, 0), groups=count) - marginals

    def offsets(self) -> list[tuple[int, int]]:
        """The places of the window around a pixel, without itself."""
        side = range(-self.radius, self.radius + 1)
        return [(y, x) for y in side for x in side if (y, x) != (0, 0)]

    def pairs(self, images: Tensor) -> Tensor:
        """The kernel of the picture for each place of the window, `(n, places, h, w)`; 0 beyond the edge."""
        inside = torch.ones_like(images[:, :1])
        shifted = zip(self.around(images), self.around(inside), self.offsets(), strict=True)
        return torch.cat([
            there * (-(y**2 + x**2) / (2 * self.reach**2)
                     - (other - images).square().sum(1, keepdim=True) / (2 * self.contrast**2)).exp()
            for other, there, (y, x) in shifted
        ], dim=1)

    def gathered(self, marginals: Tensor, pairs: Tensor) -> Tensor:
        """Sums over the window by the kernel of the picture, `(n, labels, h, w)`."""
        total = torch.zeros_like(marginals)
        for k, other in enumerate(self.around(marginals)):
            total.addcmul_(pairs[:, k : k + 1], other)
        return total

    def around(self, values: Tensor) -> list[Tensor]:
        """Views `(n, c, h, w)` of `values` as each place of the window sees them, 0 beyond the edge."""
        r, (h, w) = self.radius, values.shape[2:]
        wide = F.pad(values, (r, r, r, r))
        return [wide[:, :, r + y : r + y + h, r + x : r + x + w] for y, x in self.offsets()]
