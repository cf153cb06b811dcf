"""Starts a run: in this process, or in one process a device."""

import os
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf

from aigc.cli import bars
from aigc.errors import RunError, UserError
from aigc.files.turns import rank
from aigc.runs.resume import resumed_config
from aigc.runs.summary import read_summary
from aigc.training import launch


def start(cfg: Any, hydra_config: HydraConf) -> tuple[dict[str, Any], bool]:
    """Trains as `cfg` says, in the folder that Hydra made.

    Returns:
        the run's summary, and whether this process trained; False if it started others, one a device, that did.

    Raises:
        UserError: a mistake in what was asked; nothing has been trained.
        RunError: the run could not continue; `summary.json` says why.
    """
    overrides = list(hydra_config.overrides.task)
    folder = Path(hydra_config.runtime.output_dir).resolve()
    resumed = cfg.resume is not None
    try:
        if rank() in (None, 0) and launch.RunFolder.claim is None:
            raise UserError("a run needs hydra.callbacks.run_folder, which conf/train.yaml has: keep it")
        if hydra_config.runtime.choices.get("trainer") == "slurm" and "SLURM_JOB_ID" not in os.environ:
            raise UserError("trainer=slurm is for SLURM jobs: start it with sbatch or srun, or use trainer=ddp")
        if resumed:
            cfg = resumed_config(cfg, Path(cfg.resume).expanduser().resolve(), overrides)
        resumed |= launch.requeued() and (folder / "checkpoints" / "last.ckpt").is_file()
        from aigc.data.preparing import prepare_data
        from aigc.training.compatibility import check_compatible
        from aigc.training.fit import fit

        processes = launch.count_devices(cfg.trainer.accelerator, cfg.trainer.devices)
        launch.check_world(processes, cfg.trainer.num_nodes)
        if processes == 1 or rank() is not None:
            with bars() as fetched:
                return fit(cfg, folder, resumed=resumed, progress=fetched), True
        with bars() as fetched:
            prepare_data(cfg, check_compatible(cfg).accepts, progress=fetched)
        code = launch.launch(processes, [*launch.config_dirs(hydra_config), *overrides], folder)
        summary = read_summary(folder)
        if code and summary.get("status") != "stopped":
            reason = summary.get("reason") or f"exit code {code}"
            raise RunError(f"the {processes} processes in {folder} ended early: {reason}")
        return summary, False
    except UserError as error:
        launch.leave_folder(refused=not isinstance(error, RunError))
        raise
