"""Log-likelihoods of images and the divergence of their latents, in nats: the terms of evidence lower bounds."""

from math import log, pi

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_log_density(x: Tensor, mean: Tensor, scale: Tensor | float) -> Tensor:
    """Log N(x; mean, scale^2) in nats, summed over all but the first axis: `(n,)`."""
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    return (-0.5 * ((x - mean) / scale).square() - scale.log() - 0.5 * log(2 * pi)).flatten(1).sum(1)


def bernoulli_log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """Log p in nats for `x` in [-1, 1], read as the share of ones (x + 1) / 2, summed over all but the first axis.

    A probability for black and white images; for grey ones the cross-entropy, which is not normalised.
    """
    return -F.binary_cross_entropy_with_logits(logits, (x + 1) / 2, reduction="none").flatten(1).sum(1)


def kl_to_standard_normal(mean: Tensor, deviation: Tensor) -> Tensor:
    """KL(N(mean, deviation^2) || N(0, 1)) in nats, summed over the last axis (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).sum(-1)
