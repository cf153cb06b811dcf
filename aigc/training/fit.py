"""Turns a configuration into a run: data, family, callbacks, loggers and trainer, and the run's record."""

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from aigc.config.schema import to_plain
from aigc.config.targets import instantiate
from aigc.data.datamodule import ImageData
from aigc.data.preparing import check_captions, prepare_data
from aigc.errors import RunError, UserError
from aigc.files.turns import rank
from aigc.models.checkpoints import read_checkpoint
from aigc.models.family import Family
from aigc.models.parts import leaks, parts_in, stages
from aigc.runs import card
from aigc.runs.machine import environment, keep_freed_memory, peak_memory_mb
from aigc.runs.summary import read_summary, signature, write_summary
from aigc.training import launch
from aigc.training.callbacks.scoring import Scoring
from aigc.training.compatibility import check_compatible
from aigc.training.loggers import JsonLines, Wandb
from aigc.training.precision import settle_precision
from aigc.training.trainer import build_trainer, device_type, quiet
from aigc.wording import Report, a, counted, silent

log = logging.getLogger(__name__)

def settle_condition(cfg: DictConfig, family: type[Family], data: ImageData, before: dict[str, Any]) -> None:
    """Replaces `condition=auto` by what it means here; a resumed run keeps its condition.

    Args:
        cfg: the configuration, changed in place before anything is built from it or recorded.
        family: the family to train.
        data: the data module, set up.
        before: the summary so far of a resumed run; empty for a new one.
    """
    if cfg.condition != "auto":
        return
    captioned = "text" in family.conditions and bool(data.texts("train"))
    cfg.condition = before.get("condition") or ("text" if captioned else "none")
    if cfg.condition not in family.conditions:              # it learns from captions alone
        check_captions(data, f"{family.__name__} needs captions")
    if cfg.condition == "text":
        log.info("condition=text, because %s has captions (condition=none leaves them out)", data.name)


def vocabulary_of(cfg: DictConfig, family: type[Family], data: ImageData) -> list[str] | None:
    """The vocabulary of the training captions, with `condition=text` and an encoder trained from scratch."""
    text = cfg.model.get("text")
    if cfg.condition != "text" or text is None or text.get("encoder", "own") != "own":
        return None
    from aigc.conditions.vocabulary import build_vocabulary

    texts = family.texts_read(to_plain(cfg.model), data.texts_read())
    return build_vocabulary(texts, kind=text.words, size=text.size)


def fit(
    cfg: DictConfig, folder: Path, *, resumed: bool = False, progress: Report = silent
) -> dict[str, Any]:
    """Trains until the budget is spent or a signal arrives; returns the run's summary.

    Args:
        cfg: a complete training configuration.
        folder: the run folder.
        resumed: whether to continue from `checkpoints/last.ckpt` there, or start over where there is none yet.
        progress: told how many bytes of how many of a download are there, and its name.

    Raises:
        UserError: a mistake in what was asked; nothing has been trained.
        RunError: the run could not continue; `summary.json` says why.
    """
    family = check_compatible(cfg)
    quiet()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    again = resumed or launch.requeued()
    before = read_summary(folder) if again else {}
    resumed &= checkpoint.is_file()  # a run that had not saved anything yet starts over
    data = prepare_data(cfg, family.accepts, progress=progress)
    if rank() in (None, 0):
        for line in data.found():
            log.info("%s", line)
    settle_condition(cfg, family, data, before)
    L.seed_everything(cfg.seed, verbose=False)
    facts = {"channels": data.channels, "size": tuple(data.size), "classes": data.classes, "condition": cfg.condition,
             "vocabulary": vocabulary_of(cfg, family, data)}
    kept = parts_in(family, checkpoint) if resumed else {}
    model: Family = instantiate({**to_plain(cfg.model), **kept}, "model", **facts)
    model.class_names = data.class_names if cfg.condition == "label" else None
    if rank() in (None, 0):
        for line in leaks(model, data.facts()):
            log.warning("%s", line)
    if cfg.batch_size < model.least_batch:
        raise UserError(
            f"batch_size={cfg.batch_size} is too small: the batch norm of this {type(model).__name__} needs at least "
            f"{model.least_batch} images of this size on each device"
        )
    seen, stand = 0 if again else None, {}
    if resumed:
        content = read_checkpoint(checkpoint)
        check_resumable(content, model, checkpoint)
        seen, stand = content["progress"]["images"], content.get(type(data).__qualname__, {})
        del content
    if data.own_files and "data" in before:
        data.name = before["data"]["name"]  # even if the files have moved
    record = {"recipe": recipe_of(folder, before) or type(model).__name__.lower(),
              **identity(cfg, model, data, before, seen)}
    precision, measured = settle_precision(
        cfg.trainer.precision, device_type(cfg.trainer.accelerator), model, data,
        before=before.get("precision") if resumed else None, first=rank() in (None, 0),
    )
    trainer = build_trainer(cfg, folder, model, record, precision=precision)
    record |= {"precision_measured": measured} if measured is not None else {}
    images = cfg.batch_size * trainer.world_size
    if before.get("global_batch", images) != images:
        raise UserError(
            f"'{folder}' was trained with {counted(before['global_batch'], 'image')} a step over all devices, this "
            f"would be {images}: give batch_size={before['global_batch'] // trainer.world_size}"
        )
    if stand:  # Lightning checks too, but only after the record has been truncated
        data.trainer = trainer
        check_same_data(data, before)
        data.load_state_dict(stand)
    if trainer.is_global_zero:
        record |= begin(cfg, model, trainer, seen)
        write_summary(folder, **record)
    status, reason, refused = "failed", None, False
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint if resumed else None, weights_only=True)
        status = "stopped" if model.progress.interrupted else "finished"
        reason = model.progress.interrupted
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        status, reason = "stopped", model.progress.interrupted
        if reason is None:
            raise
    except BaseException as error:
        reason = str(error) or type(error).__name__
        refused = isinstance(error, UserError) and not isinstance(error, RunError)
        raise
    finally:
        summary = {"status": status, "reason": reason}
        if trainer.is_global_zero:
            with contextlib.suppress(RunError):  # a full disk that ended the run refuses its summary too
                summary = write_summary(folder, **(before if refused else outcome(trainer, model, status, reason)))
            if not refused:
                with contextlib.suppress(OSError):
                    card.write(folder)
            for logger in trainer.loggers:
                if isinstance(logger, Wandb):
                    logger.finish(None if refused else summary)
    return summary


def check_resumable(content: dict[str, Any], model: Family, path: Path) -> None:
    """Refuses a checkpoint of another family.

    Raises:
        UserError: says which.
    """
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if content["family"] != name:
        held = content["family"]
        raise UserError(f"'{path}' holds {a(held)}, the configuration asks for {a(name)}: resume its own run")


def check_same_data(data: ImageData, before: dict[str, Any]) -> None:
    """Refuses to resume with data of another shape; the data module itself checks seed, number and fingerprint.

    Raises:
        UserError: names what differs.
    """
    was, now = before.get("data", {}), data.facts()
    for key in ("kind", "channels", "size", "classes"):
        if key in was and was[key] != now[key]:
            raise UserError(
                f"cannot resume: {key} of the run's data was {was[key]}, of these it is {now[key]}; resume with the "
                "same or start a new run"
            )


def identity(
    cfg: DictConfig, model: Family, data: ImageData, before: dict[str, Any], seen: int | None
) -> dict[str, Any]:
    """The part of a run's summary that is known at its start: what it is and what was configured.

    Args:
        cfg: a complete training configuration.
        model: the family.
        data: the data module, set up.
        before: the summary so far of a resumed run; empty for a new one.
        seen: images seen by the checkpoint that is resumed; None for a new run.
    """
    typed = HydraConfig.get() if HydraConfig.initialized() else None
    resumes = list(before.get("resumes", []))
    if seen:
        resumes.append({"images": seen, "overrides": list(typed.overrides.task) if typed is not None else []})
    inside = model.fingerprints()
    used = {name: sha256 for name, sha256 in inside.items() if sha256 is not None}
    return {
        "study": cfg.study,
        "seed": cfg.seed,
        "signature": before.get("signature") or signature(to_plain(cfg), inside),  # a resumed run keeps its own
        "family": type(model).__name__,
        **({"parts": used, "stages": stages(model)} if used else {}),
        "condition": cfg.condition,
        "prompt": next(iter(data.texts("train") or []), None) if cfg.condition == "text" else None,
        "translates": model.can("translate"),
        "capabilities": model.capabilities(),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": data.facts(),
        "budget": to_plain(cfg.budget),
        "resumes": resumes,
        "wandb_id": before.get("wandb_id"),
        "started": before.get("started") or datetime.now(UTC).isoformat(timespec="seconds"),
    }


def recipe_of(folder: Path, before: dict[str, Any]) -> str | None:
    """What `model=` named when the run was first started, where that is known.

    Args:
        folder: the run folder.
        before: the summary so far of a resumed run.
    """
    if before.get("recipe"):
        return before["recipe"]
    saved = folder / ".hydra" / "hydra.yaml"
    if saved.is_file():
        return OmegaConf.select(OmegaConf.load(saved), "hydra.runtime.choices.model")
    return HydraConfig.get().runtime.choices.get("model") if HydraConfig.initialized() else None


def begin(cfg: DictConfig, model: Family, trainer: L.Trainer, seen: int | None) -> dict[str, Any]:
    """Tells the loggers that a run starts or continues after `seen` images; returns what its summary adds then."""
    found = {}
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            found["wandb_id"] = logger.begin(to_plain(cfg))
        if isinstance(logger, JsonLines):
            logger.rewind_to = seen
    return {
        "status": "running",
        "reason": None,
        "precision": trainer.precision,
        "devices": trainer.world_size,
        "global_batch": cfg.batch_size * trainer.world_size,  # images per step
        **found,
        **environment(),
    }


def outcome(trainer: L.Trainer, model: Family, status: str, reason: str | None) -> dict[str, Any]:
    """How a run ended, for its summary."""
    scores = next((c for c in trainer.callbacks if isinstance(c, Scoring)), None)  # type: ignore[attr-defined]
    progress = model.progress
    return {
        "status": status,
        "reason": reason,
        "images": progress.images,
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(progress.images / progress.seconds, 2) if progress.seconds else None,
        **(scores.facts() if scores else {"scores": {}, "protocol": {}}),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
