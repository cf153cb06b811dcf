"""Runs jobs side by side: if one fails, the others continue; Ctrl-C ends all of them, with checkpoints."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aigc.errors import UserError
from aigc.multirun.devices import Devices
from aigc.multirun.jobs import Job
from aigc.multirun.ledger import Ledger
from aigc.runs.claim import check_free
from aigc.runs.lock import VARIABLE as LOCK_VARIABLE
from aigc.runs.lock import FolderLock
from aigc.runs.summary import read_summary, write_summary
from aigc.training import launch
from aigc.wording import counted

OUTPUT = "output.log"        # what a job prints, in its folder
STOP = "stop"                # a file of this name in a job's folder ends it with a checkpoint; it says why
ORPHAN_SECONDS = 60          # that a job of an earlier start, which lost its parent, gets to save and end
QUIET_SECONDS = 30           # without anybody at work, after which no job of a launcher that gave up will start


@dataclass
class Running:
    """A job that runs."""

    job: Job
    process: subprocess.Popen
    lock: FolderLock
    since: float
    stopped: str | None = None   # why it was asked to end


def run_jobs(
    jobs: Iterator[Job],
    record: Ledger,
    devices: Devices,
    *,
    expected: int = 1,
    ended: Callable[[Job, dict[str, Any]], None] = lambda job, entry: None,
) -> None:
    """Runs `jobs`, as many at once as `devices` allow; finished ones are skipped, interrupted ones resumed.

    A job that fails is noted, and the others continue. Whatever ends this (Ctrl-C, SIGTERM, an error) first ends the
    jobs, with checkpoints; when it is killed, the kernel tells them to (see `launch.end_with_parent`).

    Args:
        jobs: asked for the next one only when there is a place for it.
        record: where their state is noted.
        devices: what is shared out.
        expected: how many jobs will come, about.
        ended: called with every job and its entry in the record, also with those that were finished before.
    """
    running: list[Running] = []
    following: Job | None = None
    more = True
    try:
        while running or more:
            while more and not devices.full:
                following = following or next(jobs, None)
                more = following is not None
                told = devices.take(following.number, following.trainer, jobs=expected) if following else None
                if following is None or told is None:
                    break
                begun = begin(following, record, told)
                if isinstance(begun, Running):
                    running.append(begun)
                else:
                    devices.give_back(following.number)
                    ended(following, begun)
                following = None
            time.sleep(0.1)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                devices.give_back(one.job.number)
                ended(one.job, conclude(one, record))
            for one in running:
                if one.stopped is None and (one.job.folder / STOP).is_file():
                    one.stopped = (one.job.folder / STOP).read_text().strip() or "asked to"
                    one.process.send_signal(signal.SIGTERM)
    except BaseException:
        end(running)
        for one in running:
            ended(one.job, conclude(one, record))
        raise


def launch_elsewhere(launcher: Any, jobs: Sequence[Job], record: Ledger) -> list[dict[str, Any]]:
    """Hands jobs of consecutive numbers to a launcher of another package, until nothing works on them any more.

    A job that it lost, say because its supervisor was killed, is noted as failed; the others continue.

    Returns:
        their entries.
    """
    reasons: list[object]
    try:
        returns = launcher.launch([job.overrides for job in jobs], jobs[0].number)
        reasons = [returned._return_value for returned in returns]
    except Exception as error:  # whatever the package raises
        reasons = [f"{type(error).__name__}: {error}".strip().splitlines()[0]] * len(jobs)
        at_work = -math.inf
        while (busy := any(in_use(job.folder) for job in jobs)) or time.monotonic() - at_work < QUIET_SECONDS:
            at_work = time.monotonic() if busy else at_work
            time.sleep(0.5)
    noted = {entry["number"]: entry for entry in record.jobs()}
    entries = []
    for job, reason in zip(jobs, reasons, strict=True):
        entry = noted.get(job.number, {"status": "waiting"})
        if entry["status"] in ("waiting", "running"):
            entry = skipped(job, record) or failed(job, record, f"the launcher lost it: {reason}")
        entries.append(entry)
    return entries


def in_use(folder: Path) -> bool:
    """Whether somebody works in a job's folder."""
    lock = FolderLock(folder)
    if not lock.path.is_file():
        return False
    free = lock.take()
    lock.release()
    return not free


@contextmanager
def ending_by_exception() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit, as SIGINT raises KeyboardInterrupt, so that jobs can be ended."""
    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    own = threading.current_thread() is threading.main_thread()
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if own and signal.getsignal(n) != signal.SIG_IGN]  # nohup
    previous = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def skipped(job: Job, record: Ledger) -> dict[str, Any] | None:
    """The entry of a job that need not or cannot run: it is finished, or its folder is another's. None: run it."""
    try:
        if not job.finished:
            return None
    except UserError as error:
        return failed(job, record, str(error))
    return record.note(job.number, status="finished", reason=None, **job.facts, **result(job.folder))


def failed(job: Job, record: Ledger, reason: str) -> dict[str, Any]:
    """Notes a job that could not be started."""
    return record.note(job.number, status="failed", reason=reason, **job.facts)


def begin(job: Job, record: Ledger, told: dict[str, str]) -> Running | dict[str, Any]:
    """Starts the job's process; or the entry of a job that needs none, or whose folder is in use."""
    if (entry := skipped(job, record)) is not None:
        return entry
    lock = FolderLock(job.folder)
    try:
        if not is_begun(job, record):
            check_free(job.folder, "hydra.sweep.dir")
        lock.take_over(ORPHAN_SECONDS)
    except UserError as error:
        return failed(job, record, str(error))
    if (entry := skipped(job, record)) is not None:  # an orphan has come to its end meanwhile
        lock.release()
        return entry
    (job.folder / STOP).unlink(missing_ok=True)
    command = job.command()
    record.note(job.number, status="running", reason=None, devices=told.get("CUDA_VISIBLE_DEVICES"),
                resumed=any(word.startswith("resume=") for word in command), **job.facts)
    environment = {k: v for k, v in os.environ.items() if k not in launch.RANK_VARIABLES}
    assert lock.descriptor is not None
    environment |= {launch.PARENT_VARIABLE: str(os.getpid()), LOCK_VARIABLE: str(lock.descriptor),
                    "PYTHONUNBUFFERED": "1", **told}
    with open(job.folder / OUTPUT, "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C is for the parent, which ends them
            pass_fds=(lock.descriptor,),
        )
    lock.note(process.pid)
    return Running(job, process, lock, time.monotonic())


def is_begun(job: Job, record: Ledger) -> bool:
    """Whether an earlier start has had this job in its folder, so that what is there is the job's."""
    if not job.folder.is_dir():
        return True
    return any(entry["number"] == job.number and "resumed" in entry for entry in record.jobs())


def conclude(one: Running, record: Ledger) -> dict[str, Any]:
    """Notes how a job ended and frees its folder; returns its entry."""
    job, code = one.job, one.process.returncode
    summary = read_summary(job.folder)
    status, reason = "failed", summary.get("reason")
    if code == 0 and summary.get("status") == "finished":
        status, reason = "finished", None
    elif one.stopped is not None or code in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        status, reason = "stopped", one.stopped or reason or "before it had trained"
    elif code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
    elif summary.get("status") != "failed" or not reason:
        reason = last_words(job.folder / OUTPUT) or f"exit code {code}"
    if summary and (summary["status"], summary["reason"]) != (status, reason):
        write_summary(job.folder, status=status, reason=reason)
    seconds = time.monotonic() - one.since
    earlier = next((entry.get("seconds") or 0.0 for entry in record.jobs() if entry["number"] == job.number), 0.0)
    entry = record.note(job.number, status=status, reason=reason, seconds=round(earlier + seconds, 1),
                        **result(job.folder))
    one.lock.release()
    return entry


def end(running: list[Running]) -> None:
    """Ends jobs, with checkpoints; each further Ctrl-C is more urgent."""
    urgency = [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]
    if running:
        print(f"ending {counted(len(running), 'job')}, with checkpoints; Ctrl-C again to end them at once", flush=True)
    while running:
        for one in running:
            with suppress(ProcessLookupError):
                one.process.send_signal(urgency[0])
            one.stopped = one.stopped or "interrupted"
        try:
            for one in running:
                one.process.wait()
            return
        except BaseException:
            urgency = urgency[1:] or [signal.SIGKILL]


def result(folder: Path) -> dict[str, Any]:
    """The results of a run so far."""
    scores = read_summary(folder).get("scores") or {}
    return {"score": scores.get("best"), "monitor": scores.get("monitor")}


def last_words(path: Path) -> str | None:
    """The last line that a job printed, without the program's name."""
    with suppress(OSError):
        lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("aigc: ") if lines else None
    return None


def run_here(config: Any, hydra: Any) -> float | None:
    """The task of a launcher from another package: supervises one job where that launcher put it.

    Returns:
        the monitored score; None when the job failed, which jobs.json says, or has none.
    """
    entries: list[dict[str, Any]] = []
    job, record = Job.of(config, hydra), Ledger(hydra.sweep.dir)
    job.shown = next((entry["shown"] for entry in record.jobs() if entry["number"] == job.number), job.shown)
    run_jobs(iter([job]), record, Devices(parallel=1), ended=lambda job, entry: entries.append(entry))
    return entries[0].get("score")
