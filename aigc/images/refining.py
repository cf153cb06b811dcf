"""Masks drawn roughly, brought to the picture's own edges by a dense conditional random field (networks/crf.py)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.networks.crf import DenseCRF
from aigc.networks.resample import resize

REFINED = 96                                               # pixels of the longer side at which it is looked at
AROUND = 0.25                                              # of the box of a mask, looked at on each side of it
BAND = 0.15                                                # of its longer side, to both sides of its border, is unsure
SURE = 6.0                                                 # nats by which a mask is believed far from its border
# of `DenseCRF`: many iterations, so that what a picture says of one pixel reaches the next ones
FIELD: dict[str, Any] = {"smooth": 1.0, "spread": 1.5, "alike": 20.0, "reach": 4.0, "contrast": 0.15, "iterations": 20,
                         "normalised": True}


@torch.no_grad()
def refined(mask: Tensor, image: Tensor) -> Tensor:
    """A mask along edges of its picture: pixels near its border go where those like them are.

    Args:
        mask: what is to change, `(h, w)` bool.
        image: uint8 `(c, h, w)`.

    Returns:
        `(h, w)` bool; empty where nothing speaks for the mask.
    """
    if not mask.any():
        return mask
    place = tuple(_near(mask.any(axis), mask.shape[1 - axis]) for axis in (1, 0))
    said, seen = mask[place].float()[None, None], image[:, place[0], place[1]].float()[None] / 127.5 - 1
    whole = (said.shape[2], said.shape[3])
    scale = min(1.0, REFINED / max(whole))
    if scale < 1:
        small = (max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale)))
        said, seen = F.interpolate(said, small, mode="area"), resize(seen, small)
    field = DenseCRF(2, **FIELD).to(image.device)
    band = 2 * max(2, round(BAND * max(int(mask.any(axis).sum()) for axis in (0, 1)) * scale)) + 1
    sure = F.avg_pool2d(F.pad(said, (band // 2,) * 4, mode="replicate"), band, 1)  # less so near the border
    kept = field(SURE * torch.cat([sure, 1 - sure], dim=1), seen)[:, 1:]
    found = mask.clone()
    found[place] = F.interpolate(kept, whole, mode="bilinear")[0, 0] > 0.5 if scale < 1 else kept[0, 0] > 0.5
    return found


def _near(line: Tensor, length: int) -> slice:
    """The stretch of a side that a mask has pixels in, `line`, and what is around it."""
    places = line.nonzero()[:, 0]
    low, high = int(places[0]), int(places[-1]) + 1
    margin = 8 + round(AROUND * (high - low))
    return slice(max(0, low - margin), min(length, high + margin))
