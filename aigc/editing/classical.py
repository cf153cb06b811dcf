"""Restoration without a trained run, by scikit-image, OpenCV and PyWavelets: what a restorer has to beat.

Each method is a function of one picture, a float array `(h, w, c)` in [0, 1]; its keyword parameters are its options.
`sigma`, the standard deviation of the noise in units of [0, 1], is estimated where it is None (Donoho and Johnstone
1994, by wavelets). The packages are the extra `aigc[restore]`, imported where they are used.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc.config.functions import check_known, chosen, options_of
from aigc.errors import UserError, choices
from aigc.networks.resample import resize

Method = Callable[..., np.ndarray]
METHODS: dict[str, Method] = {}
MODULES = {"skimage": "scikit-image", "cv2": "opencv-python-headless", "pywt": "PyWavelets"}
NEEDS: dict[str, tuple[str, ...]] = {"biharmonic": ("mask",), "navier_stokes": ("mask",), "richardson_lucy": ("blur",)}


def method(function: Method) -> Method:
    """Registers a method under its name."""
    METHODS[function.__name__] = function
    return function


def package(name: str, wanted: str) -> Any:
    """A module of the extra `aigc[restore]`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{wanted} needs {MODULES[name.split('.')[0]]}, which is not installed: "
                        "pip install 'aigc[restore]'") from error


def noise_of(image: np.ndarray, sigma: float | None) -> float:
    """The standard deviation of an image's noise: as given, or estimated."""
    if sigma is not None:
        return float(sigma)
    restoration = package("skimage.restoration", "an estimate of the noise")
    package("pywt", "an estimate of the noise")
    return float(np.mean(restoration.estimate_sigma(image, channel_axis=-1)))


@method
def nl_means(
    image: np.ndarray, *, sigma: float | None = None, h: float = 0.8, patch_size: int = 5, patch_distance: int = 6
) -> np.ndarray:
    """Non-local means (Buades et al. 2005), `h` in units of sigma; distances are cleared of the noise's own."""
    deviation = noise_of(image, sigma)
    return package("skimage.restoration", "solver=nl_means").denoise_nl_means(
        image, h=max(h * deviation, 1e-6), sigma=deviation, patch_size=patch_size, patch_distance=patch_distance,
        fast_mode=False, channel_axis=-1)


@method
def tv(image: np.ndarray, *, sigma: float | None = None, weight: float = 0.6) -> np.ndarray:
    """Total variation (Rudin et al. 1992; Chambolle 2004), `weight` in units of sigma."""
    return package("skimage.restoration", "solver=tv").denoise_tv_chambolle(
        image, weight=max(weight * noise_of(image, sigma), 1e-6), channel_axis=-1)


@method
def wavelet(image: np.ndarray, *, sigma: float | None = None, wavelet: str = "db1") -> np.ndarray:
    """Wavelet coefficients shrunk towards zero by BayesShrink (Chang et al. 2000), colours apart as YCbCr."""
    package("pywt", "solver=wavelet")
    return package("skimage.restoration", "solver=wavelet").denoise_wavelet(
        image, sigma=noise_of(image, sigma), wavelet=wavelet, mode="soft", method="BayesShrink", rescale_sigma=True,
        convert2ycbcr=image.shape[-1] == 3, channel_axis=-1)


@method
def bicubic(image: np.ndarray) -> np.ndarray:
    """The picture as it is: what enlarges it, with `scale`, is bicubic."""
    return image


@method
def biharmonic(image: np.ndarray, *, mask: np.ndarray) -> np.ndarray:
    """Holes filled by the biharmonic equation (Damelin and Hoang 2018)."""
    return package("skimage.restoration", "solver=biharmonic").inpaint_biharmonic(image, mask, channel_axis=-1)


@method
def navier_stokes(image: np.ndarray, *, mask: np.ndarray, radius: float = 3.0) -> np.ndarray:
    """Holes filled along lines of equal brightness (Bertalmio et al. 2001), in 8 bits."""
    cv2 = package("cv2", "solver=navier_stokes")
    whole = np.ascontiguousarray((image * 255).round().astype(np.uint8))
    made = cv2.inpaint(whole, mask.astype(np.uint8), radius, cv2.INPAINT_NS)
    return made.reshape(image.shape).astype(np.float32) / 255


@method
def richardson_lucy(image: np.ndarray, *, blur: float, iterations: int = 20) -> np.ndarray:
    """A Gaussian blur of standard deviation `blur` in pixels undone (Richardson 1972; Lucy 1974)."""
    restoration = package("skimage.restoration", "solver=richardson_lucy")
    reach = max(1, int(4 * blur + 0.5))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
    kernel, pad = np.outer(line, line) / line.sum() ** 2, ((reach, reach), (reach, reach))
    planes = [restoration.richardson_lucy(np.pad(image[..., c], pad, mode="symmetric"), kernel, num_iter=iterations)
              for c in range(image.shape[-1])]
    return np.stack(planes, axis=-1)[reach:-reach, reach:-reach]


def check_method(name: Any, settings: Mapping[str, Any], *, option: str = "task.solver") -> None:
    """Refuses a method that does not exist, is not installed, or lacks what it needs.

    Raises:
        UserError: says which, and what to do.
    """
    if name not in METHODS:
        raise UserError(f"{option}={name} is unknown: {choices(name, METHODS)}")
    check_known(settings, options_of(METHODS[name]), f"The solver '{name}'")
    for module in {"bicubic": (), "navier_stokes": ("cv2",), "wavelet": ("skimage", "pywt")}.get(name, ("skimage",)):
        package(module, f"{option}={name}")
    if "blur" in NEEDS.get(name, ()) and not (isinstance(settings.get("blur"), int | float) and settings["blur"] > 0):
        raise UserError(f"{option}={name} undoes a known blur: give its standard deviation in pixels, such as "
                        "task.blur=1.5")


def solve(
    name: str, images: Tensor, settings: Mapping[str, Any], *, sigmas: Tensor | None = None,
    masks: Tensor | None = None, scale: int = 1,
) -> Tensor:
    """Pictures `(n, c, h, w)` in [0, 1] restored by a method, each alone, `scale` times as large.

    Args:
        name: of the method.
        images: the degraded pictures.
        settings: its options.
        sigmas: standard deviation of the noise of each `(n,)`; None: `settings` say, or it is estimated.
        masks: `(n, 1, h, w)`, above 0.5 where pixels are lost.
        scale: they are enlarged by, bicubically, before.

    Raises:
        UserError: see `check_method`; masks are missing.
    """
    check_method(name, settings)
    if "mask" in NEEDS.get(name, ()) and masks is None:
        raise UserError(f"task.solver={name} fills holes: say where they are")
    larger = images.cpu().float()
    if scale > 1:
        larger = resize(larger, [scale * side for side in larger.shape[2:]]).clamp(0, 1)
    made = []
    for k, image in enumerate(larger.permute(0, 2, 3, 1).numpy()):
        given: dict[str, Any] = {} if sigmas is None else {"sigma": float(sigmas[k])}
        given |= {} if masks is None else {"mask": masks[k, 0].cpu().numpy() > 0.5}
        options = chosen(METHODS[name], {**settings, **given}, f"The solver '{name}'")
        found = np.asarray(METHODS[name](image, **options), dtype=np.float32).reshape(image.shape)
        made.append(torch.from_numpy(found))
    return torch.stack(made).permute(0, 3, 1, 2).clamp(0, 1).to(images)
