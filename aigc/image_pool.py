"""Generated images of earlier steps, which a discriminator also learns from (Shrivastava et al. 2017, section 2.3)."""

from typing import Any

import torch
from torch import Tensor

from aigc.noise import mix


class ImagePool:
    """The last images that a generator made, `size` at most, mixed at random into those of the moment.

    An image that comes while there is room is kept, and passed on. Later, each image is passed on as it is or, with
    probability 1/2, put in the place of a random earlier one, which is passed on instead (Zhu et al. 2017). Images go
    through one at a time, so a pool works alike at every batch size.

    What is drawn depends on the number of the step alone: ranks that hand in the same images keep the same pool, and
    one that was saved and loaded goes on as if nothing had happened.
    """

    def __init__(self, size: int):
        self.size = size                                   # 0: every image passes as it is
        self.images: Tensor | None = None                  # (size, c, h, w), float32; `held` of them are in use
        self.held = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, step: int) -> Tensor:
        """As many images `(n, c, h, w)` as are given, detached, some of them from earlier steps."""
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
        """The images it holds, for a checkpoint."""
        return {"images": None if self.images is None else self.images[: self.held].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the images of a checkpoint; a smaller pool keeps the first of them."""
        images = state["images"]
        self.images, self.held = None, 0
        if images is not None and self.size:
            self.held = min(len(images), self.size)
            self.images = images.new_empty(self.size, *images.shape[1:])
            self.images[: self.held] = images[: self.held]
