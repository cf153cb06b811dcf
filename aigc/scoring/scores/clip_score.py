"""CLIP score (Hessel et al. 2021): how well images match their captions, as a CLIP of transformers or a run sees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.models.capabilities import require
from aigc.models.checkpoints import load_family
from aigc.networks.fingerprint import state_sha256


def open_judge(clip: str, device: torch.device | str = "cpu", *, option: str = "clip") -> "Judge":
    """What `clip` names: a run folder or checkpoint whose family scores texts, else a CLIP of transformers.

    Raises:
        UserError: it is missing, or a run that scores no texts.
    """
    path = Path(clip).expanduser()
    ours = path.is_file() or (path / "checkpoints").is_dir()
    return RunJudge(clip, device, option=option) if ours else CLIPScore(clip, device)


class Judge:
    """A network that scores images by their captions."""

    name = "clip"
    sha256: str                                     # of the weights
    resizer: str                                    # how images are brought to its size

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """100 max(cos(image, text), 0), `(n,)` float64, of uint8 images `(n, c, h, w)` with their captions."""
        raise TypeError(f"{type(self).__name__} must define __call__()")

    def saw(self, captions: Tensor) -> float | None:
        """The share of captions, numbers `(n,)`, that it was trained on; None: it is not known what that was."""
        return None

    def facts(self, captions: Tensor) -> dict[str, Any]:
        """What a protocol says of a score of images with these captions."""
        share = self.saw(captions)
        return {"network": self.name, "network_sha256": self.sha256, "resizer": self.resizer,
                **({} if share is None else {"judge_saw_captions": round(share, 3)})}

    def remark(self, captions: Tensor) -> str | None:
        """Why its scores of these captions say little, or None."""
        share = self.saw(captions)
        if not share:
            return None
        return (f"the CLIP of clip_score was trained on {share:.0%} of the captions that it judges: it may know their "
                "training pictures by heart, which flatters a model that does; judge by one trained on other captions")


class RunJudge(Judge):
    """A trained run whose family scores texts.

    Args:
        clip: a run folder or a checkpoint.
        device: where it computes.
        option: that named it, for messages.

    Raises:
        UserError: there is none, or it scores no texts.
    """

    def __init__(self, clip: str, device: torch.device | str = "cpu", *, option: str = "clip"):
        self.family: Any = load_family(clip, device=device)
        require(self.family, "score_text", run=clip, wanted=f"{option}=")
        self.family.requires_grad_(False)
        self.sha256 = state_sha256(self.family.state_dict())
        height, width = self.family.hparams.size
        self.resizer = f"{height} x {width}, bicubic"

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """See `Judge`; long captions are truncated."""
        fit = self.family.score_text(images.float() / 127.5 - 1, list(texts))
        return 100 * fit.clamp_min(0).double().cpu()

    def saw(self, captions: Tensor) -> float | None:
        """The share of captions that are among those of its training."""
        known = self.family.learned_captions
        return None if known is None else torch.isin(captions.cpu(), known.cpu()).double().mean().item()


class CLIPScore(Judge):
    """100 max(cos(image, text), 0) per image, as in torchmetrics (whose own fails with transformers 5).

    Args:
        clip: a local folder or a hub name, e.g. openai/clip-vit-base-patch16.
        device: where it computes.

    Raises:
        UserError: it is missing, or transformers is not installed.
    """

    def __init__(self, clip: str, device: torch.device | str = "cpu"):
        try:
            from transformers import CLIPModel, CLIPProcessor

            self.model = CLIPModel.from_pretrained(clip).float().eval().requires_grad_(False).to(device)
            self.processor = CLIPProcessor.from_pretrained(clip)
        except ImportError as error:
            raise UserError(f"clip={clip} needs a package that is not installed ({error.name}): "
                            "pip install 'aigc[t5]'") from error
        except Exception as error:  # transformers passes on any error of download, parser or network
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")[:200]
            raise UserError(f"clip={clip} cannot be loaded ({reason}): give the folder or the name of a CLIP that "
                            "transformers reads") from error
        self.sha256 = state_sha256(self.model.state_dict())
        size = self.processor.image_processor.crop_size
        self.resizer = f"{size['height']} x {size['width']}, CLIP's own"

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores `(n,)` float64 of uint8 images `(n, c, h, w)` with their captions; long ones are truncated."""
        shown = list(images.expand(-1, 3, -1, -1).cpu())
        given = self.processor(text=list(texts), images=shown, return_tensors="pt", padding=True, truncation=True)
        seen = self.model(**given.to(self.model.device))
        return 100 * torch.cosine_similarity(seen.image_embeds, seen.text_embeds).clamp_min(0).double().cpu()
