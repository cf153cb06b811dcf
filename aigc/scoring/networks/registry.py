"""The feature networks that scores can use, by name."""

from collections.abc import Iterable

import torch

from aigc.data.datamodule import ImageData
from aigc.errors import UserError, choices
from aigc.scoring.networks import efficientnet, inception, squeezenet
from aigc.scoring.networks.features import FeatureNetwork

NETWORKS = ("classifier", "dinov2", "efficientnet", "inception", "squeezenet")
FOREIGN = "efficientnet"        # the second network beside the classifier, where its weights are installed
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


def second_network(choice: str | None, first: str | None, channels: int = 3) -> tuple[str | None, str | None]:
    """Which network scores beside the first one, at the end of training and in an evaluation.

    Args:
        choice: a name of NETWORKS; auto: a foreign one beside the classifier, where its weights are installed; None.
        first: the name of the first network, None: there is none.
        channels: of the images.

    Returns:
        Its name or None, and why auto has none beside the classifier, for people.

    Raises:
        UserError: there is no such network, it is the first one, or it needs options that a second one does not have.
    """
    if choice is not None and choice not in ("auto", *NETWORKS):
        raise UserError(f"metrics.second '{choice}' is unknown: {choices(choice, ('auto', *NETWORKS))}, or null for "
                        "none")
    if choice == "squeezenet":
        raise UserError("metrics.second=squeezenet has no weights of its own: use metrics=squeezenet "
                        "metrics.second=classifier")
    if choice is not None and choice == first:
        raise UserError(f"metrics.second={choice} is the first network already: choose another, or null for none")
    if choice != "auto":
        return (choice if first is not None else None), None
    if first != "classifier":
        return None, None
    if channels not in (1, 3):
        return None, f"its network sees grey or RGB images, not {channels} channels"
    if efficientnet.packaged() is None:
        return None, f"the weights of a second, foreign network are not installed: {efficientnet.INSTALL}"
    return FOREIGN, None


def build_network(
    name: str, data: ImageData, device: torch.device, *, weights: str | None = None, preprocessing: str | None = None
) -> FeatureNetwork:
    """The network called `name`, frozen, on `device`; `data` select the classifier, and train it if there is none.

    Raises:
        UserError: its weights are missing, or do not fit the data.
    """
    check_network(name, weights=weights, preprocessing=preprocessing)
    if name == "classifier":
        from aigc.scoring.networks.classifier import classifier_of

        return classifier_of(data, device, weights=weights)
    if name == "squeezenet":
        assert weights is not None and preprocessing is not None
        return squeezenet.SqueezeNet(weights, preprocessing=preprocessing).to(device)
    if name == "efficientnet":
        return efficientnet.EfficientNetLite0(weights).to(device)
    if name == "dinov2":
        from aigc.scoring.networks.dinov2 import DINOv2

        return DINOv2(weights).to(device)
    return inception.InceptionV3(weights, preprocessing=preprocessing or "torch_fidelity").to(device)
