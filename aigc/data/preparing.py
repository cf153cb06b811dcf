"""A data module from its configuration: downloaded, checked and set up."""

from collections.abc import Collection

from omegaconf import DictConfig

from aigc.config.targets import instantiate
from aigc.data.datamodule import ImageData
from aigc.data.pairs import PairData
from aigc.errors import UserError
from aigc.files.cache import cache_folder
from aigc.files.turns import in_turn
from aigc.wording import Report, silent


def prepare_data(
    cfg: DictConfig, accepts: Collection[str] | None, *, progress: Report = silent
) -> ImageData:
    """The data module, downloaded, checked and set up.

    Args:
        cfg: the configuration.
        accepts: the kinds of batches of the family that learns from the data or is measured on them; one that learns
            without pairs gets the two sides of paired data in independent orders. None: of no family.
        progress: told how many bytes of how many of a download are there, and its name.

    Raises:
        UserError: data are missing, broken, or have no labels for `condition=label`, no captions for text.
    """
    data = instantiate(cfg.data, "data")
    data.progress = progress
    if accepts is not None and isinstance(data, PairData) and "paired" not in accepts:
        data.unpair()
    with in_turn(cache_folder()):
        data.prepare_data()
    data.setup()
    if cfg.condition == "label" and not data.classes:
        why = f" ({data.unlabelled})" if data.unlabelled else ""
        raise UserError(f"condition=label needs labels, and {data.name} has none{why}: use condition=none or other "
                        "data")
    if cfg.condition == "text":
        check_captions(data, "condition=text needs captions")
    return data


def check_captions(data: ImageData, needed: str) -> None:
    """Refuses data without captions; `needed` says who needs them.

    Raises:
        UserError: names data that have some.
    """
    if not data.texts("train"):
        raise UserError(
            f"{needed}, and {data.name} has none: choose data=shapes, data=huggingface with "
            "data.text=<column of captions>, or data=image_folder with a.txt beside a.png"
            + (", or make some of the classes' names, data.caption='a {label}'" if data.classes else "")
        )
