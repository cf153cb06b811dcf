"""Generated images of earlier steps, on which a discriminator also trains (Shrivastava et al. 2017, section 2.3)."""

from typing import Any

import torch
from torch import Tensor

from aigc.noise import mix


class ImagePool:
    """At most `size` earlier images of a generator, mixed at random into the current ones.

    While there is room, an image is stored and returned. Later, each image is either returned as it is or, with
    probability 1/2, stored in place of a random earlier one, which is returned instead (Zhu et al. 2017). Images are
    processed one at a time, so a pool behaves alike at every batch size.

    The random choices depend only on the number of the step: ranks that pass the same images have the same pool, and a
    restored pool continues exactly.
    """

    def __init__(self, size: int):
        self.size = size                                   # 0: every image is returned as it is
        self.images: Tensor | None = None                  # (size, c, h, w), float32; `held` of them are in use
        self.held = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, step: int) -> Tensor:
        """As many images `(n, c, h, w)` as given, detached, some of them from earlier steps."""
        if not self.size:
            return images.detach()
        if self.images is None or self.images.device != images.device:
            shape = (self.size, *images.shape[1:])
            old = self.images
            self.images = torch.empty(shape, device=images.device) if old is None else old.to(images.device)
        generator = torch.Generator().manual_seed(mix(step))
        passed = images.detach().float().clone()
        swaps = (torch.rand(len(images), generator=generator) < 0.5).tolist()
        places = torch.randint(self.size, (len(images),), generator=generator).tolist()
        for image, swap, place in zip(passed, swaps, places, strict=True):
            if self.held < self.size:
                self.images[self.held] = image
                self.held += 1
            elif swap:
                before = self.images[place].clone()
                self.images[place] = image
                image.copy_(before)
        return passed

    def state_dict(self) -> dict[str, Any]:
        """The stored images, for a checkpoint."""
        return {"images": None if self.images is None else self.images[: self.held].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the images of a checkpoint; a smaller pool keeps the first of them."""
        images = state["images"]
        self.images, self.held = None, 0
        if images is not None and self.size:
            self.held = min(len(images), self.size)
            self.images = images.new_empty(self.size, *images.shape[1:])
            self.images[: self.held] = images[: self.held]
