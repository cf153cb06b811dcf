"""What a network predicts, and how its errors are weighted.

For x_t = alpha x_0 + sigma eps with eps ~ N(0, 1), every parametrization is one line, a target

    F = p x_0 + q eps,    with p and q depending on alpha and sigma only,

from which x_0 = (sigma F - q x_t) / (p sigma - q alpha), and a squared error of F is (p - q alpha / sigma)^2 times
the squared error of x_0. So the losses of all parametrizations are compared and weighted in x_0 space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]          # (p, q), by (alpha, sigma, sigma_data)


def _x0(alpha: Tensor, sigma: Tensor, sd: Tensor | float) -> Pair:
    return torch.ones_like(alpha), torch.zeros_like(alpha)


def _eps(alpha: Tensor, sigma: Tensor, sd: Tensor | float) -> Pair:
    """Ho et al. 2020."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def _v(alpha: Tensor, sigma: Tensor, sd: Tensor | float) -> Pair:
    """Predicts v = alpha eps - sigma x_0 (Salimans and Ho 2022)."""
    return -sigma, alpha


def _flow(alpha: Tensor, sigma: Tensor, sd: Tensor | float) -> Pair:
    """Velocity dx/dt = x_0 - eps of x_t = (1 - t) eps + t x_0 (Lipman et al. 2023)."""
    return torch.ones_like(alpha), -torch.ones_like(alpha)


def _edm(alpha: Tensor, sigma: Tensor, sd: Tensor | float) -> Pair:
    """(D - c_skip x) / c_out of Karras et al. 2022, table 1, written out: unit variance for data of variance sd^2."""
    norm = (sigma**2 + (alpha * sd) ** 2).sqrt()
    return sigma / (sd * norm), -alpha * sd / norm


PARAMETRISATIONS: dict[str, Callable[[Tensor, Tensor, Tensor | float], Pair]] = {
    "x0": _x0, "eps": _eps, "v": _v, "flow": _flow, "edm": _edm,
}


@dataclass(frozen=True)
class Parametrisation:
    """What the network predicts at (alpha, sigma), tensors that broadcast with images."""

    name: str                # key of PARAMETRISATIONS
    sigma_data: Tensor | float  # standard deviation of the images in [-1, 1]; only `edm` reads it

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> Pair:
        """(p, q) of the target F = p x_0 + q eps."""
        return PARAMETRISATIONS[self.name](alpha, sigma, self.sigma_data)

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The network's target for x_t = alpha x_0 + sigma eps."""
        p, q = self.coefficients(alpha, sigma)
        return p * x0 + q * eps

    def x0(self, prediction: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The image that a prediction implies."""
        p, q = self.coefficients(alpha, sigma)
        return (sigma * prediction - q * x_t) / (p * sigma - q * alpha)

    def weight(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The weight of a squared error of x_0 in a squared error of the prediction.

        SNR for eps, SNR + 1 for v, 1 / (1 - t)^2 for flow, (s^2 + sd^2) / (s sd)^2 for edm, 1 for x0.
        """
        p, q = self.coefficients(alpha, sigma)
        return (p - q * alpha / sigma) ** 2


def loss_factor(
    weighting: str, parametrisation: Parametrisation, alpha: Tensor, sigma: Tensor, *, min_snr: float = 5.0
) -> Tensor:
    """The factor for the squared error of the prediction that gives x_0's error the weight of `weighting`.

    `own`: the prediction's plain squared error; the name of a parametrization: as if that were predicted;
    `min_snr`: min(SNR, `min_snr`) in x_0 space (Hang et al. 2023).
    """
    own = parametrisation.weight(alpha, sigma)
    if weighting == "own":
        return torch.ones_like(own)
    if weighting == "min_snr":
        return ((alpha / sigma) ** 2).clamp(max=min_snr) / own
    return Parametrisation(weighting, parametrisation.sigma_data).weight(alpha, sigma) / own


WEIGHTINGS = ("own", "min_snr", *PARAMETRISATIONS)
