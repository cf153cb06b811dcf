"""The Hydra plugins of aigc: a launcher and two sweepers. Hydra finds plugins only in the `hydra_plugins` namespace;
it imports this file whenever any Hydra program of this environment starts, so nothing heavy is imported here.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class Processes(Launcher):
    """`hydra/launcher=processes`: each job is a new process on this machine (aigc/multirun/jobs.py)."""

    def __init__(
        self,
        max_parallel: int | None = None,  # jobs at once; None: one per GPU, or one
    ):
        self.max_parallel = max_parallel

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what is needed to compose jobs."""
        from aigc.multirun.devices import Devices

        self.loader, self.config, self.devices = hydra_context.config_loader, config, Devices(self.max_parallel)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch of jobs; a failed one returns None."""
        from aigc.multirun.devices import need_of
        from aigc.multirun.jobs import compose_batch

        jobs = compose_batch(self.loader, self.config, job_overrides, initial_job_idx)
        for job in jobs:
            need_of(job.trainer)  # refuses before the first one starts
        scores: dict[int, float | None] = {}
        self.stream(iter(jobs), expected=initial_job_idx + len(jobs),
                    ended=lambda job, entry: scores.update({job.number: entry.get("score")}))
        return [
            JobReturn(overrides=job.overrides, working_dir=str(job.folder), status=JobStatus.COMPLETED,
                      _return_value=scores[job.number])
            for job in jobs
        ]

    def stream(
        self,
        jobs: Iterator[Any],
        *,
        expected: int,
        ended: Callable[[Any, dict[str, Any]], None] = lambda job, entry: None,
    ) -> None:
        """Runs `aigc.multirun.jobs.Job`s as they come; calls `ended` with each and its entry in jobs.json."""
        from aigc.multirun.ledger import Ledger
        from aigc.multirun.running import ending_by_exception, run_jobs

        record = Ledger(self.config.hydra.sweep.dir)
        with ending_by_exception():
            run_jobs(jobs, record, self.devices, expected=expected, ended=ended)


class Multiruns(Sweeper):
    """The common start of both sweepers."""

    def __init__(self, **options: Any):
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Chooses the folder, then creates the launcher."""
        from aigc.multirun.ledger import Multirun

        self.options = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in self.options.items()}
        self.multirun = Multirun(config, {key: str(value) for key, value in (self.options["params"] or {}).items()})
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )


class Grid(Multiruns):
    """`hydra/sweeper=grid`: every combination, in a folder that repeating the command finds again."""

    def sweep(self, arguments: list[str]) -> None:
        """Runs all jobs, all composed before the first one starts; raises a RunError at the end if some failed."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from aigc.errors import check_count
        from aigc.multirun.devices import need_of
        from aigc.multirun.jobs import compose_batch, note_waiting
        from aigc.multirun.running import launch_elsewhere
        from aigc.multirun.search.space import check_listed

        assert self.hydra_context is not None and self.config is not None
        check_count("hydra.sweeper.max_batch_size", self.options["max_batch_size"], optional=True)
        loader = self.hydra_context.config_loader
        words = [*(f"{key}={value}" for key, value in (self.options["params"] or {}).items()), *arguments]
        check_listed(words)
        stream = getattr(self.launcher, "stream", None)
        with self.multirun:
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
            jobs = compose_batch(loader, self.config, combinations(overrides), 0)
            for job in jobs if stream else []:
                need_of(job.trainer)
            note_waiting(jobs, self.multirun.record)
            size = self.options["max_batch_size"] or max(1, len(jobs))
            for batch in (jobs[k : k + size] for k in range(0, len(jobs), size)):
                if stream:
                    stream(iter(batch), expected=len(batch))
                else:
                    launch_elsewhere(self.launcher, batch, self.multirun.record)
        self.multirun.check()


def combinations(overrides: list[Any]) -> list[list[str]]:
    """Hydra's combinations, with `~x` as typed: Hydra turns it into `~x=null`, which deletes no group."""
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return [[word.removesuffix("=null") if word.startswith("~") else word for word in words] for words in batch]


class Search(Multiruns):
    """`hydra/sweeper=optuna`: Optuna chooses what the jobs of any launcher try (aigc/multirun/search/sweep.py)."""

    def sweep(self, arguments: list[str]) -> None:
        """Searches until `n_trials` are done; prints and saves the best."""
        from aigc.multirun.search.sweep import search

        with self.multirun:
            search(self, arguments)
