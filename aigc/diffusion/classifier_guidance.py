"""Classifier guidance (Dhariwal and Nichol 2021, section 4): gradients of a noise-aware classifier bend a denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

from aigc.diffusion.guides import conditioned

Classify = Callable[[Tensor, Tensor, Tensor], Tensor]      # (x, alpha, sigma) to log-probabilities (n, classes)


class ClassifierGuide:
    """A guide towards a class for each image: s grad log p(y | x), by a classifier that knows noise.

    In latents, where no classifier of noisy images is at home, it is asked about the expected image x0, decoded, and
    the gradient goes through the denoiser (Bansal et al. 2023, Universal Guidance).
    """

    __name__ = "classifier"

    def __init__(self, classify: Classify, labels: Tensor, *, decode: Callable[[Tensor], Tensor] | None = None):
        """`labels` `(n,)` int64 of the images; `decode` turns latents into images."""
        self.classify, self.labels, self.decode = classify, labels, decode
        self.gradients = decode is not None

    def __call__(
        self, x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, classifier_guidance: float = 10.0,
        classifier_clamp: float | None = None,
    ) -> Tensor:
        """`classifier_guidance`: the scale s, 0 is off; `classifier_clamp`: see `largest` of `conditioned`."""
        if classifier_guidance == 0 or float(alpha) == 0:
            return x0
        with torch.enable_grad():
            if self.decode is None:
                x = x.detach().requires_grad_(True)
                found = self.classify(x, alpha, sigma)
            else:
                found = self.classify(self.decode(x0), torch.ones_like(alpha), torch.zeros_like(sigma))
            likely = found.gather(1, self.labels.to(found.device)[:, None]).sum()
            gradient, = torch.autograd.grad(classifier_guidance * likely, x, retain_graph=self.gradients)
        return conditioned(x0, gradient, alpha, sigma, largest=classifier_clamp)
