"""CLIP score (Hessel et al. 2021): how well images match their captions, with a CLIP loaded by transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.networks.fingerprint import state_sha256


class CLIPScore:
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
        self.name = "clip"
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
