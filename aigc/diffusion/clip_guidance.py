"""CLIP guidance (Crowson 2021), as Disco Diffusion has it: gradients of how well cutouts fit texts bend a denoiser.

Notable:
- The loss of an image is the squared distance on the sphere between its cutouts and its prompts, weighted, and terms
  that keep it an image: total variation, range, saturation. Its gradient goes through the expected image x0 and the
  denoiser, in latents through the decoder too, or through a smaller denoiser in its place.
- Cutouts show the whole image first and its inside later, or as `clip_overview` and `clip_inner` say.
- The gradient is clamped for each image alone, and cutouts are drawn from each image's own noise.
- Texts come as vectors: who asks encodes each prompt once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from aigc.diffusion.cutouts import DRAWS, cutouts, uniform
from aigc.diffusion.guides import conditioned
from aigc.diffusion.samplers import Denoise, Noise
from aigc.errors import UserError


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance on the sphere, 2 arcsin^2(|a - b| / 2), of unit vectors `(..., d)`: 0 to pi^2 / 2."""
    return 2 * ((a - b).norm(dim=-1) / 2).clamp(max=1 - 1e-6).arcsin().square()


def total_variation(images: Tensor) -> Tensor:
    """Mean squared difference of neighbours, both ways, `(n,)` of images `(n, c, h, w)`."""
    across = (images[..., 1:] - images[..., :-1]).square().mean((1, 2, 3))
    return across + (images[..., 1:, :] - images[..., :-1, :]).square().mean((1, 2, 3))


def out_of_range(images: Tensor) -> Tensor:
    """Mean square of what lies beyond [-1, 1], `(n,)`."""
    return (images - images.clamp(-1, 1)).square().mean((1, 2, 3))


def saturation(images: Tensor) -> Tensor:
    """Mean of what lies beyond [-1, 1], `(n,)`."""
    return (images - images.clamp(-1, 1)).abs().mean((1, 2, 3))


def turned(pair: Sequence[float], alpha: Tensor, sigma: Tensor, turn: float) -> float:
    """The first of a pair until a share `turn` of sampling is done, then the second.

    What is done is the angle from noise to image, 1 - atan2(sigma, alpha) / (pi / 2): the cosine schedule's time.

    Raises:
        UserError: it is no pair.
    """
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise UserError(f"'{pair}' is no pair of what counts before and after clip_turn: give two, as in [6, 4]")
    done = 1 - float(torch.atan2(sigma, alpha)) / (torch.pi / 2)
    return pair[0] if done < turn else pair[1]


class CLIPGuide:
    """A guide towards prompts for each image, as a network sees it that puts images and texts into one space."""

    __name__ = "clip"

    def __init__(
        self, embed: Callable[[Tensor], Tensor], targets: Tensor, weights: Tensor, *,
        decode: Callable[[Tensor], Tensor] | None = None, secondary: Denoise | None = None,
    ):
        """For n images with p prompts each.

        Args:
            embed: images `(m, c, h, w)` in [-1, 1] to unit vectors `(m, d)`.
            targets: unit vectors `(n, p, d)` of the prompts.
            weights: of the prompts, `(n, p)`; their sum has the size 1 for each image.
            decode: latents to images, where samples are latents.
            secondary: a smaller denoiser to differentiate in place of the one that samples.
        """
        self.embed, self.targets, self.weights = embed, targets, weights
        self.decode, self.secondary = decode, secondary
        self.gradients = secondary is None

    def __call__(
        self, x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, *, noise: Noise, clip_guidance: float = 1000.0,
        clip_overview: Sequence[int] = (6, 4), clip_inner: Sequence[int] = (2, 4), clip_turn: float = 0.4,
        clip_least: float = 0.8, clip_power: float = 1.0, clip_grey: Sequence[float] = (0.2, 0.0),
        clip_tv: float = 0.0, clip_range: float = 150.0, clip_saturation: float = 0.0,
        clip_clamp: float | None = 0.7,
    ) -> Tensor:
        """The options, most of them Disco's.

        Args:
            x: noisy images, see `diffusion.guides`.
            x0: the expected ones.
            alpha: of the image in x.
            sigma: of the noise in x.
            noise: draws for each image.
            clip_guidance: the scale of the distance to the prompts; 0 is off, with all of the rest.
            clip_overview: cutouts that show the whole image, before and after `clip_turn`.
            clip_inner: cutouts from inside, likewise.
            clip_turn: the share of sampling after which they change.
            clip_least: see `least` of `cutouts`.
            clip_power: see `power` there.
            clip_grey: share of inner cutouts without colour, before and after.
            clip_tv: weight of the total variation.
            clip_range: weight of what leaves the range of pixels, squared.
            clip_saturation: weight of the same, not squared.
            clip_clamp: largest root mean square of an image's change, see `conditioned`; None: no limit.

        Raises:
            UserError: there are no cutouts, or a pair is none.
        """
        if clip_guidance == 0 or float(alpha) == 0:
            return x0
        overview, inner = (int(turned(pair, alpha, sigma, clip_turn)) for pair in (clip_overview, clip_inner))
        if overview < 0 or inner < 0 or not overview + inner:
            raise UserError(f"clip_overview={list(clip_overview)} and clip_inner={list(clip_inner)} leave no cutout "
                            "to look at: give at least one before and after clip_turn")
        u = uniform(noise(overview + inner, DRAWS))
        with torch.enable_grad():
            if self.secondary is not None:
                x = x.detach().requires_grad_(True)
                expected = self.secondary(x, alpha, sigma)
            else:
                expected = x0
            images = (expected if self.decode is None else self.decode(expected)).float()
            cuts = cutouts(images, u, overview=overview, least=clip_least, power=clip_power,
                           grey=turned(clip_grey, alpha, sigma, clip_turn))
            seen = self.embed(cuts.flatten(0, 1)).unflatten(0, cuts.shape[:2])             # (cuts, n, d)
            apart = spherical_distance(seen[:, :, None], self.targets.to(seen.device))     # (cuts, n, p)
            loss = clip_guidance * (apart * self.weights.to(seen.device)).sum(2).mean(0)
            terms = ((clip_tv, total_variation), (clip_range, out_of_range), (clip_saturation, saturation))
            for weight, term in terms:
                loss = loss + weight * term(images) if weight else loss
            gradient, = torch.autograd.grad(-loss.sum(), x, retain_graph=self.gradients)
        return conditioned(x0, gradient, alpha, sigma, largest=clip_clamp)
