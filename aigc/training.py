"""Turns a configuration into a run: data, family, callbacks, loggers and trainer, and the run's record."""

import contextlib
import ctypes
import logging
import re
import warnings
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from aigc import card, launch
from aigc.callbacks.scoring import Scoring
from aigc.checkpoints import AtomicCheckpointIO, read_checkpoint
from aigc.config import CONFIG_DIR, to_plain
from aigc.data.datamodule import ImageData
from aigc.data.names import counted
from aigc.data.pairs import PairData
from aigc.errors import RunError, UserError, choices
from aigc.loggers import JsonLines, Wandb
from aigc.metrics.cache import cache_folder
from aigc.models.family import Family, Translator
from aigc.precision import OnePrecision, choose_precision, settle_precision
from aigc.run import environment, peak_memory_mb, read_summary, signature, write_summary
from aigc.targets import check_targets, instantiate, locate

log = logging.getLogger(__name__)

NAMED = 8       # `data=` choices that a refusal names
KINDS_OF = {  # kinds of data that can serve each kind of batch
    "images": ("images", "captioned"),
    "captioned": ("captioned",),
    "unpaired": ("unpaired", "paired"),
    "paired": ("paired",),
}


def check_pair(cfg: DictConfig) -> type[Family]:
    """The family's class, after checking that it can learn from this kind of data under this condition.

    Raises:
        UserError: names the `data=` choices that fit, or says what is not allowed in the configuration.
    """
    check_targets({**callbacks_of(cfg), **loggers_of(cfg), "trainer": cfg.trainer})
    family: Any = locate(cfg.model.get("_target_"), "model")
    data: Any = locate(cfg.data.get("_target_"), "data")
    kinds = {kind for accepted in family.accepts for kind in KINDS_OF.get(accepted, (accepted,))}
    if data.kind not in kinds:
        fitting = data_of_kinds(kinds)
        more = f", or one of {len(fitting) - NAMED:,} more (--help lists all data)" if len(fitting) > NAMED else ""
        raise UserError(
            f"{family.__name__} learns from {' or '.join(sorted(kinds))} data, {data.__name__} gives {data.kind}: "
            f"choose data={'|'.join(fitting[:NAMED])}{more}"
        )
    if cfg.condition not in ("auto", *family.conditions):
        raise UserError(
            f"{family.__name__} has no condition '{cfg.condition}': {choices(cfg.condition, family.conditions)}"
        )
    return family


def data_of_kinds(kinds: Collection[str]) -> list[str]:
    """The `data=` choices that give one of these kinds of batch: those that need no download first."""
    fits: dict[str, bool] = {}      # by class
    found = []
    for path in sorted((CONFIG_DIR / "data").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if target := re.search(r"^_target_: (\S+)", text, re.MULTILINE):
            if target[1] not in fits:
                fits[target[1]] = locate(target[1], "data").kind in kinds  # type: ignore[attr-defined]
            found += [("\ndownload: true" in text, path.stem)] * fits[target[1]]
    return [name for _, name in sorted(found)]


def callbacks_of(cfg: DictConfig) -> dict[str, Any]:
    """The configured callbacks by key, in order; null or {} means none."""
    nodes = {"metrics" if name == "scores" else f"callbacks.{name}": node for name, node in cfg.callbacks.items()}
    return {where: node for where, node in nodes.items() if node is not None and node != {}}


def loggers_of(cfg: DictConfig) -> dict[str, Any]:
    """The configured loggers by key; null means none."""
    return {f"logger.{name}": node for name, node in cfg.logger.items() if node is not None}


def prepare_data(cfg: DictConfig, family: type[Family] | None) -> ImageData:
    """The data module, downloaded, checked and set up.

    Args:
        cfg: the configuration.
        family: what learns from the data or is measured on them; one that learns without pairs gets the two sides of
            paired data in independent orders. None: a folder of images, which learns nothing.

    Raises:
        UserError: data are missing, broken, or have no labels for `condition=label`, no captions for text.
    """
    data = instantiate(cfg.data, "data")
    if family is not None and isinstance(data, PairData) and "paired" not in family.accepts:
        data.unpair()
    with launch.in_turn(cache_folder()):
        data.prepare_data()
    data.setup()
    if cfg.condition == "label" and not data.classes:
        why = f" ({data.unlabelled})" if data.unlabelled else ""
        raise UserError(f"condition=label needs labels, and {data.name} has none{why}: use condition=none or other "
                        "data")
    if cfg.condition == "text" and not data.texts("train"):
        raise UserError(
            f"condition=text needs captions, and {data.name} has none: choose data=shapes, data=huggingface with "
            "data.text=<column of captions>, or data=image_folder with a.txt beside a.png"
        )
    return data


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
    if cfg.condition == "text":
        log.info("condition=text, because %s has captions (condition=none leaves them out)", data.name)


def vocabulary_of(cfg: DictConfig, data: ImageData) -> list[str] | None:
    """The vocabulary of the training captions, with `condition=text` and an encoder trained from scratch."""
    text = cfg.model.get("text")
    if cfg.condition != "text" or text is None or text.encoder != "own":
        return None
    from aigc.conditions.vocabulary import build_vocabulary

    return build_vocabulary(data.texts("train") or [], kind=text.words, size=text.size)


def device_type(accelerator: str) -> str:
    """`cuda` or `cpu`: what `trainer.accelerator` means here.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if accelerator in ("gpu", "cuda") and not cuda:
        raise UserError("trainer.accelerator=gpu, but torch sees no GPU: use trainer=cpu or trainer=auto")
    return "cuda" if cuda else "cpu"


def build_trainer(
    cfg: DictConfig, folder: Path, model: Family, record: dict[str, Any], *, precision: str | None = None
) -> L.Trainer:
    """The trainer with callbacks in the config's order and both loggers.

    Args:
        cfg: a complete training configuration.
        folder: the run folder.
        model: the family.
        record: the run's summary at its start.
        precision: what `auto` was resolved to (aigc/precision.py); None: as configured.

    Raises:
        UserError: there is no such device, or the family does not train in this precision or sharded.
    """
    callbacks = [instantiate(node, where) for where, node in callbacks_of(cfg).items()]
    loggers: list[Any] = [JsonLines(folder)]
    loggers += [
        instantiate(node, where, folder=str(folder), save_dir=str(folder), run_id=record.get("wandb_id"),
                    recipe=record["recipe"], data=record["data"]["name"])
        for where, node in loggers_of(cfg).items()
    ]
    options = to_plain(cfg.trainer)
    cuda = device_type(options["accelerator"]) == "cuda"
    options["accelerator"] = "gpu" if cuda else "cpu" if options["accelerator"] == "auto" else options["accelerator"]
    options["precision"] = precision or choose_precision(options["precision"], "cuda" if cuda else "cpu")
    processes = launch.count_devices(options["accelerator"], options["devices"]) * options["num_nodes"]
    if processes > 1 and not cuda:
        callbacks.append(OnePrecision())
    if options["strategy"] in ("auto", "ddp") and processes > 1:
        options["strategy"] = "ddp_find_unused_parameters_true" if model.find_unused_parameters else "ddp"
    if options["strategy"] == "fsdp":
        from aigc.sharded import Sharded, check_shardable

        check_shardable(model, options["precision"])
        options["strategy"] = Sharded(processes) if processes > 1 else "auto"
    environments = [found] if (found := launch.cluster()) is not None else []
    return instantiate(
        options,
        "trainer",
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO(), *environments],
        default_root_dir=str(folder),
        max_epochs=-1,                  # the loader is endless; the budget ends the run
        limit_val_batches=0,            # the scores callback looks at held-out images, counted in images seen
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loader divides the global batch itself
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(cfg: DictConfig, folder: Path, *, resumed: bool = False) -> dict[str, Any]:
    """Trains until the budget is spent or a signal arrives; returns the run's summary.

    Args:
        cfg: a complete training configuration.
        folder: the run folder.
        resumed: whether to continue from `checkpoints/last.ckpt` there, or start over where there is none yet.

    Raises:
        UserError: a mistake in what was asked; nothing has been trained.
        RunError: the run could not continue; `summary.json` says why.
    """
    family = check_pair(cfg)
    quiet()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    again = resumed or launch.requeued()
    before = read_summary(folder) if again else {}
    resumed &= checkpoint.is_file()  # a run that had not saved anything yet starts over
    data = prepare_data(cfg, family)
    if launch.rank() in (None, 0):
        for line in data.found():
            log.info("%s", line)
    settle_condition(cfg, family, data, before)
    L.seed_everything(cfg.seed, verbose=False)
    facts = {"channels": data.channels, "size": tuple(data.size), "classes": data.classes, "condition": cfg.condition,
             "vocabulary": vocabulary_of(cfg, data)}
    model: Family = instantiate(cfg.model, "model", **facts)
    model.class_names = data.class_names if cfg.condition == "label" else None
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
        before=before.get("precision") if resumed else None, first=launch.rank() in (None, 0),
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


def quiet() -> None:
    """Keeps Lightning's advice off the terminal where it does not apply here; its errors still show."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that a step frees for the next one, instead of returning it and faulting it in again.

    On two CPU cores a VAE then takes about 15% more steps, a GAN 5%, for 60 MB. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)       # M_MMAP_THRESHOLD: no separate mapping for each large tensor
        libc.mallopt(-1, 2**31 - 1)     # M_TRIM_THRESHOLD: nothing returns to the kernel before exit


def check_resumable(content: dict[str, Any], model: Family, path: Path) -> None:
    """Refuses a checkpoint of another family.

    Raises:
        UserError: says which.
    """
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if content["family"] != name:
        held = content["family"]
        raise UserError(f"'{path}' holds a {held}, the configuration asks for a {name}: resume its own run")


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
    return {
        "study": cfg.study,
        "seed": cfg.seed,
        "signature": before.get("signature") or signature(to_plain(cfg)),  # a resumed run keeps its identity
        "family": type(model).__name__,
        "condition": cfg.condition,
        "prompt": next(iter(data.texts("train") or []), None) if cfg.condition == "text" else None,
        "translates": isinstance(model, Translator),
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
