"""A family for the tests of editing: it turns images into their negatives, and remembers nothing."""

import torch
from torch import nn

from aigc.models.family import Translator


class Negative(Translator):
    """a2b gives the negative; sides that `least` does not divide, or that are smaller, are a bug of the caller's."""

    directions = ("a2b",)

    def __init__(self, channels: int = 3, size: tuple[int, int] = (16, 16), *, least: int = 16, fail_above: int = 0):
        super().__init__()
        self.save_hyperparameters()
        self.gain = nn.Parameter(torch.tensor(-1.0))

    def translate(self, images, *, direction="a2b", seeds=None):
        self.check_direction(direction)
        assert min(images.shape[2:]) >= self.hparams.least and len(seeds) == len(images)
        if self.hparams.fail_above and max(images.shape[2:]) > self.hparams.fail_above:
            raise torch.OutOfMemoryError("out of memory")
        return images * self.gain.detach()


def save(family, path):
    """A checkpoint of the family, as training would leave it."""
    content = {"state_dict": family.state_dict(), "hyper_parameters": dict(family.hparams)}
    family.on_save_checkpoint(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
