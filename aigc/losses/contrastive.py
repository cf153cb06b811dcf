"""Contrastive losses: PatchNCE of translations (Park et al. 2020), and CLIP's between images and texts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.networks.ranks import gather_over_ranks


def patch_nce(query: Tensor, key: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy, in nats, of finding each patch's place among all places of its image: `(n,)`, means per image.

    A patch of a translation should identify the source patch that it came from.

    `query` (of the translation) and `key` (of the source, detached here) are unit vectors `(n, places, width)` at the
    same places. Equation 3, with negatives from the same image only, in float32.
    """
    assert query.shape == key.shape, f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    with torch.autocast(query.device.type, enabled=False):
        logits = query.float() @ key.detach().float().transpose(1, 2) / temperature
        own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        return F.cross_entropy(logits.transpose(1, 2), own, reduction="none").mean(1)


def image_text_nce(
    images: Tensor, texts: Tensor, captions: Tensor, *, scale: Tensor | float, gather: bool = False
) -> Tensor:
    """Symmetric cross-entropy, in nats, of finding each image's text and each text's image (Radford et al. 2021).

    Images and texts that have the same caption belong together: the target of each is spread evenly over all that fit
    it, where figure 3 of the paper knows one only, and would call the others wrong. Without repeated captions it is
    the paper's loss.

    Args:
        images: unit vectors `(n, width)`.
        texts: unit vectors `(n, width)` of their captions.
        captions: a number `(n,)` int64 for each caption, equal for equal ones.
        scale: of the cosines, the inverse temperature.
        gather: whether those of all ranks are looked through; the mean of the losses of all ranks is then that of one
            process with all images, and so are its gradients.

    Returns:
        The mean over images and texts of this rank, in float32.
    """
    with torch.autocast(images.device.type, enabled=False):
        images, texts = images.float(), texts.float()
        others = gather_over_ranks if gather else (lambda x: x)
        same = (captions[:, None] == others(captions)).float()
        targets = same / same.sum(1, keepdim=True)
        to_texts = F.cross_entropy(scale * images @ others(texts).T, targets)
        to_images = F.cross_entropy(scale * texts @ others(images).T, targets)
        return (to_texts + to_images) / 2
