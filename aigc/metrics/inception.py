"""The Inception-v3 of the original FID, KID and IS papers, through torch-fidelity's extractor.

Its weights (TensorFlow's of 2015-12-05, converted) are downloaded on first use or read from a local file. Only with
these very weights are the scores called fid, kid and is; with any other they are fd_inception and so on.
"""

import hashlib
import os
import pickle
from pathlib import Path

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.metrics.features import FeatureNetwork

PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = "2048"             # Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID)
LOGITS = "logits_unbiased"    # Salimans et al. 2016 (IS)


class InceptionV3(FeatureNetwork):
    """2048 pooled features and 1008 logits without bias.

    Args:
        weights: a local file of weights, or None: torch.hub's cache, filled by a download the first time.

    Raises:
        UserError: there is no such file, it holds no Inception-v3, or the download fails.
    """

    name = "inception"
    num_features = 2048
    resizer = "299 x 299, bilinear on TensorFlow 1's grid (torch-fidelity)"
    task = "ImageNet classes"

    def __init__(self, weights: str | os.PathLike | None = None):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        path = _published() if weights is None else Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"metrics.weights={path} is no file: give Inception-v3's weights, torch-fidelity's format")
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run any pickle
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", [FEATURES, LOGITS], str(path))
        except (RuntimeError, pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError) as error:
            raise UserError(
                f"metrics.weights={path} does not hold Inception-v3's weights in torch-fidelity's format: give its "
                "file weights-inception-2015-12-05-6726825d.pth, or leave metrics.weights out to download it"
            ) from error
        if self.sha256 == PUBLISHED_SHA256:
            self.names = {"fd": "fid", "kd": "kid", "is": "is"}
        self.freeze()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 2048)` and logits `(n, 1008)` of uint8 images; grey ones are shown as RGB."""
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"Inception-v3 sees grey or RGB images, not {images.shape[1]} channels: use metrics=classifier"
            )
        return self.network(images.expand(-1, 3, -1, -1))


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
