"""The folder of a multirun: found again by the command, described by `jobs.json`, summed up in a table.

`jobs.json` holds the `command` (overrides as typed, the space that is covered, the user's own config folders),
`started`, and `jobs`, one entry each: number, folder (in the multirun's), overrides, shown (those that tell it from
the others), status (waiting, running, finished, stopped, failed), reason, resumed, devices (GPUs), seconds (of wall
time, over all starts), score and monitor (its name). A search adds `search`: its storage, objectives and best trials.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aigc.config.words import override
from aigc.errors import RunError, UserError
from aigc.files import atomic
from aigc.runs.claim import Claim, claim_new, make, names, remove_made
from aigc.runs.lock import FolderLock, turn
from aigc.wording import aligned, counted

NAME = "jobs.json"


class Ledger:
    """`<folder>/jobs.json`, changed whole or not at all, by any process that sees the folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / NAME

    def read(self) -> dict[str, Any]:
        """The content; empty where there is none.

        Raises:
            UserError: the file of that name is not this program's.
        """
        try:
            content = json.loads(self.path.read_text()) if self.path.is_file() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"'{self.path}' cannot be read ({error}): choose another hydra.sweep.dir") from error
        if not isinstance(content, dict):
            raise UserError(f"'{self.path}' does not belong to a multirun: choose another hydra.sweep.dir")
        return content

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """The content, to be changed inside."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".jobs.lock"):
            content = self.read()
            yield content
            atomic.write(self.path, json.dumps(content, indent=1) + "\n")

    def note(self, number: int, **entries: Any) -> dict[str, Any]:
        """Merges `entries` into job `number` and returns the whole of it."""
        with self.change() as content:
            jobs = content.setdefault("jobs", [])
            job = next((job for job in jobs if job["number"] == number), None)
            if job is None:
                job = {"number": number}
                jobs.append(job)
                jobs.sort(key=lambda job: job["number"])
            job |= entries
        return job

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, by number."""
        return self.read().get("jobs", [])


def own_dirs(hydra: Any) -> list[str]:
    """The user's own folders of configuration, as `hydra.searchpath` takes them."""
    return [f"{source.schema}://{source.path}" for source in hydra.runtime.config_sources
            if source.provider.endswith("command-line")]


def is_typed(config: DictConfig) -> bool:
    """Whether the command line names the folder."""
    return any(word.startswith("hydra.sweep.dir=") for word in config.hydra.overrides.hydra)


def find_folder(config: DictConfig, command: dict[str, Any]) -> Path:
    """Where the multirun of `command` lives: hydra.sweep.dir if it was typed, else its own folder from an earlier
    start beside the one that hydra.sweep.dir would make, else that.

    Raises:
        UserError: the folder that was typed holds another multirun.
    """
    wanted = Path(str(config.hydra.sweep.dir))
    if is_typed(config):
        held = Ledger(wanted).read().get("command")
        if held is not None and held != command:
            typed = " ".join(held["overrides"])
            raise UserError(f"'{wanted}' holds another multirun ({typed}): choose another hydra.sweep.dir")
        return wanted
    return find_same(wanted.parent, command) or wanted


def find_same(parent: Path, command: dict[str, Any]) -> Path | None:
    """The newest folder of an earlier start of `command` in `parent`."""
    same = []
    for path in parent.glob(f"*/{NAME}"):
        with contextlib.suppress(UserError):  # somebody else's file of that name
            same += [path.parent] if Ledger(path.parent).read().get("command") == command else []
    return max(same, key=lambda folder: folder.name, default=None)


class Multirun:
    """One start of a multirun: alone in its folder while it lasts, a line for every job that starts or ends, whoever
    runs it, and a table at the end.

    `config`, the one that Hydra composed, is told the folder, and that jobs write their own `.hydra`.

    Raises:
        UserError: the same multirun is running elsewhere.
    """

    def __init__(self, config: DictConfig, params: dict[str, Any]):
        typed = [str(word) for word in config.hydra.overrides.task]
        if any(word.startswith("resume=") for word in typed):
            raise UserError("resume= continues one run: a multirun finds by itself what it has to resume")
        self.command = {"overrides": typed, "params": params}
        if dirs := own_dirs(config.hydra):
            self.command["config_dirs"] = dirs
        self.config, self.named = config, is_typed(config)
        self.move(find_folder(config, self.command))
        self.claim: Claim | None = None
        self.expected = 0           # jobs, where more are to come than are noted
        self.said: dict[int, tuple[Any, ...]] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def move(self, folder: Path) -> None:
        """Makes `folder` the one of this multirun."""
        self.folder, self.record = folder, Ledger(folder)
        fixed = {"hydra.sweep.dir": str(folder), "hydra.output_subdir": None}
        told = [word for word in self.config.hydra.overrides.hydra if word.partition("=")[0] not in fixed]
        OmegaConf.update(self.config, "hydra.overrides.hydra",
                         [*told, *(override(key, value) for key, value in fixed.items())])
        for key, value in fixed.items():
            OmegaConf.update(self.config, key, value)

    def __enter__(self) -> "Multirun":
        above: tuple[Path, ...] = ()
        if self.named:
            there = self.record.path.is_file()
            claim = self.enter_own() if there else claim_new(self.folder, option="hydra.sweep.dir")
            jobs = self.begin(claim)
        else:
            with contextlib.suppress(FileExistsError):
                above = make(self.folder.parent)
            try:
                with turn(self.folder.parent):  # two starts of one command meet, two commands do not
                    same = find_same(self.folder.parent, self.command)
                    self.move(same or self.folder)
                    claim = self.enter_own() if same else claim_new(self.folder, suffix=True, option="hydra.sweep.dir")
                    self.move(claim.folder)
                    jobs = self.begin(claim)
            except BaseException:
                remove_made(above)
                raise
        claim.made = (*above, *claim.made)
        self.said = {job["number"]: state(job) for job in jobs}
        done = sum(job["status"] == "finished" for job in jobs)
        again = f" resumed, {counted(done, 'job', 'is', 'are')} finished" if self.again else ""
        print(f"multirun  {self.folder}{again}", flush=True)
        self.thread.start()
        return self

    def enter_own(self) -> Claim:
        """The claim on the folder of an earlier start.

        Raises:
            UserError: it is still running.
        """
        lock = FolderLock(self.folder)
        if not lock.take():
            host, process = lock.holder()
            raise UserError(
                f"this multirun is already running, as process {process} on {host}, in '{self.folder}': wait for "
                "it, or end it and start again"
            )
        return Claim(self.folder, lock)

    def begin(self, claim: Claim) -> list[dict[str, Any]]:
        """Records whose folder it is; returns the jobs of earlier starts."""
        self.claim, self.again = claim, self.record.path.is_file()
        with self.record.change() as content:
            content.setdefault("command", self.command)
            content.setdefault("started", datetime.now(UTC).isoformat(timespec="seconds"))
            jobs = content.setdefault("jobs", [])
            for job in jobs:
                if job["status"] == "running":  # when an earlier start was killed
                    job["status"] = "waiting"
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        return jobs

    def watch(self) -> None:
        """Reports what jobs do until it ends; jobs of other launchers run in processes that nobody sees."""
        while not self.over.wait(0.3):
            self.say()

    def say(self) -> None:
        """A line for every job that has started or ended since the last look."""
        jobs = self.record.jobs()
        for job in jobs:
            if job["status"] != "waiting" and self.said.get(job["number"]) != state(job):
                self.said[job["number"]] = state(job)
                head = f"[{job['number'] + 1}/{max(self.expected, len(jobs))}] {job['folder']}"
                print(f"{head}  {shortened(rounded(job['shown']), 80)}  {told(job)}", flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.claim is not None
        self.show()
        new = set(names(self.folder)) - (self.claim.before or set())
        begun = self.again or any((self.folder / name).is_dir() for name in new)
        if not begun and all(job["status"] == "waiting" for job in self.record.jobs()):  # refused before the first one
            for name in new & {NAME, ".jobs.lock", "multirun.yaml", "study.db"}:
                (self.folder / name).unlink(missing_ok=True)
        self.claim.release()

    def show(self) -> None:
        """Reports what is left and prints the table of all jobs, once."""
        if self.over.is_set():
            return
        self.over.set()
        self.thread.join()
        self.say()
        jobs = self.record.jobs()
        if any(job["status"] != "waiting" for job in jobs):
            print(f"\n{table(jobs)}", flush=True)

    def check(self) -> None:
        """Refuses to finish while jobs are left.

        Raises:
            RunError: says how many, and what to do.
        """
        jobs = self.record.jobs()
        counts = {status: sum(job["status"] == status for job in jobs) for status in LEFT}
        if left := [f"{count} {status}" for status, count in counts.items() if count]:
            raise RunError(
                f"of {counted(len(jobs), 'job')} {' and '.join(left)}: see output.log in their folders in "
                f"'{self.folder}'; the same command tries them again"
            )


LEFT = ("failed", "stopped", "running", "waiting")  # what the same command would start again


def state(job: dict[str, Any]) -> tuple[Any, ...]:
    """The facts of a job that are worth a line when they change."""
    return job["status"], job.get("reason"), job.get("seconds")


def told(job: dict[str, Any]) -> str:
    """What a job has just done."""
    if job["status"] == "running":
        return "goes on" if job.get("resumed") else "started"
    seconds = int(job.get("seconds") or 0)
    text = f"{job['status']} after {seconds // 60}:{seconds % 60:02}" + (f": {job['reason']}" if job["reason"] else "")
    return text + (f", {job['monitor']} {job['score']:.4g}" if job.get("score") is not None else "")


def table(jobs: list[dict[str, Any]]) -> str:
    """A line a job: its folder, what tells it from the others, how it ended, minutes and score."""
    monitor = {job["monitor"] for job in jobs if job.get("monitor")}
    head = ("job", "options", "status", "minutes", monitor.pop() if len(monitor) == 1 else "score")
    rows = []
    for job in jobs:
        status = f"{job['status']}: {job['reason']}" if job.get("reason") else job["status"]
        seconds, score = job.get("seconds"), job.get("score")
        rows.append((
            job["folder"], rounded(job["shown"]), shortened(status),
            "" if seconds is None else f"{seconds / 60:.1f}", "" if score is None else f"{score:.4g}",
        ))
    return aligned(head, rows, right=(3, 4))


def rounded(text: str) -> str:
    """`text` with its long decimal numbers in four digits."""
    return re.sub(r"\d+\.\d{5,}(?:e[+-]?\d+)?", lambda found: f"{float(found[0]):.4g}", text)


def shortened(text: str, length: int = 60) -> str:
    """`text` on one line of at most `length` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
