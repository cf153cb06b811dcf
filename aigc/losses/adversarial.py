"""Adversarial losses and gradient penalties, all on logits and in float32.

A loss is a pair, the discriminator's and the generator's, both functions of the logits of real and generated images.
Only the relativistic generator uses the real ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError, choices
from aigc.networks.ranks import mean_over_ranks


class AdversarialLoss(NamedTuple):
    """Two functions `(real logits, fake logits) -> scalar`."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    relativistic: bool = False                             # the generator's loss needs the real logits


LOSSES = {
    # Goodfellow et al. 2014, the generator's alternative loss of section 3
    "nonsaturating": AdversarialLoss(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda real, fake: F.softplus(-fake).mean(),
    ),
    # Mao et al. 2017, equation 9 (a = 0, b = c = 1)
    "least_squares": AdversarialLoss(
        lambda real, fake: 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean(),
        lambda real, fake: 0.5 * (fake - 1).square().mean(),
    ),
    # Arjovsky et al. 2017; needs a gradient penalty (Gulrajani et al. 2017)
    "wasserstein": AdversarialLoss(
        lambda real, fake: fake.mean() - real.mean(),
        lambda real, fake: -fake.mean(),
    ),
    # Lim and Ye 2017, Miyato et al. 2018, equations 16 and 17
    "hinge": AdversarialLoss(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    # Jolicoeur-Martineau 2018; R3GAN, Huang et al. 2024, equation 2, with softplus. Real image k is paired with fake
    # image k
    "relativistic": AdversarialLoss(
        lambda real, fake: F.softplus(fake - real).mean(),
        lambda real, fake: F.softplus(real - fake).mean(),
        relativistic=True,
    ),
}


def adversarial_loss(name: str) -> AdversarialLoss:
    """The loss called `name`.

    Raises:
        UserError: names the nearest known losses.
    """
    if name not in LOSSES:
        raise UserError(f"model.loss={name} is not an adversarial loss: {choices(name, LOSSES)}")
    return LOSSES[name]


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of each image's gradient, summed over c, h, w: `(n,)`, float32, differentiable again.

    `logits` `(n, ...)` came from `images` `(n, c, h, w)` outside autocast. R1 (Mescheder et al. 2018, equation 9) is
    gamma / 2 times its mean on real images, R2 the same on generated ones.
    """
    with torch.autocast(images.device.type, enabled=False):                      # and in the backward pass
        (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
        return gradient.float().square().flatten(1).sum(1)


def patch_r1(discriminator: Callable[[Tensor], Tensor], real: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """R1 without gamma / 2 where logits are patches' `(n, 1, h, w)`: of their mean, by the transformed image.

    A scalar, float32, for real images `(n, c, h, w)`.
    """
    with torch.autocast(real.device.type, enabled=False):
        seen = transform(real).detach().requires_grad_()
        return squared_gradient(discriminator(seen).mean((1, 2, 3)), seen).mean()


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """WGAN-GP's penalty, without its weight: mean of (|gradient| - 1)^2 between real and fake, a scalar.

    At a random point between image k of `real` and image k of `fake`, both `(n, c, h, w)`; in float32.
    Gulrajani et al. 2017, equation 3.
    """
    assert real.shape == fake.shape, f"real {tuple(real.shape)}, fake {tuple(fake.shape)}"
    with torch.autocast(real.device.type, enabled=False):
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = torch.lerp(fake.detach().float(), real.detach().float(), share).requires_grad_()
        squared = squared_gradient(discriminator(between), between)
        return ((squared + 1e-12).sqrt() - 1).square().mean()   # 1e-12: the root has no gradient at 0


MOST_WEIGHT = 1e4


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """How much the adversarial loss weighs beside the reconstruction's, a scalar without gradient.

    |gradient of reconstruction| / (|gradient of adversarial| + 1e-4) at `last`, the weights of the decoder's last
    layer, at most 1e4 (Esser et al. 2021, equation 7, and its code): both then pull equally hard. The gradients are
    averaged over all devices first, so that the weight is that of the whole batch.
    """
    with torch.autocast(last.device.type, enabled=False):
        pulls = torch.stack([
            torch.autograd.grad(loss, last, retain_graph=True)[0].float() for loss in (reconstruction, adversarial)
        ])
    of_reconstruction, of_adversarial = mean_over_ranks(pulls).flatten(1).norm(dim=1)
    return (of_reconstruction / (of_adversarial + 1e-4)).clamp(max=MOST_WEIGHT).detach()
