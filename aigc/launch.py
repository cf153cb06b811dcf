"""Several processes: who this one is, and starting one process a device with torchrun."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
)


def rank() -> int | None:
    """This process's rank under torchrun or srun; None where it is alone."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"])
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        return int(os.environ["SLURM_PROCID"])
    return None


def private_folder() -> str:
    """A temporary folder for a rank other than 0, which writes nothing that is kept; removed at exit."""
    import atexit

    folder = tempfile.mkdtemp(prefix="aigc_rank_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def count_devices(accelerator: str, devices: Any) -> int:
    """How many processes `trainer.devices` means on this node."""
    import torch

    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if isinstance(devices, list | tuple):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() if cuda else 1
    if isinstance(devices, str) and "," in devices:
        return len([d for d in devices.split(",") if d.strip()])
    return int(devices)


def launch(processes: int, overrides: Sequence[str], folder: Path) -> int:
    """Runs `python -m aigc.train` with `overrides` once a device on this node, all in `folder`; returns the exit code.

    SIGINT and SIGTERM are handed on, so that every process ends after the same step.
    """
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    extra = [word for i, word in enumerate(sys.argv) if "--config-dir" in (word.split("=")[0], sys.argv[i - 1])]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "aigc.train", *extra, *overrides, f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    previous = {
        number: signal.signal(number, lambda *_: child.send_signal(signal.SIGTERM))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
