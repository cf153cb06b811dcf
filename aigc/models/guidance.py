"""What trained runs beside a diffusion run bend its samples: a classifier towards labels, a CLIP towards texts.

Read and checked here for all verbs. The runs are used at sampling time alone: they are no part of any checkpoint.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.config.functions import options_of
from aigc.data.decode import decode
from aigc.diffusion.classifier_guidance import ClassifierGuide
from aigc.diffusion.clip_guidance import CLIPGuide
from aigc.diffusion.guides import GUIDES, SYMMETRIES, Guide, listed
from aigc.errors import UserError, choices
from aigc.models.capabilities import require
from aigc.models.checkpoints import load_family
from aigc.models.conditions_asked import labels_among, named, text_encoder
from aigc.models.family import Family
from aigc.models.prompts import Joint, joint_prompts, written
from aigc.networks.fingerprint import state_sha256

SCALES = {"classifier": "classifier_guidance", "clip": "clip_guidance"}
KEYS = (*SCALES, *SCALES.values(), "secondary", "init", "skip", "symmetry")
Made = Callable[[Sequence[int]], Guide]                    # the guide of some images, by their numbers


@dataclass
class Guidance:
    """The guides that were asked for n images; `of` gives the options of `sample` for some of them."""

    bent: list[Made] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # of the guides
    idle: list[str] = field(default_factory=list)          # options of guides whose scale is 0
    recipe: Any = None                                     # the guides of the run's recipe
    words: list[dict[str, str]] | None = None              # label or text of each image, where a guide decides it
    notes: list[str] = field(default_factory=list)
    labels: Tensor | None = None                           # (n,) int64, where a classifier decides them
    facts: dict[str, Any] = field(default_factory=dict)    # for records: which runs guide, and how much

    def __bool__(self) -> bool:
        return bool(self.bent or self.options)

    def scaled(self, typed: Mapping[str, Any], scale: str, guide: Any) -> bool:
        """Whether the scale of a guide is not 0; where it is given, it is an option."""
        if typed.get(scale) == 0:
            self.idle += options_of(guide.__call__)
        elif typed.get(scale) is not None:
            self.options[scale] = float(typed[scale])
        return typed.get(scale) != 0

    def left(self, family: Family, typed: Mapping[str, Any]) -> tuple[Any, Any]:
        """The label and the text that are left for the family itself: those that it was trained on.

        Of several texts for an image it reads the one with the largest weight.
        """
        label, text = typed.get("label"), typed.get("text")
        if typed.get("classifier") is not None and family.condition != "label":
            label = None
        if typed.get("clip") is not None and text is not None:
            text = [max(one, key=lambda part: part[1])[0] for one in joint_prompts(text)]
            text = text if family.condition == "text" else None
        return label, text

    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of each run that guides, by its option."""
        return {name: told["sha256"] for name, told in self.facts.items()}

    def of(self, numbers: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` of `sample` and those of the guides, for images 0 to n-1 by their numbers."""
        made = {**{name: value for name, value in options.items() if name not in self.idle}, **self.options}
        if not self.bent:
            return made
        asked = listed(made.pop("guide", self.recipe))
        return {**made, "guide": [*asked, *(make(numbers) for make in self.bent)]}


def guidance_asked(family: Family, typed: Mapping[str, Any], n: int, *, run: object) -> Guidance:
    """What is asked of trained runs beside `family`, for n images.

    Args:
        family: the run that samples.
        typed: the options of `KEYS`, and `label` and `text`.
        n: number of images.
        run: where the family came from, for messages.

    Raises:
        UserError: a run cannot do what it is needed for, or does not fit the family; labels or texts are missing.
    """
    found = Guidance()
    wanted = [key for key in KEYS if typed.get(key) is not None]
    if not wanted:
        return found
    require(family, "denoise", run=run, wanted=f"{wanted[0]}=")
    found.recipe = family.hparams.get("sampler", {}).get("guide")
    for name, scale in SCALES.items():
        if typed.get(scale) is not None and typed.get(name) is None:
            raise UserError(f"{scale}={typed[scale]} needs the run that guides: give {name}=<run>")
    if typed.get("secondary") is not None and typed.get("clip") is None:
        raise UserError("secondary= takes gradients for clip=, which is not given: give clip=<run>, or leave it out")
    if typed.get("classifier") is not None:
        _towards_labels(found, family, typed, n)
    if typed.get("clip") is not None:
        _towards_texts(found, family, typed, n)
    early = getattr(family, "early", None) is not None
    if found.bent and early and "autoguidance" not in typed.get("options", {}):
        found.options["autoguidance"] = 1.0                # it leads back to where the run went by itself
    if (symmetry := typed.get("symmetry")) is not None:
        if symmetry not in SYMMETRIES:
            raise UserError(f"There is no symmetry '{symmetry}': {choices(symmetry, SYMMETRIES)}")
        found.bent.append(lambda numbers: GUIDES["symmetry"])
        found.options["symmetry"] = symmetry
    if typed.get("init") is not None:
        found.options["init"] = image_of(typed["init"], family)
    if typed.get("skip") is not None:
        found.options["skip"] = typed["skip"]
    return found


def image_of(init: str, family: Family) -> Tensor:
    """The image `(c, h, w)` in [-1, 1] in a file, at the family's size: cropped around its middle.

    Raises:
        UserError: it cannot be read.
    """
    path, size = Path(init).expanduser(), tuple(family.hparams["size"])
    try:
        pixels = decode(path.read_bytes(), size=size, channels=family.hparams["channels"])
    except Exception as error:                             # Pillow's decoders raise what they like
        raise UserError(f"init='{init}' cannot be read as a picture ({error}): give another file") from error
    return pixels.float() / 127.5 - 1


def opened(found: Guidance, family: Family, run: str, capability: str, option: str) -> Any:
    """A run that guides, frozen, on the family's device, and noted among the facts.

    Raises:
        UserError: it has not this capability.
    """
    beside = load_family(run, device=family.device)
    require(beside, capability, run=run, wanted=f"{option}=")
    found.facts[option] = {"run": str(run), "sha256": state_sha256(beside.state_dict())}
    return beside.requires_grad_(False).eval()


def decoder_of(family: Any) -> Callable[[Tensor], Tensor] | None:
    """What turns the family's latents into images, differentiably; None where it samples pixels."""
    first = getattr(family, "first_stage", None)
    return None if first is None else first.decode


def _towards_labels(found: Guidance, family: Family, typed: Mapping[str, Any], n: int) -> None:
    beside = opened(found, family, typed["classifier"], "classify", "classifier")
    mine, its = ((one.hparams["channels"], *one.hparams["size"]) for one in (family, beside))
    if mine != its:
        raise UserError(f"classifier={typed['classifier']} tells images of {_shape(its)} apart, and this run makes "
                        f"images of {_shape(mine)}: train a classifier on the run's data")
    labels = labels_among(typed.get("label"), int(beside.hparams["classes"]), beside.class_names, n)
    found.words, found.labels = [{"label": name} for name in named(labels, beside.class_names) or []], labels
    if not found.scaled(typed, "classifier_guidance", ClassifierGuide):
        return
    decoded = decoder_of(family)
    found.bent.append(lambda numbers: ClassifierGuide(beside.classify, labels[list(numbers)], decode=decoded))


def _towards_texts(found: Guidance, family: Family, typed: Mapping[str, Any], n: int) -> None:
    beside = opened(found, family, typed["clip"], "score_text", "clip")
    if typed.get("text") is None:
        raise UserError(f"clip={typed['clip']} guides images to a text, and there is none: give text=<prompt>")
    prompts = joint_prompts(typed["text"])
    every = [prompts[k % len(prompts)] for k in range(n)]
    labels: list[dict[str, str]] = found.words or [{} for _ in every]
    found.words = [{**label, "text": written(one)} for label, one in zip(labels, every, strict=True)]
    different = list(dict.fromkeys(text for one in prompts for text, _ in one))
    found.notes += text_encoder(beside).warnings(different)
    with torch.no_grad():
        vectors = dict(zip(different, beside.embed_texts(different).float(), strict=True))    # once a prompt
    targets, weights = targets_of(every, vectors)
    if not found.scaled(typed, "clip_guidance", CLIPGuide):
        return
    secondary = None
    if typed.get("secondary") is not None:
        smaller = opened(found, family, typed["secondary"], "denoise", "secondary")
        mine, its = _space(family), _space(smaller)
        if mine != its:
            raise UserError(f"secondary={typed['secondary']} denoises {_shape(its[:3])}, and this run "
                            f"{_shape(mine[:3])}: give a run on the same data, in pixels or latents alike")
        secondary = smaller.denoise
    decoded = decoder_of(family)

    def make(numbers: Sequence[int]) -> Guide:
        rows = list(numbers)
        return CLIPGuide(beside.embed_images, targets[rows], weights[rows], decode=decoded, secondary=secondary)

    found.bent.append(make)


def targets_of(every: Sequence[Joint], vectors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The vectors `(n, p, d)` of n images' prompts, and their weights `(n, p)`, 0 where an image has fewer than p.

    Weights are divided by the size of their sum, as Disco Diffusion does.
    """
    most = max(len(one) for one in every)
    length = next(iter(vectors.values()))
    targets, weights = length.new_zeros(len(every), most, len(length)), length.new_zeros(len(every), most)
    for k, one in enumerate(every):
        total = abs(sum(weight for _, weight in one))
        for p, (text, weight) in enumerate(one):
            targets[k, p], weights[k, p] = vectors[text], weight / total
    return targets, weights


def _space(family: Any) -> tuple[Any, ...]:
    """What a run denoises: shape, and whether it is pixels."""
    return (*family.shape, decoder_of(family) is None)


def _shape(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height} x {width} with {channels} channel{'s' * (channels > 1)}"
