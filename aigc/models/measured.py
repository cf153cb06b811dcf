"""The standard deviation of what a denoiser sees, measured while it learns: its input is scaled by it."""

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.models.family import Family
from aigc.networks.ranks import sum_over_ranks


class Measured(Family):
    """A family with the hyper-parameters `sigma_data`, a number or auto, and `sigma_images`, how many it measures."""

    moments: Tensor                         # images measured, sum of their means, sum of their mean squares

    def begin_measuring(self) -> None:
        """To be called by the constructor, once the hyper-parameters are there.

        Raises:
            UserError: `sigma_data` is neither a positive number nor auto.
        """
        given = self.hparams.sigma_data
        if not (given == "auto" or (isinstance(given, int | float) and given > 0)):
            raise UserError(f"model.sigma_data={given} is neither a positive number nor auto: give one of them")
        self.register_buffer("moments", torch.zeros(3))  # in the checkpoint: resuming continues the same measurement
        self._measuring = given == "auto"

    def sigma_data(self) -> Tensor:
        """Standard deviation of the images over all pixels, a scalar; measured so far where it is `auto`."""
        if self.hparams.sigma_data != "auto":
            return torch.tensor(float(self.hparams.sigma_data), device=self.moments.device)
        count, total, squares = self.moments
        mean = total / count.clamp(min=1)
        spread = (squares / count.clamp(min=1) - mean**2).clamp(min=1e-4).sqrt()
        return torch.where(count > 0, spread, 0.5)  # EDM's 0.5 before any image

    def measure(self, images: Tensor) -> None:
        """Takes the first `sigma_images` images, those of all ranks, into account for `sigma_data`."""
        if self._measuring:  # asked of the device no longer than needed
            self._measuring = float(self.moments[0]) < self.hparams.sigma_images
        if not self._measuring:
            return
        flat = images.flatten(1)
        new = torch.stack([flat.new_tensor(len(flat)), flat.mean(1).sum(), flat.square().mean(1).sum()])
        self.moments += sum_over_ranks(new)
