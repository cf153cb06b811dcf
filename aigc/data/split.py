"""One part of a data set (train, validation, test): its images, labels and captions, and how parts are held out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.noise import mix
from aigc.wording import counted

Batch = dict[str, Any]


class Lazy(Protocol):
    """Images made on demand because they do not all fit in memory; can be pickled into a worker."""

    shape: tuple[int, int, int, int]  # (n, c, h, w), as a tensor's

    def take(self, index: Tensor) -> Tensor:
        """Images `index` `(k,)` int64 as uint8 `(k, c, h, w)`."""


@dataclass
class Split:
    """Images `(n, c, h, w)` uint8, in memory (a tensor) or made on demand (`Lazy`), with what is known about each."""

    images: Tensor | Lazy
    labels: Tensor | None = None          # (n,) int64
    texts: Sequence[str] | None = None    # n captions
    digest: str | None = None             # identifies the images; None: the tensor's own bytes do
    prints: Tensor | None = None          # (n,) int64, equal for images from equal files; None: not known

    def __len__(self) -> int:
        """Number of images."""
        return self.images.shape[0]

    @property
    def in_memory(self) -> bool:
        """Whether all images are decoded and in memory."""
        return isinstance(self.images, Tensor)

    def batch(self, index: Tensor) -> Batch:
        """The batch of images `index` `(k,)` int64: `image` uint8, `index`, and `label` and `text` where known.

        Its images are a copy that the caller may change.
        """
        if isinstance(self.images, Tensor):
            batch: Batch = {"image": self.images.index_select(0, index)}
        else:
            batch = {"image": self.images.take(index)}
        batch["index"] = index
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, index)
        if self.texts is not None:
            batch["text"] = [self.texts[i] for i in index.tolist()]
        return batch

    def update(self, digest: "hashlib._Hash") -> None:
        """Feeds everything that a batch of this split depends on to `digest`."""
        digest.update(repr(tuple(self.images.shape)).encode())
        if self.digest is not None:
            digest.update(self.digest.encode())
        else:
            assert isinstance(self.images, Tensor), "images made on demand need a digest"
            digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        if self.texts is not None:
            digest.update("\0".join(self.texts).encode())


def hold_out(
    n: int, share: int | float, seed: int, *, what: str, groups: Sequence[Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Rows `(kept, held)` of n, both sorted: the same `seed` holds out the same rows.

    `share` is a number of images, or a fraction of n where it is below 1 (at least one image); `what` names the
    option in errors. Rows of one group (n values, equal within a group) stay together, so up to one group more
    than `share` is held out.

    Raises:
        UserError: nothing would be held out, or nothing would be left.
    """
    held = max(1, round(n * share)) if 0 < share < 1 else int(share)
    if not 0 < held < n:
        raise UserError(f"{what}={share} would hold out {held:,} of {counted(n, 'image')}: choose a fraction between "
                        f"0 and 1, or a number from 1 to {max(1, n - 1)}")
    generator = torch.Generator().manual_seed(mix(seed, n))
    if groups is None:
        taken = torch.zeros(n, dtype=torch.bool)
        taken[torch.randperm(n, generator=generator)[:held]] = True
    else:
        number = {group: k for k, group in enumerate(dict.fromkeys(groups))}
        group_of = torch.tensor([number[group] for group in groups])
        order = torch.randperm(len(number), generator=generator)
        so_far = group_of.bincount()[order].cumsum(0)
        taken_groups = order[: int((so_far < held).sum()) + 1]
        taken = torch.isin(group_of, taken_groups)
        if taken.all():
            raise UserError(f"{what}={share} would hold out all {counted(len(number), 'group')} of images: choose "
                            "fewer")
    return (~taken).nonzero()[:, 0], taken.nonzero()[:, 0]


def cut(
    n: int, shares: Mapping[str, int | float], seed: int, *, groups: Sequence[Any] | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows of n left for training, and those held out for each of `shares` (see `hold_out`), all sorted.

    A share of 0 holds out nothing, and its split is absent. With `labels` `(n,)`, every class keeps at least one row
    for training, which swaps places with a row of a larger class.

    Raises:
        UserError: a share would hold out nothing, or leave nothing.
    """
    rest, held = torch.arange(n), {}
    for name, share in shares.items():
        if share != 0:
            members = None if groups is None else [groups[i] for i in rest.tolist()]
            kept, out = hold_out(len(rest), share, seed, what=f"data.{name}", groups=members)
            rest, held[name] = rest[kept], rest[out]
    if labels is not None:
        rest = _keep_classes(rest, held, labels, groups)
    return rest, held


def _keep_classes(rest: Tensor, held: dict[str, Tensor], labels: Tensor, groups: Sequence[Any] | None) -> Tensor:
    """Moves a row (or its group) of each class without training rows back from `held`; returns the training rows."""
    for label in sorted(set(labels.tolist()) - set(labels[rest].tolist())):
        name = next(split for split, rows in held.items() if (labels[rows] == label).any())
        rows = held[name]
        back = rows[labels[rows] == label][:1]
        if groups is not None:
            back = torch.tensor([i for i in rows.tolist() if groups[i] == groups[int(back)]])
        donors = rest[labels[rest].bincount(minlength=int(labels.max()) + 1)[labels[rest]] > 1]
        given = donors[-1:] if groups is None else donors[:0]
        held[name] = torch.cat([rows[~torch.isin(rows, back)], given]).sort().values
        rest = torch.cat([rest[~torch.isin(rest, given)], back]).sort().values
        if not len(held[name]):
            raise UserError(f"data.{name} would hold out the only image of a class: add images, or set data.{name}=0")
    return rest
