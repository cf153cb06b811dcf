"""The U-Net generator of pix2pix (Isola et al. 2017, section 6.1.1): an encoder-decoder with skips at every size."""

import torch
from torch import Tensor, nn

from aigc.networks.resnet import UPSAMPLE, InstanceNorm, ResizeConvolution, initialize, reflect_to


class UNetGenerator(nn.Module):
    """Images to images: halvings by 4x4 convolutions, doublings with skips from the encoder, then tanh."""

    def __init__(
        self,
        channels: int,                                     # image channels, in and out
        width: int,                                        # feature maps of the first halving, doubled up to 8 times
        *,
        halvings: int,                                     # 8 at 256 px, 6 at 64 px: down to a single pixel
        dropout: float = 0.0,                              # share of features dropped in the coarsest doublings
        dropout_layers: int = 3,                           # how many of them
        upsample: str = "resize",                          # resize: no checkerboards; transposed: the original's 4x4
        init_std: float | None = 0.02,                     # N(0, init_std) weights; None: torch's own
    ):
        super().__init__()
        assert upsample in UPSAMPLE, f"upsample={upsample}"
        assert halvings >= 2, f"halvings={halvings}"
        self.multiple, self.smallest = 2**halvings, 2**halvings
        widths = [width * min(2**level, 8) for level in range(halvings)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, out in enumerate(widths):
            inner = 0 < level < halvings - 1               # a single pixel has no variance to divide by
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers += [nn.Conv2d(widths[level - 1] if level else channels, out, 4, stride=2, padding=1)]
            self.down.append(nn.Sequential(*layers, *([InstanceNorm()] if inner else [])))
        for level in reversed(range(halvings)):
            before = widths[level] * (1 if level == halvings - 1 else 2)
            out = widths[level - 1] if level else channels
            double: nn.Module = ResizeConvolution(before, out)
            if upsample == "transposed":
                double = nn.ConvTranspose2d(before, out, 4, stride=2, padding=1)
            layers = [nn.ReLU(), double, *([InstanceNorm()] if level else [])]
            if dropout and level and halvings - 1 - dropout_layers <= level < halvings - 1:
                layers.append(nn.Dropout(dropout))
            self.up.append(nn.Sequential(*layers))
        initialize(self, init_std)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Images `(N, C, H, W)` in [-1, 1], of any size, to float32 ones of the same size in [-1, 1]."""
        x, crop = reflect_to(x_NCHW, multiple=self.multiple, smallest=self.smallest)
        skips: list[Tensor] = []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        skips.pop()
        for layer in self.up:
            x = layer(x)
            x = torch.cat([x, skips.pop()], dim=1) if skips else x
        return crop(x.float().tanh())
