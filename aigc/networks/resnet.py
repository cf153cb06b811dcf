"""The residual generator of image translation (Johnson et al. 2016, Zhu et al. 2017), and how its layers start.

Notable:
- Instance norm without gain, bias or running statistics: nothing of one image reaches another, in training or later.
- `upsample=resize` enlarges by nearest neighbours before a 3x3 convolution, which leaves no checkerboards (Odena et
  al. 2016). Both are done at once, as a transposed convolution whose 4x4 kernel is the 3x3 one summed over shifts: the
  same numbers in half the time.
- Any height and width: the input is padded by reflection to what the halvings need, the output cropped back.

Shape suffixes: N batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UPSAMPLE = ("resize", "transposed")


class InstanceNorm(nn.Module):
    """Mean 0 and variance 1 of every channel of every image (Ulyanov et al. 2016), as groups of one channel."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """The same shape; a single pixel becomes 0."""
        return F.group_norm(x_NCHW, x_NCHW.shape[1])


class ResizeConvolution(nn.Conv2d):
    """Doubles height and width by nearest neighbours, then a 3x3 convolution with zeros around, in one kernel."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, 2 H, 2 W)`."""
        kernel = F.pad(self.weight.flip(2, 3), (1, 1, 1, 1))
        kernel = kernel[..., 1:, :] + kernel[..., :-1, :]
        kernel = kernel[..., 1:] + kernel[..., :-1]            # what the four copies of a pixel add up to
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
        """`(N, width, H, W)`, sides of 2 and more, to the same."""
        return x_NCHW + self.layers(x_NCHW)


class ResNetGenerator(nn.Module):
    """Images to images: a stem, halvings, residual blocks, as many doublings, and convolution and tanh to pixels."""

    def __init__(
        self,
        channels: int,                                     # image channels, in and out
        width: int,                                        # feature maps at full size, doubled by each halving
        *,
        blocks: int,                                       # residual blocks at the coarsest grid
        halvings: int = 2,
        kernel: int = 7,                                   # of the first and the last convolution, odd
        upsample: str = "resize",                          # resize: no checkerboards; transposed: the original's 3x3
        residual: bool = False,                            # draw a change of the image instead of a new one
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
        """Images in [-1, 1], float32, from what the encoder made of `x`; the sides of `x` fit.

        With `residual`, what the decoder says is added to `x` (at most 2, which takes black to white) and cut off at
        the ends of the scale; gradients pass the cut, so that a pixel at its end can leave it again.
        """
        drawn = self.decoder(code_NCHW).float().tanh()
        if not self.residual:
            return drawn
        whole = x_NCHW.float() + 2 * drawn
        return whole + (whole.clamp(-1, 1) - whole).detach()

    def pad(self, x_NCHW: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Images with sides that the halvings divide, and what takes the padding off again."""
        return reflect_to(x_NCHW, multiple=self.multiple, smallest=self.smallest)

    def features(self, x_NCHW: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """What the encoder makes of images whose sides fit, and what it saw after `layers`, in their order.

        Layer 0 is the padded image itself; layer k > 0 the output of the encoder's k-th step: convolution, norm and
        ReLU each count as one, a residual block too.
        """
        assert max(layers) <= len(self.encoder), f"layers {list(layers)} of {len(self.encoder)}"
        x, seen = x_NCHW, {0: x_NCHW}
        for number, layer in enumerate(self.encoder, start=1):
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)  # `layers` may ask for what ReLU saw
            if number in layers:
                seen[number] = x
        return x, [seen[number] for number in layers]


def reflect_to(x_NCHW: Tensor, *, multiple: int, smallest: int = 1) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Images padded by reflection to sides that are multiples of `multiple`, `smallest` at least; and the way back.

    A side too short to be reflected as far as needed is reflected several times.
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
    """Which of `side` pixels stands at each of `total` places, `before` of them in front of the first."""
    period = max(1, 2 * side - 2)
    place = (torch.arange(total, device=device) - before) % period
    return torch.where(place < side, place, period - place).clamp(max=side - 1)


def initialize(network: nn.Module, std: float | None) -> None:
    """Convolutions and linear layers N(0, std), biases 0 (Zhu et al. 2017); None leaves torch's own."""
    if std is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
