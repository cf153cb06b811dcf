"""The feature networks that scores can use, by name."""

from collections.abc import Iterable

import torch

from aigc.data.datamodule import ImageData
from aigc.errors import UserError, choices
from aigc.metrics import inception, squeezenet
from aigc.metrics.features import FeatureNetwork

NETWORKS = ("classifier", "dinov2", "inception", "squeezenet")
PREPROCESSINGS = {"inception": tuple(inception.PREPROCESSINGS), "squeezenet": tuple(squeezenet.SCALES)}


def check_networks(names: Iterable[str] | None) -> None:
    """Refuses a list of networks that is empty, has an unknown name or a duplicate; None leaves the choice open.

    Raises:
        UserError: says which.
    """
    if names is None:
        return
    names = list(names)
    if not names:
        raise UserError(f"metrics=[] names no network: choose from {', '.join(NETWORKS)}")
    for name in names:
        if name not in NETWORKS:
            raise UserError(f"metrics={name} is unknown: {choices(name, NETWORKS)}")
        if names.count(name) > 1:
            raise UserError(f"metrics={','.join(names)} names {name} twice: once is enough")


def check_network(name: str | None, *, weights: str | None, preprocessing: str | None) -> None:
    """Refuses options that cannot be combined, before anything is loaded.

    Raises:
        UserError: says which.
    """
    if name is not None and name not in NETWORKS:
        raise UserError(f"metrics.network '{name}' is unknown: {choices(name, NETWORKS)}")
    known = PREPROCESSINGS.get(name or "", ())
    if name is not None and preprocessing is not None and preprocessing not in known:
        hint = choices(preprocessing, known) if known else f"leave it out, metrics.network={name} has only one"
        raise UserError(f"metrics.preprocessing '{preprocessing}' is unknown: {hint}")
    if name == "squeezenet" and (weights is None or preprocessing is None):
        missing = "weights=<file>" if weights is None else f"preprocessing={'|'.join(known)}"
        raise UserError(f"metrics.network=squeezenet needs metrics.{missing}: a file of SqueezeNet 1.0's ImageNet "
                        "weights, and how their training images were scaled")


def build_network(
    name: str, data: ImageData, device: torch.device, *, weights: str | None = None, preprocessing: str | None = None
) -> FeatureNetwork:
    """The network called `name`, frozen, on `device`; `data` select the classifier, and train it if there is none.

    Raises:
        UserError: its weights are missing, or do not fit the data.
    """
    check_network(name, weights=weights, preprocessing=preprocessing)
    if name == "classifier":
        from aigc.metrics.classifier import classifier_of

        return classifier_of(data, device, weights=weights)
    if name == "squeezenet":
        assert weights is not None and preprocessing is not None
        return squeezenet.SqueezeNet(weights, preprocessing=preprocessing).to(device)
    if name == "dinov2":
        from aigc.metrics.dinov2 import DINOv2

        return DINOv2(weights).to(device)
    return inception.InceptionV3(weights, preprocessing=preprocessing or "torch_fidelity").to(device)
