"""How well a family that scores texts finds an image's caption, a caption's image, and the class of an image.

Retrieval is counted by caption: captions of small data sets repeat, and an image fits all that say the same. So images
are sorted into pools in which every caption is there once, and each image and each caption looks for the other in its
pool: chance is one in `POOL`. The last, incomplete pools are left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc.conditions.rewording import caption_numbers
from aigc.images.streams import items
from aigc.scoring.devices import ALONE, Devices

POOL = 100                          # different captions that are looked through at once; fewer if there are fewer
LOOKED = 2000                       # most images of a split
DEPTHS = (1, 5)                     # R@1 and R@5: found among so many


def recalls(fit: Tensor) -> dict[str, float]:
    """R@1 and R@5 in both directions, of how well image i fits caption j, `(n, n)`; image i belongs to caption i.

    What fits as well as the right one counts as found before it, so that who tells nothing apart finds nothing.
    """
    own = fit.diagonal()
    better = {"image_to_text": (fit >= own[:, None]).sum(1), "text_to_image": (fit >= own[None]).sum(0)}
    return {f"{way}_r{k}": (places <= k).double().mean().item() for way, places in better.items() for k in DEPTHS}


def pools(captions: Tensor, size: int = POOL) -> list[Tensor]:
    """The rows of captions `(n,)`, given as numbers, in groups in which each is there once.

    Each group holds `size` captions, or all different ones where there are fewer; incomplete groups are left out.
    """
    size = min(size, len(captions.unique()))
    groups: list[dict[int, int]] = []                    # row by caption
    for row, caption in enumerate(captions.tolist()):
        group = next((one for one in groups if len(one) < size and caption not in one), None)
        if group is None:
            group = {}
            groups.append(group)
        group[caption] = row
    return [torch.tensor(list(group.values())) for group in groups if len(group) == size]


@torch.no_grad()
def retrieval(
    family: Any, data: Any, split: str, *, batch_size: int, devices: Devices = ALONE, most: int = LOOKED
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores on the first images of a split, on all devices, and how they were taken; complete on the first.

    `retrieval/<split>/image_to_text_r1` and its like, means over pools; `zero_shot/<split>/accuracy` for data with
    classes, which are told apart by the family's prompts.
    """
    n = min(data.count(split), most)
    numbers: list[int] = []
    parts: list[dict[str, Tensor]] = []
    for mine, batch in items(data, split, n, batch_size=batch_size, **devices.share):
        images = data.prepare(batch, family.device)["image"]
        part = {"seen": family.embed_images(images), "read": family.embed_texts(batch["text"]),
                "caption": caption_numbers(batch["text"])}
        if "label" in batch:
            part["label"] = batch["label"]
        parts.append({name: value.cpu() for name, value in part.items()})
        numbers += mine
    table = devices.collect(numbers, parts, n)
    if not devices.first:
        return {}, {}
    groups = pools(table["caption"])
    found = [recalls(table["seen"][rows] @ table["read"][rows].T) for rows in groups]
    scores = {f"retrieval/{split}/{name}": sum(one[name] for one in found) / len(found) for name in found[0]}
    facts = {"data": data.name, "data_fingerprint": data.fingerprint, "split": split, "num_samples": n,
             "captions": len(groups[0]), "pools": len(groups)}
    if "label" in table and data.classes:
        names = [str(name) for name in data.class_names or range(data.classes)]
        told = (table["seen"] @ family.embed_classes(names).cpu().T).argmax(1)
        scores[f"zero_shot/{split}/accuracy"] = (told == table["label"]).double().mean().item()
        facts["prompts"] = list(family.hparams.prompts)
    return scores, facts


def splits_of(data: Any, held: Sequence[str]) -> list[str]:
    """The splits that are looked at: those `held` out that are there, and `heldout` combinations."""
    return [split for split in dict.fromkeys((*held, "heldout")) if split in data.splits and data.count(split) > 1]

