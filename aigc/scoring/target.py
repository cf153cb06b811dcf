"""The subject of an evaluation, a checkpoint with its run and data or a folder of images; and its reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from aigc.config.untrusted import read_config, settled
from aigc.data.datamodule import ImageData
from aigc.data.folder import ImageFolder
from aigc.data.pairs import PairData
from aigc.data.preparing import prepare_data
from aigc.errors import UserError
from aigc.images.output import sha256_of
from aigc.models.checkpoints import find_checkpoint, load_family
from aigc.models.family import Family
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.networks.registry import build_network, check_network, second_network
from aigc.scoring.sources import DataSource, FolderSource, Source
from aigc.wording import Report, counted

SECOND_IMAGES = 2000       # as conf/metrics/classifier.yaml has it


@dataclass
class Target:
    """A checkpoint (`family`) or a folder of images (`pictures`)."""

    path: Path                          # of the checkpoint, folder or zip
    run: Path                           # the run folder, or the folder of images
    family: Family | None = None
    pictures: FolderSource | None = None
    config: DictConfig | None = None    # of the run's training, if known

    def facts(self) -> dict[str, Any]:
        """What a record says about it."""
        if self.family is None:
            assert self.pictures is not None
            return {"kind": "images", "run": str(self.run), "sha256": self.pictures.fingerprint,
                    "images": self.pictures.count, "broken": self.pictures.failures,
                    "left_out": self.pictures.left_out}
        own = self.path.parent.name == "checkpoints"
        return {"kind": "checkpoint", "run": str(self.run), "checkpoint": self.path.stem if own else str(self.path),
                "sha256": sha256_of(self.path), "images": self.family.progress.images,
                "seconds": round(self.family.progress.seconds, 3), "family": type(self.family).__name__}


def open_target(run: str, checkpoint: str, device: torch.device, **changes: Any) -> Target:
    """The target that `run` names: a run folder or a checkpoint file, else a folder or zip of images.

    `changes` replace values of the run's configuration.

    Raises:
        UserError: it is none of these.
    """
    path = Path(run).expanduser()
    is_run = path.is_dir() and ((path / "checkpoints").is_dir() or (path / ".hydra").is_dir())
    if not is_run and (runs := sorted(path.glob("*/checkpoints"))):
        raise UserError(f"run={run} is a folder of runs: give one of them, such as {runs[0].parent}")
    if (path.is_dir() and not is_run) or path.suffix.lower() == ".zip":
        pictures = FolderSource(path, "run")
        if pictures.count < 2:
            raise UserError(f"run={run} holds one picture: distances need at least two")
        return Target(path, path, pictures=pictures)
    found = find_checkpoint(path, checkpoint)
    folder = found.parent.parent if found.parent.name == "checkpoints" else found.parent
    saved = folder / ".hydra" / "config.yaml"
    config = settled(read_config(saved), saved, **changes) if saved.is_file() else None
    family = load_family(found, device=device)
    return Target(found, folder, family=family, config=config)


def open_data(target: Target, chosen: dict[str, Any], cfg: Any, progress: Report) -> ImageData | None:
    """The data set to compare with: `data=`, else the run's training data with the given options.

    Raises:
        UserError: there is none, it cannot be loaded, or it does not fit the family.
    """
    own = "_target_" not in chosen
    if own and target.config is None:
        if chosen:
            raise UserError(f"data.{next(iter(chosen))} is an option of a data set: give data=<data set> too")
        if target.family is None and cfg.against is not None:
            return None
        if target.family is None:
            raise UserError(f"'{target.run}' is a folder of images: say what to compare them with, data=<data set> or "
                            "against=<another folder>")
        raise UserError(f"'{target.run}' does not say what it was trained on (no .hydra/config.yaml): give "
                        "data=<data set>")
    whole: Any = target.config if own else OmegaConf.create({"data": chosen})
    whole = OmegaConf.merge(whole, {"batch_size": cfg.batch_size, "seed": cfg.seed, "condition": "none"})
    if own:
        for name, value in chosen.items():
            OmegaConf.update(whole, f"data.{name}", value, force_add=True)
    if target.family is not None:
        whole.condition = target.family.condition
    try:
        data = prepare_data(whole, target.family.accepts if target.family is not None else None,
                            progress=progress)
    except UserError as error:
        if not own:
            raise
        raise UserError(f"{error}; these are the data that '{target.run}' was trained on: data.<option>=... says "
                        "where they are now, data=<data set> names others") from error
    if target.family is not None:
        check_fit(target.family, data)
    return data


def check_fit(family: Family, data: ImageData) -> None:
    """Refuses data that a family's images cannot be compared with.

    Raises:
        UserError: says what differs.
    """
    name, h, translates = type(family).__name__, family.hparams, family.can("translate")
    if translates != isinstance(data, PairData):
        what = "translates: give data of two sides" if translates else "makes images: give one set"
        raise UserError(f"data={data.name} does not fit this {name}, which {what}, as it was trained on")
    own, theirs = ((h.channels, *h.size), (data.channels, *data.size))
    if own[0] != theirs[0] or (own != theirs and not translates):
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in (own, theirs))
        raise UserError(f"this {name} makes images of a different shape from {data.name}'s ({shapes}): give "
                        f"data.channels={own[0]} data.size=[{own[1]},{own[2]}], or other data")
    if family.condition == "label" and h.classes != data.classes:
        raise UserError(f"this {name} has {counted(h.classes, 'class')}, {data.name} has {data.classes}: give the "
                        "data that it was trained on")


def open_reference(
    against: FolderSource | None, data: ImageData | None, target: Target, split: str, test: str
) -> tuple[Source, Source | None]:
    """The images to compare with, and the held-out ones that give the floor.

    Raises:
        UserError: the folder holds only one picture.
    """
    if against is not None:
        if target.pictures is not None:
            target.pictures.channels = against.channels
        elif target.family is not None and target.family.hparams.channels != against.channels:
            against.channels = target.family.hparams.channels
        if against.count < 2:
            raise UserError(f"against={against.path} holds one picture: distances need at least two")
        return against, None
    assert data is not None, "open_data refuses"
    if target.pictures is not None:
        target.pictures.channels = data.channels
    return DataSource(data, split), DataSource(data, test) if test != split else None


def open_networks(cfg: Any, target: Target, data: ImageData | None, device: torch.device) -> list[FeatureNetwork]:
    """The requested networks, or the one that scored the run.

    Raises:
        UserError: a network's weights are missing or wrong.
    """
    trained = _scored(target)
    scored_by = trained.get("network") or "classifier"
    names = [scored_by] if cfg.networks is None else [str(name) for name in cfg.networks]
    trains = data if data is not None else ImageFolder(path=cfg.against, batch_size=cfg.batch_size)
    if "classifier" in names:
        try:
            trains.setup()
        except UserError:
            if data is not None:
                raise
            trains = ImageFolder(path=cfg.against, batch_size=cfg.batch_size, validation=0, test=0)  # too few to cut
            trains.setup()
    networks = []
    for name in names:
        weights, preprocessing = cfg.weights.get(name), cfg.preprocessing.get(name)
        if name == scored_by:
            weights, preprocessing = weights or trained.get("weights"), preprocessing or trained.get("preprocessing")
        if name == "squeezenet":
            preprocessing = preprocessing or "caffe"
        networks.append(_build(name, trains, device, weights, preprocessing))
    return networks


def open_second(
    cfg: Any, target: Target, data: ImageData | None, device: torch.device, first: str
) -> tuple[FeatureNetwork | None, int, str | None]:
    """The network that scores beside the run's own one, called `first`, where `metrics=` names none.

    Returns:
        The network or None; how many images it sees of either side, at most; and why auto has none, for people.

    Raises:
        UserError: it is unknown, the same, beside `metrics=`, or its weights are missing or wrong.
    """
    trained = _scored(target)
    most = cfg.second_images or trained.get("second_images") or SECOND_IMAGES
    if cfg.networks is not None:
        if cfg.second not in (None, "auto"):
            raise UserError(f"second={cfg.second} goes beside the run's own network: name all of them in metrics=")
        return None, most, None
    choice = trained.get("second", "auto") if cfg.second == "auto" else cfg.second
    try:
        name, reason = second_network(choice, first, data.channels if data is not None else 3)
    except UserError as error:
        raise UserError(str(error).replace("metrics.second", "second")) from error
    if name is None:
        return None, most, reason
    assert data is not None or name != "classifier"
    return _build(name, data, device, cfg.weights.get(name), cfg.preprocessing.get(name)), most, None


def _scored(target: Target) -> Any:
    """The run's own scores, as it was configured; empty where that is not known."""
    return (target.config.get("metrics") if target.config is not None else None) or {}


def _build(
    name: str, data: Any, device: torch.device, weights: str | None, preprocessing: str | None
) -> FeatureNetwork:
    """A network; what is wrong is told in the words of this command."""
    try:
        check_network(name, weights=weights, preprocessing=preprocessing)
        return build_network(name, data, device, weights=weights, preprocessing=preprocessing)
    except UserError as error:
        sentence = str(error)
        for word in ("weights", "preprocessing"):
            sentence = sentence.replace(f"metrics.{word}", f"{word}.{name}")
        raise UserError(sentence.replace("metrics.network", "metrics")) from error
