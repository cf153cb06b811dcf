"""Conditions, the same for every family: `condition=none|label|text`.

An encoder turns a batch's labels or texts into one vector per image, which a family modulates, projects or
concatenates with, and texts also into tokens with a mask, for attention. A condition is passed on as one tensor with a
row per image: labels `(n,)`, or token numbers `(n, L)`, padded with -1. The condition is dropped per sample
(classifier-free guidance, Ho and Salimans 2022): a dropped sample gets the learned null vector.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aigc.conditions.text import Reader, TextEncoder
from aigc.errors import UserError
from aigc.noise import mix
from aigc.wording import counted

_LABEL = 0x1ABE1                                           # separates the random label from the noise of an image


class LabelEncoder(nn.Module):
    """Class labels to vectors: an embedding whose additional last row means "no condition"."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes                                   # number of classes; index `classes` is the null row
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor | None, *, n: int, drop: Tensor | None = None) -> Tensor:
        """Vectors `(n, width)` for `labels` `(n,)` int64, or for "no condition" if `labels` is None.

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


def build_encoder(
    condition: str, *, classes: int | None, width: int, vocabulary: Sequence[str] | None = None,
    text: dict[str, Any] | None = None, attended: bool = False,
) -> LabelEncoder | TextEncoder | None:
    """The encoder for `condition`, or None for `none`.

    Args:
        condition: none, label or text.
        classes: of the data, for label.
        width: length of the vectors.
        vocabulary: of the training captions, for text (`aigc/conditions/vocabulary.py`).
        text: the recipe's options of `TextEncoder`.
        attended: whether the family attends to a text's tokens.
    """
    if condition == "none":
        return None
    if condition == "text":
        return TextEncoder(width, vocabulary=vocabulary, attended=attended, **(text or {}))
    assert classes, "condition=label needs data with classes"
    return LabelEncoder(classes, width)


def as_tensor(condition: Tensor | Sequence[str] | None, encoder: nn.Module | None) -> Tensor | None:
    """A batch's condition as one tensor: labels as they are, texts as token numbers, on the encoder's device."""
    if isinstance(encoder, Reader) and condition is not None and not isinstance(condition, Tensor):
        return encoder.tokenize(condition)
    assert condition is None or isinstance(condition, Tensor), "texts for a family without a text encoder"
    return condition


def condition_for(
    condition: Any, *, kind: str, classes: int | None, seeds: Sequence[int], encoder: nn.Module | None
) -> Tensor | None:
    """The condition given to `sample`, checked, as one tensor with a row for each of len(seeds) images; None for none.

    Without a condition, every image's label is drawn from its own seed, and its text is empty.

    Raises:
        UserError: the model takes no such condition, or the number of conditions is wrong.
    """
    if not isinstance(encoder, Reader):
        return labels_for(condition, kind=kind, classes=classes, seeds=seeds)
    if condition is None:
        condition = [""] * len(seeds)
    if isinstance(condition, str) or not all(isinstance(text, str) for text in condition):
        raise UserError("this model was trained with condition=text: give it a text for each image")
    if len(condition) != len(seeds):
        raise UserError(f"{counted(len(condition), 'text')} for {counted(len(seeds), 'image')}: give one text for "
                        "each image")
    return encoder.tokenize(condition)


def labels_for(
    condition: Tensor | Sequence[int] | None, *, kind: str, classes: int | None, seeds: Sequence[int]
) -> Tensor | None:
    """Checked labels `(n,)` int64 for n = len(seeds) images, or None where `kind` is "none".

    Without a condition, every image's label is drawn uniformly from its own seed.

    Raises:
        UserError: the model takes no labels, a label is out of range, or the number of labels is wrong.
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
        raise UserError(f"{counted(labels.numel(), 'label')} for {counted(len(seeds), 'image')}: give one label for "
                        "each image")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(f"label {_outside(labels, classes)} is out of range: the model knows 0 to {classes - 1}")
    return labels


def _outside(labels: Tensor, classes: int) -> int:
    return int(labels[(labels < 0) | (labels >= classes)][0])
