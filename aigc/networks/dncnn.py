"""DnCNN (Zhang et al. 2017): convolutions of one width that tell what is wrong with a picture.

Convolution and ReLU; then convolution, batch normalization and ReLU; at the end a convolution. No pooling, no padding
but zeros: any size.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class DnCNN(nn.Module):
    """Images `(n, inputs, h, w)` to images `(n, outputs, h, w)`; at the start about zero."""

    def __init__(
        self,
        inputs: int,                 # channels in
        outputs: int,                # channels out
        *,
        depth: int,                  # convolutions; the paper's 17, blind 20
        width: int,                  # feature maps of each; the paper's 64
        normalized: bool = True,     # batch normalization in all but the first and the last
    ):
        super().__init__()
        assert depth >= 2, f"depth {depth}"
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.between = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, bias=not normalized) for _ in range(depth - 2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if normalized else nn.Identity() for _ in range(depth - 2))
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        for layer in (self.first, *self.between):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")     # He et al. 2015, as the paper
        nn.init.kaiming_normal_(self.last.weight, nonlinearity="linear")
        self.last.weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """What to take away from `x`."""
        x = F.relu(self.first(x))
        for convolution, norm in zip(self.between, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return self.last(x)
