"""Trains a generator: `python -m aigc.train model=gan data=mnist`, `... resume=<run folder>`, `... -m seed=1,2,3`."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from aigc import cli
from aigc.files.turns import rank
from aigc.runs import verdict
from aigc.runs.resume import over_saved
from aigc.training import launch
from aigc.training.start import start


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
    first = rank() in (None, 0)                 # Lightning removes the rank at its end
    summary, trained_here = start(cfg, hydra_config)
    if trained_here and first:
        from aigc.report.closing import closing

        print("\n".join(closing(Path(hydra_config.runtime.output_dir).resolve(), summary)))
    if summary.get("reason") == launch.REQUEUE_SIGNAL and summary["status"] == "stopped":
        if trained_here and first:
            print(launch.requeue(), flush=True)
        return None                             # no error: srun would kill the other processes before they end
    if summary.get("status") == "stopped":
        sys.exit(143 if summary.get("reason") == "SIGTERM" else 130)
    return (summary.get("scores") or {}).get("best")


if __name__ == "__main__":
    main()
