"""DINOv2 (Oquab et al. 2023) as a feature network, through timm, with weights from a local file.

Fréchet distances on its features agree better with human judgement than on Inception-v3's (Stein et al. 2023,
"Exposing flaws of generative model evaluation metrics"). The file is Meta's dinov2_vit{s,b,l,g}14[_reg4]_pretrain.pth
or timm's file of the same network; its shapes show which network it holds.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.errors import UserError
from aigc.networks.fingerprint import state_sha256
from aigc.networks.weights import read_weights
from aigc.scoring.networks.features import FeatureNetwork

SIDE = 224                                                             # 16 x 16 patches of 14 pixels
SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}      # by token width
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)   # of ImageNet, RGB in 0..255
PUBLISHED = "dinov2_vit?14*_pretrain.pth"                              # Meta's files in torch.hub's folder


class DINOv2(FeatureNetwork):
    """The class token after the last layer: 384, 768, 1024 or 1536 features; no logits.

    Args:
        weights: a local file of weights; None: the largest in torch.hub's folder. Nothing is downloaded.

    Raises:
        UserError: there is no such file, it holds no DINOv2, or timm is not installed.
    """

    name = "dinov2"
    task = "none (self-supervised)"
    classifies = False
    resizer = f"{SIDE} x {SIDE}, bicubic, antialiased"
    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: str | None = None):
        super().__init__()
        try:
            import timm
            from timm.models.vision_transformer import checkpoint_filter_fn
        except ImportError as error:
            raise UserError("metrics=dinov2 needs a package that is not installed (timm): "
                            "pip install 'aigc[dino]'") from error
        path = _at_hand() if weights is None else Path(weights).expanduser()
        state = read_weights(path, "DINOv2")
        width = state["cls_token"].shape[-1] if "cls_token" in state else 0
        registers = "_reg4" if {"register_tokens", "reg_token"} & set(state) else ""
        name = f"vit_{SIZES.get(width)}_patch14{registers}_dinov2"
        try:
            self.network = timm.create_model(name, pretrained=False, num_classes=0, img_size=SIDE)
            self.network.load_state_dict(checkpoint_filter_fn(state, self.network))  # type: ignore[arg-type]
        except (RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"metrics.weights={path} does not hold DINOv2's weights: give Meta's "
                            "dinov2_vits14_pretrain.pth, or timm's file of the same network") from error
        self.num_features = width
        self.sha256 = state_sha256(self.network.state_dict())
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, width)` and empty logits `(n, 0)` of uint8 images; grey ones are shown as RGB."""
        if images.shape[1] not in (1, 3):
            raise UserError(f"DINOv2 sees grey or RGB images, not {images.shape[1]} channels: use metrics=classifier")
        x = images.expand(-1, 3, -1, -1).float()
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
        features = self.network((x - self.mean) / self.deviation)
        return features, features[:, :0]


def _at_hand() -> Path:
    """The largest of Meta's files that torch.hub has downloaded before."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob(PUBLISHED), key=lambda path: path.stat().st_size)
    if not found:
        raise UserError(f"metrics=dinov2 needs weights, and torch.hub's folder {folder} holds no {PUBLISHED}: give a "
                        "file with metrics.weights=<file>")
    return found[-1]
