"""Similarity of images to their true counterparts: PSNR, SSIM and LPIPS per image, at the precision of a PNG."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc.errors import UserError, choices
from aigc.networks.fingerprint import state_sha256
from aigc.networks.weights import read_weights

BACKBONES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}    # LPIPS' name: torchvision's name
MOST_PSNR = 100.0      # dB, for equal images, whose PSNR is infinite
SSIM_WINDOW = 11       # pixels; smaller images have no SSIM
PROTOCOL = {                # of a score of pairs, for records
    "psnr": "of 0..255 after rounding, mean over images in dB",
    "ssim": f"Gaussian window of {SSIM_WINDOW}, sigma 1.5, mean over images",
}
LPIPS_LEAST = 32       # pixels: below, AlexNet's grid is empty

log = logging.getLogger(__name__)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `(n,)` in dB of uint8 images `(n, c, h, w)`: 10 log10(255^2 / MSE), at most 100."""
    error = (images.double() - targets.double()).square().mean((1, 2, 3))
    return (10 * (255**2 / error.clamp_min(1e-30)).log10()).clamp_max(MOST_PSNR).float()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity `(n,)` of uint8 images `(n, c, h, w)` (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(images.double(), targets.double(), data_range=255.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.reshape(len(images)).float()


def likeness(images: Tensor, targets: Tensor, lpips: "LPIPS | None") -> dict[str, Tensor]:
    """PSNR, SSIM (if the images are large enough) and LPIPS (if given) of uint8 images, `(n,)` each, by name."""
    found = {"psnr": psnr(images, targets)}
    if min(images.shape[2:]) >= SSIM_WINDOW:
        found["ssim"] = ssim(images, targets)
    if lpips is not None:
        found["lpips"] = lpips(images, targets)
    return found


def no_ssim(size: tuple[int, int]) -> str | None:
    """Why images of this size `(h, w)` have no SSIM; None: they have one."""
    too_small = f"images of {size[0]} x {size[1]} pixels are too small for its window"
    return too_small if min(size) < SSIM_WINDOW else None


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al. 2018) by torchmetrics, with a backbone's weights from a local file.

    Args:
        net: alex, vgg or squeeze.
        weights: torchvision's file of the backbone's ImageNet weights.

    Raises:
        UserError: the file does not hold them.
    """

    def __init__(self, net: str, weights: Path):
        from torchmetrics.functional.image.lpips import _LPIPS

        super().__init__()
        state = read_weights(weights, f"torchvision's {BACKBONES[net]}")
        self.net = net
        with torch.random.fork_rng(devices=[]):
            self.network = _LPIPS(pretrained=True, net=net, pnet_rand=True)  # type: ignore[arg-type]
        try:                     # torchmetrics slices the backbone; its layers keep their numbers
            own = {name: state["features." + name.rsplit("slice", 1)[1].split(".", 2 if net == "squeeze" else 1)[-1]]
                   for name in self.network.net.state_dict()}
            self.network.net.load_state_dict(own)
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"metrics.lpips_weights={weights} does not hold the weights of torchvision's {BACKBONES[net]}"
            ) from error
        self.sha256 = state_sha256(self.network.state_dict())
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances `(n,)` of uint8 images `(n, 1 or 3, h, w)`."""
        first, second = (x.expand(-1, 3, -1, -1).float() / 127.5 - 1 for x in (images, targets))
        return self.network(first, second).reshape(len(images))


def lpips_at_hand(
    choice: str | None, weights: str | None, *, channels: int, size: tuple[int, int],
    missing: dict[str, str] | None = None,
) -> LPIPS | None:
    """The LPIPS network, if its backbone's weights are available locally: nothing is downloaded.

    Args:
        choice: alex, vgg or squeeze; auto: the first one available; None: none.
        weights: a file of the backbone's weights; None: torch.hub's folder.
        channels: of the images; LPIPS sees grey or RGB.
        size: of the images, `(h, w)`.
        missing: receives the reason as its entry `lpips` if there is no network.

    Raises:
        UserError: the requested network is not available.
    """
    if choice is None:
        return None
    if choice == "auto" and weights is not None:
        raise UserError(f"metrics.lpips_weights needs metrics.lpips={'|'.join(BACKBONES)}: whose weights are they?")
    names = tuple(BACKBONES) if choice == "auto" else (choice,)
    found = {name: path for name in names if (path := Path(weights).expanduser() if weights else _kept(name))}
    if choice != "auto" and not found:
        raise UserError(f"metrics.lpips={choice} needs the ImageNet weights of torchvision's {BACKBONES[choice]}, and "
                        "they are not in torch.hub's folder: give a file with metrics.lpips_weights=<file>")
    reason = None
    if not found:
        reason = "torch.hub's folder holds no backbone weights (metrics.lpips_weights=<file> gives them)"
    elif channels not in (1, 3):
        reason = f"it sees grey or RGB images, not {channels} channels"
    elif min(size) < LPIPS_LEAST:
        reason = f"images of {size[0]} x {size[1]} pixels are too small for it"
    if reason:
        if missing is None:
            log.info("no lpips: %s", reason)
        else:
            missing["lpips"] = reason
        return None
    name, path = next(iter(found.items()))
    return LPIPS(name, path)


def check_lpips(choice: str | None) -> None:
    """Refuses a network that LPIPS does not have.

    Raises:
        UserError: names the known ones.
    """
    known = ("auto", *BACKBONES)
    if choice is not None and choice not in known:
        raise UserError(f"metrics.lpips '{choice}' is unknown: {choices(choice, known)}, or null for none")


def _kept(name: str) -> Path | None:
    """The backbone's weights in torch.hub's folder, or None."""
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(BACKBONES[name]).DEFAULT  # type: ignore[attr-defined]
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]
    return path if path.is_file() else None
