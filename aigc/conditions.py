"""Conditions, the same for every family: `condition=none|label`.

An encoder turns a batch's labels into one vector per image, which a family modulates, projects or concatenates with.
Dropping the condition (classifier-free guidance, Ho and Salimans 2022) is per sample: a dropped sample gets the
learned null vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aigc.errors import UserError
from aigc.noise import mix

_LABEL = 0x1ABE1                                           # keeps an image's drawn label apart from its noise


class LabelEncoder(nn.Module):
    """Class labels to vectors: an embedding with one more row, the last, for "no condition"."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes                                   # number of classes; index `classes` is the null row
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor | None, *, n: int, drop: Tensor | None = None) -> Tensor:
        """Vectors `(n, width)` for `labels` `(n,)` int64, or for no condition where `labels` is None.

        `drop` `(n,)` bool marks samples whose condition is dropped.
        """
        device = self.table.weight.device
        if labels is None:
            index = torch.full((n,), self.classes, device=device)
        else:
            assert labels.shape == (n,), f"labels {tuple(labels.shape)} for {n} images"
            index = labels.to(device)
            if drop is not None:
                index = torch.where(drop.to(device), self.classes, index)
        return self.table(index)


def build_encoder(condition: str, *, classes: int | None, width: int) -> LabelEncoder | None:
    """The encoder for `condition`, or None for `none`; `width` is the length of the vectors."""
    if condition == "none":
        return None
    assert classes, "condition=label needs data with classes"
    return LabelEncoder(classes, width)


def labels_for(
    condition: Tensor | Sequence[int] | None, *, kind: str, classes: int | None, seeds: Sequence[int]
) -> Tensor | None:
    """Checked labels `(n,)` int64 for n = len(seeds) images, or None where `kind` is "none".

    Without a condition every image's label is drawn uniformly from its own seed.

    Raises:
        UserError: the model takes no labels, or a label is out of range, or their number is wrong.
    """
    if kind == "none":
        if condition is not None:
            raise UserError("this model was trained with condition=none: it takes no labels, leave label= out")
        return None
    assert classes, "condition=label needs data with classes"
    if condition is None:
        return torch.tensor([mix(int(seed), _LABEL) % classes for seed in seeds], dtype=torch.int64)
    labels = torch.as_tensor(condition, dtype=torch.int64).cpu()
    if labels.shape != (len(seeds),):
        raise UserError(f"{labels.numel()} labels for {len(seeds)} images: give one label for each image")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"label {_outside(labels, classes)} is out of range: the model knows 0 to {classes - 1}")
    return labels


def _outside(labels: Tensor, classes: int) -> int:
    return int(labels[(labels < 0) | (labels >= classes)][0])
