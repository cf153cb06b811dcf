"""The Inception-v3 of the original FID, KID and IS papers, through torch-fidelity's extractor.

Its weights (TensorFlow's of 2015-12-05, converted) are downloaded on first use or read from a local file. Only scores
with exactly these weights are called fid, kid and is; with any others they are fd_inception and so on.
"""

import hashlib
import os
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aigc.errors import UserError, choices
from aigc.scoring.networks.features import FeatureNetwork

PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = "2048"             # Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID)
LOGITS = "logits_unbiased"    # Salimans et al. 2016 (IS)


PREPROCESSINGS = {  # name: resizer as stated in protocols
    "torch_fidelity": "299 x 299, bilinear on TensorFlow 1's grid (torch-fidelity)",
    "pytorch_fid": "299 x 299, bilinear, half-pixel grid (pytorch-fid)",
}
SIDE = 299


class InceptionV3(FeatureNetwork):
    """2048 pooled features and 1008 logits without bias.

    The network is torch-fidelity's; normalization is folded into the convolutions, which changes features by rounding
    only and saves a fifth of the time.

    Args:
        weights: a local file of weights; None: torch.hub's cache, filled by a download the first time.
        preprocessing: how images are resized and scaled: torch_fidelity, as in the original papers, or pytorch_fid.

    Raises:
        UserError: there is no such file, it holds no Inception-v3, or the download fails.
    """

    name = "inception"
    num_features = 2048
    task = "ImageNet classes"

    def __init__(self, weights: str | os.PathLike | None = None, *, preprocessing: str = "torch_fidelity"):
        from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

        super().__init__()
        if preprocessing not in PREPROCESSINGS:
            raise UserError(
                f"metrics.preprocessing '{preprocessing}' is unknown: {choices(preprocessing, PREPROCESSINGS)}"
            )
        self.preprocessing = preprocessing
        self.resizer = PREPROCESSINGS[preprocessing]
        path = _published() if weights is None else Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"metrics.weights={path} is not a file: give Inception-v3's weights, torch-fidelity's "
                            "format")
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would load any pickle
            network = FeatureExtractorInceptionV3("inception-v3-compat", [FEATURES, LOGITS], str(path))
        except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError) as error:
            raise UserError(
                f"metrics.weights={path} does not hold Inception-v3's weights in torch-fidelity's format: give its "
                "file weights-inception-2015-12-05-6726825d.pth, or leave metrics.weights out to download it"
            ) from error
        if self.sha256 == PUBLISHED_SHA256:
            self.names = {"fd": "fid", "kd": "kid", "is": "is"}
        for block in network.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        self.body = nn.Sequential(*(part for name, part in network.named_children() if name not in ("AvgPool", "fc")))
        self.logits = network.fc.weight
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 2048)` and logits `(n, 1008)` of uint8 images; grey ones are shown as RGB."""
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"Inception-v3 sees grey or RGB images, not {images.shape[1]} channels: use metrics=classifier"
            )
        x = images.float()
        if self.preprocessing == "torch_fidelity":
            x = (_tensorflow_grid(x) - 128) / 128
        else:
            x = 2 * F.interpolate(x / 255, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        features = self.body(x).mean((2, 3))
        return features, features @ self.logits.T


def _tensorflow_grid(x: Tensor) -> Tensor:
    """Images at 299 x 299 as TensorFlow 1 resizes them: bilinear, pixel k at k * (old size / 299), as two products."""

    def weights(size: int) -> Tensor:
        place = torch.arange(SIDE, device=x.device) * torch.tensor(size / SIDE, device=x.device)
        low = place.long()
        rest = (place - low)[:, None]
        one = torch.eye(size, device=x.device)
        return one[low] * (1 - rest) + one[(low + 1).clamp_max(size - 1)] * rest

    return weights(x.shape[2]) @ x @ weights(x.shape[3]).T


def _published() -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PUBLISHED_SHA256, progress=False)
        except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), full disk; a wrong hash
            reason = str(getattr(error, "reason", error)).splitlines()[0]
            raise UserError(
                f"cannot download Inception-v3's weights ({reason}): give a local file with metrics.weights=<file>, "
                "or use metrics=classifier"
            ) from error
    return path
