"""Trains a generator: `python -m aigc.train model=gan data=mnist`, `... resume=<run folder>`, `... -m seed=1,2,3`."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from aigc import cli
from aigc.errors import RunError, UserError
from aigc.files.turns import rank
from aigc.runs import verdict
from aigc.runs.resume import over_saved, resumed_config
from aigc.runs.summary import read_summary
from aigc.training import launch


def main() -> None:
    """The command line."""
    launch.end_with_parent()
    launch.follow_start()
    sys.argv[1:] = over_saved(sys.argv[1:])
    try:
        cli.run(train, "train")
    except Exception:
        if (code := verdict.wait()) is None:    # else it is what becomes of a rank that loses another
            raise
        sys.exit(code)
    finally:
        launch.leave_folder()


def train(cfg: Any) -> float | None:
    """One run: trains, and returns the monitored score for sweepers. A multirun does so in a separate process."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        from aigc.multirun.running import run_here

        return run_here(cfg, hydra_config)
    overrides = list(hydra_config.overrides.task)
    folder = Path(hydra_config.runtime.output_dir).resolve()
    resumed, first = cfg.resume is not None, rank() in (None, 0)  # Lightning removes the rank at its end
    try:
        if first and launch.RunFolder.claim is None:
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
        launching = processes > 1 and rank() is None
        if launching:
            prepare_data(cfg, check_compatible(cfg).accepts)
            code = launch.launch(processes, [*launch.config_dirs(hydra_config), *overrides], folder)
            summary = read_summary(folder)
            if code and summary.get("status") != "stopped":
                reason = summary.get("reason") or f"exit code {code}"
                raise RunError(f"the {processes} processes in {folder} ended early: {reason}")
        else:
            summary = fit(cfg, folder, resumed=resumed)
    except UserError as error:
        launch.leave_folder(refused=not isinstance(error, RunError))
        raise
    if not launching and first:
        from aigc.report.closing import closing

        print("\n".join(closing(folder, summary)))
    if summary.get("reason") == launch.REQUEUE_SIGNAL and summary["status"] == "stopped":
        if not launching and first:
            launch.requeue()
        return None  # no error: srun would kill the other processes before they end
    if summary.get("status") == "stopped":
        sys.exit(143 if summary.get("reason") == "SIGTERM" else 130)
    return (summary.get("scores") or {}).get("best")


if __name__ == "__main__":
    main()
