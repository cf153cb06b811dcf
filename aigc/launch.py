"""Several processes: who this one is, and starting one process a device."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK",
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)
GRACE_SECONDS = 60  # between the failure of one process and the end of those that do not notice


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
    """Runs `python -m aigc.train` with `overrides` once a device on this node, all in `folder`.

    What torchrun does for one node, without its traceback where a process ends on purpose. SIGINT and SIGTERM are
    handed on, so that every process ends after the same step; when one fails, the others are ended.

    Returns:
        0, or the exit code of the first process that failed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    extra = [word for i, word in enumerate(sys.argv) if "--config-dir" in (word.split("=")[0], sys.argv[i - 1])]
    command = [sys.executable, "-m", "aigc.train", *extra, *overrides]
    command += [f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
    children = [
        subprocess.Popen(command, env=environment | {"RANK": str(k), "LOCAL_RANK": str(k)}, start_new_session=True)
        for k in range(processes)
    ]

    def end_all(number: int = signal.SIGTERM, frame: object = None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    previous = {number: signal.signal(number, end_all) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        failed = 0
        while any(child.poll() is None for child in children):
            time.sleep(0.1)
            if not failed and (codes := [child.returncode for child in children if child.returncode]):
                failed, deadline = codes[0], time.monotonic() + GRACE_SECONDS
                end_all()
            if failed and time.monotonic() > deadline:
                for child in children:
                    child.kill()
        return failed or next((child.returncode for child in children if child.returncode), 0)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
