"""Divides the machine among jobs that run at once: whole GPUs, and the CPU's threads in equal shares."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from aigc.errors import UserError, check_count
from aigc.wording import counted


@dataclass
class Need:
    """What one job takes: `processes`, one a device; on a GPU machine `gpus`, None where it trains on the CPU.

    `gpus` is a number of GPUs, or the indices of those that the job names itself.
    """

    processes: int
    gpus: int | tuple[int, ...] | None = None


@cache
def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    told = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = [str(index) for index in range(torch.cuda.device_count())]
    return tuple(told[: len(names)] or names)


def need_of(trainer: Mapping[str, Any]) -> Need:
    """What a job with this `trainer` takes.

    Raises:
        UserError: it asks for more GPUs than there are, or for something that is not a number.
    """
    devices = trainer["devices"]
    if isinstance(devices, str) and "," in devices:
        devices = [part.strip() for part in devices.split(",") if part.strip()]
    if isinstance(devices, list):
        known = bool(devices) and all(re.fullmatch(r"\d+", str(index)) for index in devices)
    else:
        known = re.fullmatch(r"auto|-1|[1-9]\d*", str(devices)) is not None
    if not known:
        raise UserError(f"trainer.devices={devices} is unknown: give a number, a list of indices, or auto")
    there = len(gpus()) if trainer["accelerator"] in ("auto", "gpu", "cuda") else 0
    if isinstance(devices, list):
        chosen = tuple(int(index) for index in devices)
        return Need(len(chosen), chosen if there else None)
    count = max(1, there) if devices in ("auto", -1, "-1") else int(devices)
    if there and count > there:
        raise UserError(f"trainer.devices={count}, but this machine has {counted(there, 'GPU')}: choose at most that "
                        "many")
    return Need(count, count if there else None)


class Devices:
    """What is free for the next job.

    With `parallel` jobs at once asked for, as many run, and share GPUs where there are too few. Without, every GPU
    has one job at a time, and on a CPU the jobs come one after the other, each with all threads: a budget in minutes
    then buys as much as for a run alone.
    """

    def __init__(
        self,
        parallel: int | None = None,    # jobs at once; None: see above
        cores: int | None = None,       # CPU cores; None: those that this process may use
    ):
        check_count("hydra.launcher.max_parallel", parallel, optional=True)
        self.parallel = parallel
        self.cores = cores or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [None])
        self.load: Counter[int] = Counter()
        self.running: dict[int, tuple[int, ...]] = {}

    @property
    def full(self) -> bool:
        """Whether no further job can have a place, whatever it needs."""
        if self.parallel is not None:
            return len(self.running) >= self.parallel
        return bool(self.running) and all(self.load[index] for index in range(len(gpus()) if self.load else 0))

    def at_once(self, need: Need, jobs: int) -> int:
        """How many of `jobs` jobs with this need run at once."""
        if self.parallel is not None:
            return min(self.parallel, jobs)
        return min(len(gpus()) // need.gpus, jobs) if isinstance(need.gpus, int) else 1

    def take(self, number: int, trainer: Mapping[str, Any], *, jobs: int) -> dict[str, str] | None:
        """The environment of job `number`, whose devices are now its own; None: there is no free place yet.

        Args:
            number: of the job.
            trainer: its options of that name.
            jobs: how many there are in all, so that few jobs get more threads each.

        Raises:
            UserError: it asks for more GPUs than there are.
        """
        need = need_of(trainer)
        if self.full or (self.parallel is None and need.gpus is None and self.running):
            return None
        chosen: tuple[int, ...] = ()
        if isinstance(need.gpus, tuple):
            chosen = need.gpus
        elif need.gpus is not None:
            least = sorted(range(len(gpus())), key=lambda index: (self.load[index], index))
            chosen = tuple(sorted(least[: need.gpus]))
        if self.parallel is None and any(self.load[index] for index in chosen):
            return None
        self.running[number] = chosen
        self.load.update(chosen)
        environment = {}
        if isinstance(need.gpus, int):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus()[index] for index in chosen)
        shares = self.at_once(need, jobs) * need.processes
        if shares > 1 and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, self.cores // shares))
        return environment

    def give_back(self, number: int) -> None:
        """Job `number` has ended."""
        self.load.subtract(self.running.pop(number))
