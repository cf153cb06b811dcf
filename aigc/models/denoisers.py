"""What a diffusion model trains, averages and samples: a denoiser and the encoder of its condition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aigc.conditions import TextEncoder, build_encoder
from aigc.errors import check_choices
from aigc.networks.dit import DiT
from aigc.networks.muon import Muon, hidden_matrices
from aigc.networks.unet import UNet, clock_features, silence

DENOISERS = ("unet", "dit")


class ConditionalDenoiser(nn.Module):
    """A U-Net or a diffusion transformer, and a condition encoder.

    Raises:
        UserError: there is no such denoiser.
    """

    def __init__(
        self,
        kind: str,                           # unet | dit
        shape: Sequence[int],                # (channels, height, width) of what is denoised
        *,
        condition: str,                      # none | label | text
        facts: dict[str, Any],               # classes and vocabulary of the data
        text: dict[str, Any],                # arguments of `TextEncoder`
        network: dict[str, Any],             # arguments of `UNet` or of `DiT`
    ):
        super().__init__()
        check_choices((("denoiser", kind, DENOISERS),))
        channels, *size = shape
        if kind == "unet":
            levels = network.get("cross_attention", ()) if condition == "text" else ()
            reads = {"cross_attention": levels, "context": text["width"]} if levels else {}
            self.unet = UNet(channels, **{**network, "cross_attention": (), **reads})
        else:
            reads = {"context": text["width"]} if condition == "text" else {}
            self.dit = DiT(channels, size, **network, **reads)
        width = self.denoiser.vector
        self.encoder = build_encoder(condition, width=width, text=text, attended=bool(reads), **facts)

    @property
    def denoiser(self) -> UNet | DiT:
        """The network that predicts."""
        return self.unet if hasattr(self, "unet") else self.dit

    def matrices(self) -> list[Tensor]:
        """The weight matrices that Muon may move: of layers between the first and the last one."""
        if hasattr(self, "unet"):
            return hidden_matrices(self.unet, without=[self.unet.stem, self.unet.out])
        return self.dit.matrices()

    def forward(
        self, x: Tensor, clock: Tensor, condition: Tensor | None, drop: Tensor | None = None,
        further: Tensor | None = None,
    ) -> Tensor:
        """Scaled noisy images `(n, c, h, w)`, times `(n,)`, labels `(n,)` or texts to predictions `(n, c, h, w)`.

        `further` `(n, vector)` is added to the vector of the condition.
        """
        vector: Tensor | None
        text = None
        if isinstance(self.encoder, TextEncoder):
            vector, tokens, mask = self.encoder.read(condition, n=len(x), drop=drop)
            text = None if tokens is None else (tokens, mask)
        else:
            vector = None if self.encoder is None else self.encoder(condition, n=len(x), drop=drop)
        if further is not None:
            vector = further if vector is None else vector + further
        return self.denoiser(x, clock, vector, text)


class Told(nn.Module):
    """A denoiser that a subclass tells more than what is noisy, when, and under which condition."""

    def __init__(self, denoiser: ConditionalDenoiser):
        super().__init__()
        self.denoiser = denoiser

    @property
    def encoder(self) -> Any:
        """The encoder of conditions."""
        return self.denoiser.encoder

    def matrices(self) -> list[Tensor]:
        """Those of the denoiser that Muon may move."""
        return self.denoiser.matrices()


class TwoClocks(Told):
    """A denoiser with a second clock, in [0, 1]; at the start its answer does not depend on it."""

    def __init__(self, denoiser: ConditionalDenoiser):
        super().__init__(denoiser)
        self.width = denoiser.denoiser.vector
        self.step = nn.Sequential(nn.Linear(self.width, self.width), nn.SiLU(), nn.Linear(self.width, self.width))
        silence(self.step[-1])

    def forward(
        self, x: Tensor, clock: Tensor, condition: Tensor | None, drop: Tensor | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        """As of the denoiser; `second` `(n,)` is what the second clock shows, None: 0."""
        second = torch.zeros_like(clock) if second is None else second
        return self.denoiser(x, clock, condition, drop, self.step(clock_features(second, self.width, fastest=4.0)))


class Upscaler(TwoClocks):
    """A U-Net with `joined` channels that also sees a picture; the second clock tells how noisy that was made."""

    def forward(
        self, x: Tensor, clock: Tensor, condition: Tensor | None, drop: Tensor | None = None,
        second: Tensor | None = None, picture: Tensor | None = None,
    ) -> Tensor:
        """As of `TwoClocks`, beside a picture `(n, joined, h, w)` of the size of x."""
        assert picture is not None, "this network enlarges a picture"
        return super().forward(torch.cat([x, picture], dim=1), clock, condition, drop, second)


class Beside(Told):
    """A U-Net with `joined` channels that also sees a picture of so many channels."""

    def forward(
        self, x: Tensor, clock: Tensor, condition: Tensor | None, drop: Tensor | None = None,
        picture: Tensor | None = None,
    ) -> Tensor:
        """As of the denoiser, beside a picture `(n, joined, h, w)` of the size of x."""
        assert picture is not None, "this network restores a picture"
        return self.denoiser(torch.cat([x, picture], dim=1), clock, condition, drop)


def optimizer_of(networks: Sequence[Any], options: Any) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) for denoisers, and Muon (Jordan et al. 2024) for their `matrices()`.

    Args:
        networks: the denoisers, alone or with a second clock.
        options: those of `diffusion.Optimizer`, by name.
    """
    parameters = [parameter for network in networks for parameter in network.parameters()]
    betas = (options["betas"][0], options["betas"][1])
    if not options["muon_lr"]:
        return torch.optim.AdamW(parameters, lr=options["lr"], betas=betas, weight_decay=options["weight_decay"],
                                 fused=True)
    matrices = [matrix for network in networks for matrix in network.matrices()]
    return Muon(parameters, matrices, lr=options["lr"], matrix_lr=options["muon_lr"], betas=betas,
                weight_decay=options["weight_decay"])
