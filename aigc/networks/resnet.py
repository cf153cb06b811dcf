"""The residual generator for image translation (Johnson et al. 2016, Zhu et al. 2017), and its initial weights.

Notable:
- Instance norm without gain, bias or running statistics: images never affect each other, in training or later.
- `upsample=resize` enlarges by nearest neighbours before a 3x3 convolution, which leaves no checkerboards (Odena et
  al. 2016). Both happen in one transposed convolution, whose 4x4 kernel is the 3x3 one summed over shifts: the same
  values in half the time.
- Any height and width: the input is padded by reflection as the halvings require, and the output cropped back.

Shape suffixes: N batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UPSAMPLE = ("resize", "transposed")


class InstanceNorm(nn.Module):
    """Mean 0 and variance 1 for each channel of each image (Ulyanov et al. 2016), as groups of one channel."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape; a single pixel becomes 0."""
        return F.group_norm(x_NCHW, x_NCHW.shape[1])


class ResizeConvolution(nn.Conv2d):
    """Doubles height and width by nearest neighbours, then applies a zero-padded 3x3 convolution, in one kernel."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, 2 H, 2 W)`."""
        kernel = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        kernel = kernel[..., 1:, :] + kernel[..., :-1, :]
        kernel = kernel[..., 1:] + kernel[..., :-1]            # sums over the four copies of a pixel
        return F.conv_transpose2d(input, kernel.transpose(0, 1), self.bias, stride=2, padding=1)


def reflecting(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps height and width, padded by reflection."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect")


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3, padded by reflection."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            reflecting(width, width, 3), InstanceNorm(), nn.ReLU(True), reflecting(width, width, 3), InstanceNorm(),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`(N, width, H, W)`, sides of at least 2, to the same shape."""
        return x_NCHW + self.layers(x_NCHW)


class ResNetGenerator(nn.Module):
    """Images to images: a stem, halvings, residual blocks, as many doublings, then convolution and tanh to pixels."""

    def __init__(
        self,
        channels: int,                                     # image channels, in and out
        width: int,                                        # feature maps at full size, doubled by each halving
        *,
        blocks: int,                                       # residual blocks at the coarsest grid
        halvings: int = 2,
        kernel: int = 7,                                   # of the first and the last convolution, odd
        upsample: str = "resize",                          # resize: no checkerboards; transposed: the original's 3x3
        residual: bool = False,                            # predict a change to the image, not a new image
        init_std: float | None = 0.02,                     # N(0, init_std) weights; None: torch's own
    ):
        super().__init__()
        assert upsample in UPSAMPLE, f"upsample={upsample}"
        assert kernel % 2 == 1, f"kernel={kernel} has no centre"
        self.residual = residual
        self.multiple = 2**halvings
        self.smallest = max(2 * self.multiple, kernel // 2 + 1)  # reflection needs one more pixel than it adds
        encoder: list[nn.Module] = [reflecting(channels, width, kernel), InstanceNorm(), nn.ReLU(True)]
        for _ in range(halvings):
            encoder += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), InstanceNorm(), nn.ReLU(True)]
            width *= 2
        encoder += [Residual(width) for _ in range(blocks)]
        decoder: list[nn.Module] = []
        for _ in range(halvings):
            double: nn.Module = ResizeConvolution(width, width // 2)
            if upsample == "transposed":
                double = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1)
            decoder += [double, InstanceNorm(), nn.ReLU(True)]
            width //= 2
        decoder += [reflecting(width, channels, kernel)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        initialize(self, init_std)
        if residual:                                       # starts as the identity
            for parameter in decoder[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Images `(N, C, H, W)` in [-1, 1], of any size, to float32 ones of the same size in [-1, 1]."""
        padded, crop = self.pad(x_NCHW)
        return crop(self.draw(self.encoder(padded), padded))

    def draw(self, code_NCHW: Tensor, x_NCHW: Tensor) -> Tensor:
        """Images in [-1, 1], float32, from the encoder's output for `x`; the sides of `x` must fit.

        With `residual`, the decoder's output (at most 2, from black to white) is added to `x` and clipped to [-1, 1];
        gradients pass the clipping, so a pixel at the end of the scale can leave it again.
        """
        drawn = self.decoder(code_NCHW).float().tanh()
        if not self.residual:
            return drawn
        whole = x_NCHW.float() + 2 * drawn
        return whole + (whole.clamp(-1, 1) - whole).detach()

    def pad(self, x_NCHW: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Images padded to sides that the halvings divide, and a function that removes the padding."""
        return reflect_to(x_NCHW, multiple=self.multiple, smallest=self.smallest)

    def features(self, x_NCHW: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The encoder's output for images whose sides fit, and the activations after `layers`, in their order.

        Layer 0 is the padded image itself; layer k > 0 is the output of the encoder's k-th step, where a convolution,
        a norm, a ReLU and a residual block each count as one.
        """
        assert max(layers) <= len(self.encoder), f"layers {list(layers)} of {len(self.encoder)}"
        x, seen = x_NCHW, {0: x_NCHW}
        for number, layer in enumerate(self.encoder, start=1):
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)  # not in place: `layers` may ask for its input
            if number in layers:
                seen[number] = x
        return x, [seen[number] for number in layers]


def reflect_to(x_NCHW: Tensor, *, multiple: int, smallest: int = 1) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Images padded by reflection to sides of at least `smallest`, multiples of `multiple`; and the inverse.

    A side too short for one reflection is reflected several times.
    """
    h, w = x_NCHW.shape[2:]
    goal = [max(side + -side % multiple, smallest + -smallest % multiple) for side in (h, w)]
    if goal == [h, w]:
        return x_NCHW, lambda images: images
    rows, columns = (
        _reflected(side, (end - side) // 2, end, x_NCHW.device) for side, end in zip((h, w), goal, strict=True)
    )
    top, left = (goal[0] - h) // 2, (goal[1] - w) // 2
    padded = x_NCHW.index_select(2, rows).index_select(3, columns)
    return padded, lambda images: images[:, :, top : top + h, left : left + w]


def _reflected(side: int, before: int, total: int, device: torch.device) -> Tensor:
    """The index of the pixel, of `side`, at each of `total` positions, `before` of them in front of the first."""
    period = max(1, 2 * side - 2)
    place = (torch.arange(total, device=device) - before) % period
    return torch.where(place < side, place, period - place).clamp(max=side - 1)


def initialize(network: nn.Module, std: float | None) -> None:
    """Convolutions and linear layers N(0, std), biases 0 (Zhu et al. 2017); None keeps torch's defaults."""
    if std is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
