"""The feature networks that scores can look through, by name."""

import torch

from aigc.data.datamodule import ImageData
from aigc.errors import UserError, choices
from aigc.metrics.features import FeatureNetwork

NETWORKS = ("classifier", "inception", "squeezenet")
PREPROCESSINGS = ("caffe", "torchvision")


def check_network(name: str | None, *, weights: str | None, preprocessing: str | None) -> None:
    """Refuses options that do not go together, before anything is loaded.

    Raises:
        UserError: says which.
    """
    if name is not None and name not in NETWORKS:
        raise UserError(f"metrics.network '{name}' is unknown: {choices(name, NETWORKS)}")
    if name == "classifier" and weights is not None:
        raise UserError(
            "metrics.weights belongs to metrics.network=inception or squeezenet: the classifier is trained on the data"
        )
    if preprocessing is not None and preprocessing not in PREPROCESSINGS:
        known = choices(preprocessing, PREPROCESSINGS)
        raise UserError(f"metrics.preprocessing '{preprocessing}' is unknown: {known}")
    if name == "squeezenet" and (weights is None or preprocessing is None):
        missing = "weights=<file>" if weights is None else f"preprocessing={'|'.join(PREPROCESSINGS)}"
        raise UserError(f"metrics.network=squeezenet needs metrics.{missing}: a file of SqueezeNet 1.0's ImageNet "
                        "weights, and how their training images were scaled")


def build_network(
    name: str, data: ImageData, device: torch.device, *, weights: str | None = None, preprocessing: str | None = None
) -> FeatureNetwork:
    """The network called `name`, frozen, on `device`; `data` train the classifier unless it is cached.

    Raises:
        UserError: its weights are missing.
    """
    check_network(name, weights=weights, preprocessing=preprocessing)
    if name == "classifier":
        from aigc.metrics.classifier import trained_classifier

        return trained_classifier(data, device)
    if name == "squeezenet":
        from aigc.metrics.squeezenet import SqueezeNet

        assert weights is not None and preprocessing is not None
        return SqueezeNet(weights, preprocessing=preprocessing).to(device)
    from aigc.metrics.inception import InceptionV3

    return InceptionV3(weights).to(device)
