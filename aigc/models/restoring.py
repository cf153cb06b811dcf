"""What families that restore share, whatever their network: restoring is a translation, told by masks what is lost."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.models.family import CAPABILITIES, Batch, Family


class Restores(Family):
    """A translator from degraded images to clean ones, which may be told by masks which pixels are lost.

    A subclass defines `restore(images, *, masks, seeds)`; its hyper-parameter `masks` says whether it reads them.
    """

    @classmethod
    def does(cls) -> str:
        """What it does first of all."""
        return CAPABILITIES["restore"]

    def translate(
        self, images: Tensor, *, direction: str = "a2b", seeds: Sequence[int] | None = None,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Restored images `(n, c, h, w)` in [-1, 1], of any size; see `restore`.

        Raises:
            UserError: the direction is not a2b, masks are missing, or there is no place for them.
        """
        family: Any = self
        family.check_direction(direction)
        return family.restore(images, masks=masks, seeds=seeds)

    def masks_of(self, batch: Batch) -> Tensor | None:
        """The masks of a batch `(n, 1, h, w)`, 1 where pixels are lost; None for a model that is not told.

        Raises:
            UserError: there are none.
        """
        if not self.hparams.masks:
            return None
        if "mask" not in batch:
            raise UserError("model.masks=true needs data with masks, and these have none: choose data=degraded with "
                            "boxes or strokes among data.degradations")
        return batch["mask"]

    def beside(self, batch: Batch) -> dict[str, Any]:
        """The masks, of a model that is told."""
        masks = self.masks_of(batch)
        return {} if masks is None else {"masks": masks}

    def check_masks(self, masks: Tensor | None) -> None:
        """Refuses missing masks, and masks that a model is not told.

        Raises:
            UserError: says which.
        """
        if self.hparams.masks and masks is None:
            raise UserError(f"this {type(self).__name__} learned with masks (model.masks=true) and needs them: say "
                            "which pixels are lost")
        if masks is not None and not self.hparams.masks:
            raise UserError(f"this {type(self).__name__} learned without masks (model.masks=false): leave them out, "
                            "or train with model.masks=true and data.degradations=[boxes,strokes]")

    def seen(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """What the network sees: images `(n, c, h, w)` and, of a model that is told, the masks behind them."""
        return images if masks is None else torch.cat([images, masks.to(images)], dim=1)
