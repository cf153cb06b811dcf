"""The Lightning trainer of a run: device, precision, strategy, callbacks and loggers."""

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig

from aigc.config.schema import to_plain
from aigc.config.targets import instantiate
from aigc.errors import UserError
from aigc.models.checkpoints import AtomicCheckpointIO
from aigc.models.family import Family
from aigc.training import launch
from aigc.training.compatibility import callbacks_of, loggers_of
from aigc.training.loggers import JsonLines
from aigc.training.precision import OnePrecision, choose_precision


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
        precision: what `auto` was resolved to (aigc/training/precision.py); None: as configured.

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
        from aigc.training.sharded import Sharded, check_shardable

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


def quiet() -> None:
    """Keeps Lightning's advice off the terminal where it does not apply here; its errors still show."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
