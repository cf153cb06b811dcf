"""PatchGAN (Isola et al. 2017): a discriminator that judges overlapping patches of an image independently."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aigc.networks.resnet import InstanceNorm, initialize

NORMS = ("instance", "spectral", "none")


class PatchGAN(nn.Module):
    """Image to a grid of logits, one per patch: `layers` halvings, one more convolution, one to logits; all 4x4.

    The patch is 16, 34, 70 or 142 pixels wide for 1, 2, 3 or 4 layers.
    """

    def __init__(
        self,
        channels: int,                                     # of its input: image, or source and image together
        width: int,                                        # feature maps of the first layer, doubled up to 8 times
        *,
        layers: int,                                       # convolutions of stride 2
        norm: str = "instance",                            # instance (not in the first layer), spectral or none
        init_std: float | None = 0.02,                     # N(0, init_std) weights; None: torch's own
    ):
        super().__init__()
        assert norm in NORMS, f"norm={norm}"
        steps: list[nn.Module] = []
        for number in range(layers + 1):
            out = min(2**number, 8) * width
            before = channels if number == 0 else min(2 ** (number - 1), 8) * width
            steps += [nn.Conv2d(before, out, 4, stride=2 if number < layers else 1, padding=1)]
            steps += [InstanceNorm()] if norm == "instance" and number else []
            steps += [nn.LeakyReLU(0.2, inplace=True)]
        self.steps = nn.Sequential(*steps, nn.Conv2d(out, 1, 4, padding=1))
        self.smallest = 3 * 2**layers                      # each of the last two convolutions shrinks a side by 1
        initialize(self, init_std)
        if norm == "spectral":
            for module in self.steps:
                if isinstance(module, nn.Conv2d):
                    spectral_norm(module)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(n, 1, rows, columns)`, float32, of `images` `(n, c, h, w)`; small ones are padded with grey."""
        short = [max(0, self.smallest - side) for side in images.shape[2:]]
        if any(short):
            images = F.pad(images, (0, short[1], 0, short[0]))
        return self.steps(images).float()


def receptive_field(layers: int) -> int:
    """Width in pixels of the patch that one logit of `PatchGAN(layers=...)` sees."""
    width = 1 + 3 + 3
    for _ in range(layers):
        width = 2 * width + 2
    return width
