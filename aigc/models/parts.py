"""A trained run inside another: frozen, and kept in the later run's checkpoint, so that the earlier run may go.

An option such as `model.first_stage=<run>` names a run folder or a checkpoint. The later model loads it as a `Part`
and keeps, in its own hyper-parameters, the part's description in the path's place: its class, its hyper-parameters,
its fingerprint and how it was trained. The weights are in the later model's state dict. So whoever loads the later
checkpoint needs nothing else, and two runs on equal first stages are the same experiment, wherever these lie.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc.config.targets import locate
from aigc.errors import UserError
from aigc.models.capabilities import require
from aigc.models.checkpoints import find_checkpoint, load_family, read_checkpoint, run_of
from aigc.models.family import Family
from aigc.networks.fingerprint import state_sha256
from aigc.networks.ranks import sum_over_ranks
from aigc.runs.summary import read_summary
from aigc.wording import a

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
            sha256, trained = None, training_of(source, family)
        else:
            family, sha256, trained = rebuilt(source, option), source["sha256"], source.get("trained", {})
        for average, network in family.averages():
            for name in [name for name, child in family.named_children() if child is network]:
                setattr(family, name, average.network)      # stored once: torch.save keeps shared tensors shared
        for judge in family.judges():
            for name in [name for name, child in family.named_children() if child is judge]:
                setattr(family, name, None)
        self.family: Any = family.requires_grad_(False).eval()
        self.fingerprint: str = sha256 or state_sha256(family.state_dict())
        self.trained: dict[str, Any] = dict(trained)        # see `training_of`; older descriptions do not tell it

    def train(self, mode: bool = True) -> "Part":
        """It is trained: it stays in eval mode."""
        return super().train(False)

    def description(self) -> dict[str, Any]:
        """What is kept of it beside its weights: plain values, for hyper-parameters."""
        kind = type(self.family)
        return {"family": f"{kind.__module__}.{kind.__qualname__}", "sha256": self.fingerprint,
                "hyper_parameters": dict(self.family.hparams), "trained": self.trained}


def training_of(source: str, family: Family) -> dict[str, Any]:
    """How a run was trained: `images`, `seconds`, those of runs inside it too, and `data`, by name and fingerprint."""
    summary = read_summary(run_of(find_checkpoint(source)))
    data, inside = summary.get("data", {}), [part for part in family.children() if isinstance(part, Part)]
    seconds = summary.get("seconds", family.progress.seconds) + sum(p.trained.get("seconds", 0.0) for p in inside)
    return {"images": summary.get("images", family.progress.images), "seconds": round(seconds, 3),
            "data": {key: data[key] for key in ("name", "fingerprint") if key in data}}


def stages(model: Family) -> dict[str, dict[str, Any]]:
    """How the trained runs that a model stands on were trained, by their options: for its record."""
    parts = {name: getattr(model, name, None) for name in model.parts}
    return {name: {"family": part.description["family"].rpartition(".")[2] if isinstance(part, Borrowed)
                   else type(part.family).__name__, **part.trained}
            for name, part in parts.items() if isinstance(part, Part | Borrowed)}


def leaks(model: Family, data: Mapping[str, Any]) -> list[str]:
    """A sentence on each run inside that may have learned from what `data`, facts of a data module, hold out."""
    seen = {name: stage.get("data", {}) for name, stage in stages(model).items()}
    return [
        f"model.{name} was trained on another split of {data['name']}: images that are held out here may be among "
        "those it learned from, and scores on them too good; train it with this run's data.split_seed"
        for name, theirs in seen.items()
        if theirs.get("name") == data["name"] and theirs.get("fingerprint") != data["fingerprint"]
    ]


class Borrowed:
    """A trained run that a later one starts from: known by its identity alone, its weights are not kept.

    Raises:
        UserError: there is no such run, its family is another one, or it was trained on other data.
    """

    def __init__(
        self, source: Source, *, option: str, family: type[Family], without: Sequence[str], facts: Mapping[str, Any]
    ):
        """`option` of `model` names it; its options are taken over, except those in `without`; `facts` must be its."""
        self.borrowed: Any = None            # the family itself, until its weights have been copied
        if isinstance(source, str):
            self.borrowed = load_family(source)
            if not isinstance(self.borrowed, family) or option in self.borrowed.parts:
                raise UserError(f"'{source}' holds {a(type(self.borrowed).__name__)}: model.{option} needs a run of "
                                f"{family.__name__}")
            self.description = self._described(source, without)
            self._check(option, facts)
        elif isinstance(source.get("sha256"), str) and isinstance(source.get("options"), Mapping):
            self.description = dict(source)
        else:
            raise UserError(f"model.{option} is neither a run nor what a checkpoint keeps of one: give a run folder")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the averaged weights."""
        return self.description["sha256"]

    @property
    def trained(self) -> dict[str, Any]:
        """See `training_of`."""
        return dict(self.description.get("trained", {}))

    @property
    def options(self) -> dict[str, Any]:
        """The options that are taken over."""
        return dict(self.description["options"])

    def _described(self, source: str, without: Sequence[str]) -> dict[str, Any]:
        family = self.borrowed
        average = family.averages()[0][0].network
        return {"family": f"{type(family).__module__}.{type(family).__qualname__}", "run": Path(source).name,
                "sha256": state_sha256(average.state_dict()), "trained": training_of(source, family),
                "options": {name: value for name, value in family.hparams.items() if name not in without}}

    def _check(self, option: str, facts: Mapping[str, Any]) -> None:
        for name, now in facts.items():
            was = self.borrowed.hparams.get(name)
            if (list(was) if isinstance(was, tuple) else was) != now:
                shown = "" if name == "vocabulary" else f" {was}, here it is {now}"
                raise UserError(f"{name} of model.{option} is{shown or ' another'}: choose what it was trained on, or "
                                "train one on this")


def check_size(family: Family, channels: int, size: Sequence[int], option: str) -> None:
    """Refuses images that are not of the channels and size that a family was trained on.

    Raises:
        UserError: names both.
    """
    own = (family.hparams["channels"], *family.hparams["size"])
    if own != (channels, *size):
        was, now = (f"{h} x {w} images with {c} channel{'s' * (c > 1)}" for c, h, w in (own, (channels, *size)))
        raise UserError(f"model.{option} was trained on {was}, these are {now}: choose its data, or train one on "
                        "these")


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
    """The latents of a trained autoencoder as the space of another family: grids `(n, *shape)`, mean 0, variance 1.

    Their mean in each channel and one scale, 1 / standard deviation around these means, are measured in training on
    the first `images` images of all ranks and kept in the checkpoint (Rombach et al. 2022, appendix G, have the scale,
    of one batch). One scale for all channels: what the autoencoder made small carries little, and stays small; scaled
    up each for itself, its unused channels would be noise as large as the picture. A latent vector is a grid of 1 x 1.
    Encoding and decoding know no condition.
    """

    scale: Tensor                            # () 0 until it is measured
    mean: Tensor                             # (c, 1, 1)
    moments: Tensor                          # (1 + 2 c,) images measured, sums of means and of mean squares

    def __init__(
        self, source: Source, channels: int, size: Sequence[int], *, option: str = "first_stage", images: int = 4096
    ):
        """For images of `channels` and `size`, which must be those that it was trained on.

        Raises:
            UserError: see `Part`, or it was trained on images of another size, or encodes too slowly.
        """
        super().__init__(source, option=option, needs=("encode", "decode"))
        if self.family.encodes_by_search:
            raise UserError(f"model.{option} holds {a(type(self.family).__name__)}, which searches for the latents of "
                            "each image, for seconds: give an autoencoder's run (model=autoencoder)")
        self.family.lowered = True           # bf16 costs latents of deviation 1 an error of 0.005, and half as long
        check_size(self.family, channels, size, option)
        with torch.no_grad():
            made = self.family.encode(torch.zeros(1, channels, *size)).shape[1:]
        self.shape = (*made, 1, 1)[:3]       # of latents
        self._shape = tuple(made)            # as the autoencoder has them
        self.images = images
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(self.shape[0], 1, 1))
        self.register_buffer("moments", torch.zeros(1 + 2 * self.shape[0]))
        self._measuring = True

    @torch.no_grad()
    def encode(self, images: Tensor, *, measure: bool = False) -> Tensor:
        """Latents `(n, *shape)` of images in [-1, 1]; with `measure`, mean and scale take them into account."""
        latents = self.family.encode(images).float().view(-1, *self.shape)
        if measure and self._measuring:
            self._measure(latents)
        return (latents - self.mean) * self.factor()

    def decode(self, latents: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of latents `(n, *shape)`."""
        return self.family.decode((latents / self.factor() + self.mean).view(-1, *self._shape))

    def factor(self) -> Tensor:
        """What centred latents are multiplied by: 1 until it is measured."""
        return torch.where(self.scale > 0, self.scale, 1.0)

    def _measure(self, latents: Tensor) -> None:
        self._measuring = float(self.moments[0]) < self.images         # asked of the device no longer than needed
        if not self._measuring:
            return
        count = latents.new_tensor([len(latents)])
        new = torch.cat([count, latents.mean((2, 3)).sum(0), latents.square().mean((2, 3)).sum(0)])
        self.moments += sum_over_ranks(new)
        mean, square = (self.moments[1:] / self.moments[0]).chunk(2)
        self.mean.copy_(mean[:, None, None])
        self.scale.copy_((square - mean**2).mean().clamp(min=1e-8).rsqrt())

    def _load_from_state_dict(self, state_dict, prefix, *rest):  # type: ignore[no-untyped-def]
        """Older checkpoints have a scale alone, of the first batch: they keep it, and no mean."""
        if f"{prefix}scale" in state_dict and f"{prefix}mean" not in state_dict:
            state_dict[f"{prefix}mean"] = torch.zeros_like(self.mean)
            state_dict[f"{prefix}moments"] = torch.zeros_like(self.moments)
            if state_dict[f"{prefix}scale"] > 0:
                state_dict[f"{prefix}moments"][0] = self.images
        super()._load_from_state_dict(state_dict, prefix, *rest)


class CodeSpace(Part):
    """The codes of a trained tokenizer as the space of another family: `shape` (rows, columns) numbers an image."""

    def __init__(self, source: Source, channels: int, size: Sequence[int], *, option: str = "tokenizer"):
        """For images of `channels` and `size`, which must be those that it was trained on.

        Raises:
            UserError: see `Part`, or it was trained on images of another size.
        """
        super().__init__(source, option=option, needs=("tokenize", "decode"))
        check_size(self.family, channels, size, option)
        rows, columns = self.family.tokenize(torch.zeros(1, channels, *size)).shape[1:]
        self.shape = (int(rows), int(columns))
        self.codes = int(self.family.codes)  # how many there are

    @torch.no_grad()
    def tokenize(self, images: Tensor) -> Tensor:
        """Codes `(n, rows * columns)` int64, row by row, of images in [-1, 1]."""
        return self.family.tokenize(images).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images `(n, c, h, w)` in [-1, 1] of codes `(n, rows * columns)`."""
        return self.family.decode(self.family.lookup(codes.view(-1, *self.shape)))
