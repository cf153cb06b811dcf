"""A trained run inside another: frozen, and kept in the later run's checkpoint, so that the earlier run may go.

An option such as `model.first_stage=<run>` names a run folder or a checkpoint. The later model loads it as a `Part`
and keeps, in its own hyper-parameters, the part's description in the path's place: its class, its hyper-parameters and
its fingerprint. The weights are in the later model's state dict. So whoever loads the later checkpoint needs nothing
else, and two runs on equal first stages are the same experiment, wherever these lie.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc.config.targets import locate
from aigc.errors import UserError
from aigc.models.capabilities import require
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.models.family import Family
from aigc.networks.fingerprint import state_sha256

Source = str | Mapping[str, Any]         # a run folder or checkpoint, or a description kept in a checkpoint


class Part(nn.Module):
    """A trained family, frozen, in eval mode, outside of optimizers and averages.

    Of its networks only the averaged ones are kept, which are those that it is used with, and no discriminators.

    Raises:
        UserError: there is no such run, or its family cannot do what it is needed for.
    """

    def __init__(self, source: Source, *, option: str, needs: Sequence[str]):
        """`option` of `model` names it; `needs` are the capabilities that it must have."""
        super().__init__()
        if isinstance(source, str):
            family: Family = load_family(source)
            for capability in needs:
                require(family, capability, run=source, wanted=f"model.{option}")
            sha256 = None
        else:
            family, sha256 = rebuilt(source, option), source["sha256"]
        for average, network in family.averages():
            for name in [name for name, child in family.named_children() if child is network]:
                setattr(family, name, average.network)      # stored once: torch.save keeps shared tensors shared
        for judge in family.judges():
            for name in [name for name, child in family.named_children() if child is judge]:
                setattr(family, name, None)
        self.family: Any = family.requires_grad_(False).eval()
        self.fingerprint: str = sha256 or state_sha256(family.state_dict())

    def train(self, mode: bool = True) -> "Part":
        """It is trained: it stays in eval mode."""
        return super().train(False)

    def description(self) -> dict[str, Any]:
        """What is kept of it beside its weights: plain values, for hyper-parameters."""
        kind = type(self.family)
        return {"family": f"{kind.__module__}.{kind.__qualname__}", "sha256": self.fingerprint,
                "hyper_parameters": dict(self.family.hparams)}


def rebuilt(description: Mapping[str, Any], option: str) -> Family:
    """The family of a description, without its weights.

    Raises:
        UserError: its class is not one that a checkpoint may name.
    """
    if not isinstance(description.get("sha256"), str) or not isinstance(description.get("hyper_parameters"), Mapping):
        raise UserError(f"model.{option} is neither a run nor what a checkpoint keeps of one: give a run folder")
    kind: Any = locate(description.get("family"), "model", key=f"model.{option}: family")
    return kind(**description["hyper_parameters"])


def parts_in(family: type[Family], checkpoint: Path) -> dict[str, Any]:
    """What `checkpoint` keeps of the trained runs inside its model, by their options: a resumed run needs no other.

    Raises:
        UserError: it cannot be read.
    """
    if not family.parts:
        return {}
    kept = read_checkpoint(checkpoint)["hyper_parameters"]
    return {name: kept[name] for name in family.parts if isinstance(kept.get(name), Mapping)}


class LatentSpace(Part):
    """The latents of a trained autoencoder as the space of another family: a grid `(n, *shape)` of unit variance.

    They are scaled by 1 / std of the first training batch (Rombach et al. 2022, appendix G). A latent vector is a grid
    of 1 x 1. Encoding and decoding know no condition.
    """

    scale: Tensor                            # () 0 until it is measured

    def __init__(self, source: Source, channels: int, size: Sequence[int], *, option: str = "first_stage"):
        """For images of `channels` and `size`, which must be those that it was trained on.

        Raises:
            UserError: see `Part`, or it was trained on images of another size.
        """
        super().__init__(source, option=option, needs=("encode", "decode"))
        own = (self.family.hparams["channels"], *self.family.hparams["size"])
        if own != (channels, *size):
            was, now = (f"{h} x {w} images with {c} channel{'s' * (c > 1)}" for c, h, w in (own, (channels, *size)))
            raise UserError(f"model.{option} was trained on {was}, these are {now}: choose its data, or train one on "
                            "these")
        with torch.no_grad():
            made = self.family.encode(torch.zeros(1, channels, *size)).shape[1:]
        self.shape = (*made, 1, 1)[:3]       # of latents
        self._shape = tuple(made)            # as the autoencoder has them
        self.register_buffer("scale", torch.zeros(()))
        self._measured = False

    @torch.no_grad()
    def encode(self, images: Tensor, *, measure: bool = False) -> Tensor:
        """Latents `(n, *shape)` of images in [-1, 1]; with `measure` the first batch, of all ranks, sets the scale."""
        latents = self.family.encode(images).float().view(-1, *self.shape)
        if measure and not self._measured:
            self._measure(latents)
        return latents * self.factor()

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of latents `(n, *shape)`."""
        return self.family.decode((latents / self.factor()).view(-1, *self._shape))

    def factor(self) -> Tensor:
        """What latents are multiplied by: 1 until it is measured."""
        return torch.where(self.scale > 0, self.scale, 1.0)

    def _measure(self, latents: Tensor) -> None:
        self._measured = True
        if self.scale > 0:                   # in the checkpoint: a resumed run keeps its own
            return
        sums = torch.stack([latents.new_tensor(latents.numel()), latents.sum(), latents.square().sum()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        count, total, squares = sums
        self.scale.copy_((squares / count - (total / count) ** 2).clamp(min=1e-8).rsqrt())
