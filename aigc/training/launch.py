"""Several processes: the rank of this one, who started it, starting one process per device, and requeues by SLURM."""

import contextlib
import ctypes
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

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from aigc.cli import say
from aigc.config.schema import to_plain
from aigc.config.words import override
from aigc.errors import UserError
from aigc.files.turns import rank
from aigc.runs import verdict
from aigc.runs.claim import Claim, claim_again, claim_inherited, claim_new, claim_own
from aigc.runs.lock import VARIABLE as LOCK_VARIABLE
from aigc.wording import counted

RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK",
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)
PARENT_VARIABLE = "AIGC_PARENT"  # the parent process, without which a job or a rank ends
REQUEUE_SIGNAL = "SIGUSR1"  # sent by `sbatch --signal=SIGUSR1@120` before the time limit
TIMED = "${now:"  # in a configured folder name: every start gets its own folder
private_folders: list[str] = []  # temporary ones of a rank other than 0
GRACE_SECONDS = 60  # from the failure of one process to the kill of the remaining ones


def world_size() -> int | None:
    """How many processes torchrun or srun started; None if neither did."""
    if rank() is None:
        return None
    return int(os.environ["WORLD_SIZE"] if "RANK" in os.environ else os.environ["SLURM_NTASKS"])


def follow_start() -> None:
    """Has a rank end when another one of its start is refused (aigc/runs/verdict.py)."""
    if (number := rank()) is None:
        return
    from aigc.files.cache import cache_folder

    def end(code: int) -> None:
        leave_folder(refused=code == 2)
        for folder in private_folders:
            shutil.rmtree(folder, ignore_errors=True)

    with contextlib.suppress(UserError):                   # without a folder each of them speaks for itself
        verdict.follow(number, cache_folder(), end)


def check_world(processes: int, nodes: int) -> None:
    """Refuses to wait for processes that nobody started.

    Args:
        processes: number per node.
        nodes: number of machines.

    Raises:
        UserError: a different number of processes was started.
    """
    if type(nodes) is not int or nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes} must be a whole number of at least 1")
    started, wanted = world_size(), processes * nodes
    if started is None and nodes > 1:
        raise UserError(f"trainer.num_nodes={nodes} needs a process on every node: start it with torchrun or srun")
    if started is not None and started != wanted:
        raise UserError(
            f"{counted(started, 'process', 'was', 'were')} started, trainer.devices={processes} times "
            f"trainer.num_nodes={nodes} are {wanted}: make them equal"
        )


def cluster() -> Any | None:
    """The cluster environment that Lightning should use for ranks; None: the one that it detects.

    Inside a SLURM job it would mistake a process of `launch` for one of srun's, and handle signals itself.
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_NTASKS" not in os.environ:
        return None
    own = "LOCAL_RANK" in os.environ or rank() is None
    return LightningEnvironment() if own else SLURMEnvironment(auto_requeue=False)


def requeued() -> bool:
    """Whether this is a requeued SLURM job, or a process that torchrun restarted after a failure."""
    return any(int(os.environ.get(name, 0)) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def requeue() -> str:
    """Requeues this SLURM job; returns a line that says so.

    Raises:
        UserError: SLURM refuses.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        reason = done.stderr.strip() if done.returncode else None
    except OSError as error:
        reason = str(error)
    if reason is not None:
        raise UserError(f"SLURM did not requeue job {job} ({reason}): submit it again with resume=<run folder>")
    return f"requeued: SLURM job {job} will resume from its checkpoint"


class RunFolder(Callback):
    """Chooses a run's folder before Hydra creates it, and refuses one that the run must not use (conf/train.yaml).

    Hydra would only warn of an error here, so this prints the message and ends the process.
    """

    claim: Claim | None = None  # of this process; None if another one holds it, or before it is made

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Sets `hydra.run.dir`, and `hydra.output_subdir` if another start keeps the record."""
        try:
            settle_folder(config)
        except OmegaConfBaseException:  # Hydra is about to report it
            return
        except OSError as error:
            raise SystemExit(say(UserError(f"'{error.filename}' cannot be used ({error.strerror})"))) from error
        except UserError as error:
            raise SystemExit(say(error)) from error


def settle_folder(config: DictConfig) -> None:
    """Claims the folder of the run in `config`, and sets it there; all ranks share one claim.

    Raises:
        UserError: it is in use, belongs to another run, or cannot be created.
    """
    first, again = rank() in (None, 0), requeued()
    HydraConfig.instance().set_config(config)  # as Hydra does next: the folder's name may refer to it
    named = TIMED not in str(to_plain(config.hydra.run, resolve=False)["dir"])
    record = config.hydra.output_subdir
    if config.get("resume") is not None:
        folder, record = Path(config.resume).expanduser().resolve(), None
        if not (folder / ".hydra" / "config.yaml").is_file():
            raise UserError(f"resume='{folder}' is not a run folder: it has no .hydra/config.yaml")
        typed = any(str(word).startswith("hydra.run.dir=") for word in config.hydra.overrides.hydra)
        if typed and Path(str(config.hydra.run.dir)).expanduser().resolve() != folder:
            raise UserError(f"a run is resumed in its own folder, '{folder}': leave hydra.run.dir out")
        if first:
            RunFolder.claim = claim_inherited(folder) or claim_own(folder)
    else:
        folder = Path(str(config.hydra.run.dir)).expanduser().resolve()
        if not first:  # reads an existing folder to continue, and writes nothing
            folder, record = folder if named and again else Path(private_folder()), None
        elif (claim := claim_inherited(folder)) is None:
            claim = claim_again(folder) if named and again else claim_new(folder, suffix=not named)
            folder = claim.folder
        if first:
            RunFolder.claim = claim
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.run.dir, config.hydra.output_subdir = str(folder), record


def leave_folder(*, refused: bool = False) -> None:
    """Ends this process's claim; removes what it created if it was refused, or ended before training."""
    claim, RunFolder.claim = RunFolder.claim, None
    if claim is None:
        return
    if refused or not (claim.folder / "summary.json").is_file():
        claim.discard()
    claim.release()


def private_folder() -> str:
    """A temporary folder, removed at exit, for a rank other than 0, which writes nothing of value."""
    import atexit

    folder = tempfile.mkdtemp(prefix="aigc_rank_")
    private_folders.append(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def count_devices(accelerator: str, devices: Any) -> int:
    """The number of processes that `trainer.devices` means on this node.

    Raises:
        UserError: it is invalid.
    """
    import torch

    cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if isinstance(devices, Sequence) and not isinstance(devices, str) and len(devices):  # also OmegaConf's lists
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() if cuda else 1
    if isinstance(devices, str) and "," in devices:
        return len([d for d in devices.split(",") if d.strip()])
    try:
        number = int(devices)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise UserError(f"trainer.devices={devices} is not a number of devices: give 1 or more, a list, or auto")
    return number


def ending_signals() -> list[signal.Signals]:
    """The signals that end a run after the current step; in a SLURM job, also the one that asks for a requeue.

    A signal that this process inherited as ignored stays ignored: Ctrl-C in a shell script must not end the script's
    `command &`.
    """
    requeue = [signal.Signals[REQUEUE_SIGNAL]] if "SLURM_JOB_ID" in os.environ else []
    return [number for number in (signal.SIGINT, signal.SIGTERM, *requeue)
            if signal.getsignal(number) is not signal.SIG_IGN]


def config_dirs(hydra: Any) -> list[str]:
    """The `--config-dir` of the command line behind this `hydra` node."""
    return [f"--config-dir={source.path}" for source in hydra.runtime.config_sources
            if source.provider == "command-line"]


def end_with_parent() -> None:
    """Makes the kernel send SIGTERM to this job or rank when its parent process ends, even by SIGKILL.

    Only on Linux; elsewhere this does nothing.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != int(parent):
            sys.exit(143)                           # the parent has already ended


def launch(processes: int, words: Sequence[str], folder: Path) -> int:
    """Runs `python -m aigc.train` with `words` once per device on this node, all in `folder`.

    Does the job of torchrun for one node, without its traceback when a process ends on purpose. Signals are forwarded,
    so every process ends after the same step; if one fails, the others are ended.

    Returns:
        0, or the exit code of the first process that failed.
    """
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    environment[PARENT_VARIABLE] = str(os.getpid())
    environment[verdict.VARIABLE] = f"{environment['MASTER_PORT']} of {os.getpid()} at {time.time()}"
    lock = RunFolder.claim.lock.descriptor if RunFolder.claim is not None else None
    if lock is not None:
        environment[LOCK_VARIABLE] = str(lock)
    where = [override("hydra.run.dir", str(folder)), "hydra.output_subdir=null"]
    command = [sys.executable, "-m", "aigc.train", *words, *where]
    children = [
        subprocess.Popen(command, env=environment | {"RANK": str(k), "LOCAL_RANK": str(k)}, start_new_session=True,
                         pass_fds=() if lock is None else (lock,))
        for k in range(processes)
    ]

    def end_all(number: int = signal.SIGTERM, frame: object = None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    previous = {number: signal.signal(number, end_all) for number in ending_signals()}
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


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
