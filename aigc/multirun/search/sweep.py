"""A search: Optuna proposes, jobs of any launcher try, and their reports decide what is proposed or stopped next.

The study is in a database and the jobs in the folder of the search, so a killed search can be resumed: trials that
were running resume in their folders, finished ones are told, the rest are proposed.
"""

import contextlib
import math
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from aigc.errors import RunError, UserError, check_count, choices
from aigc.multirun.devices import need_of
from aigc.multirun.jobs import Job, compose_job
from aigc.multirun.ledger import own_dirs, shortened
from aigc.multirun.running import STOP, launch_elsewhere
from aigc.multirun.search.best import save_experiment
from aigc.multirun.search.objectives import MONITORED, entries_of, logged, monitored, objectives_of
from aigc.multirun.search.optuna_study import hidden, open_study
from aigc.multirun.search.space import read_space, sampled, words_of
from aigc.runs.summary import read_summary
from aigc.wording import counted

WATCH_SECONDS = 1.0          # between two looks at what the jobs have logged
FOLDER = "folder"            # the trial's attribute that says whose search it belongs to


def search(plugin: Any, arguments: Sequence[str]) -> None:
    """Searches until there have been `n_trials` trials, prints the best and saves it as an experiment.

    Args:
        plugin: the sweeper, with its options, Hydra's configuration and the launcher (hydra_plugins/aigc_multirun.py).
        arguments: the overrides as typed.

    Raises:
        UserError: Optuna is missing, there is nothing to search, an option or a value of a list does not fit, the
            study is another search's, or an objective does not exist.
        RunError: one trial after the other failed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'aigc[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    searching = Searching(plugin, arguments)
    plugin.multirun.expected = searching.n_trials
    try:
        with searching.watching():
            if searching.stream is not None:
                searching.stream(searching.jobs(), expected=searching.n_trials, ended=searching.ended)
            else:
                searching.in_batches()
    except BaseException:
        with contextlib.suppress(Exception):  # why it ended says more
            searching.conclude()
        raise
    found = searching.conclude()
    if searching.failures_left <= 0:
        raise RunError(f"the search gave up: {counted(searching.failures, 'trial')} failed in a row, see their "
                       "output.log")
    if not found:
        raise RunError("no trial of the search has finished: see their output.log")


class Searching:
    """One start of a search."""

    def __init__(self, plugin: Any, arguments: Sequence[str]):
        import optuna

        options = plugin.options
        for name, optional in {"n_trials": True, "n_jobs": False, "failures": False}.items():
            check_count(f"hydra.sweeper.{name}", options[name], optional=optional)
        self.plugin, self.loader = plugin, plugin.hydra_context.config_loader
        self.folder, self.record = plugin.multirun.folder, plugin.multirun.record
        words = [f"{key}={value}" for key, value in (options["params"] or {}).items()]
        self.space, self.fixed = read_space([*words, *arguments], self.loader)
        if not self.space:
            raise UserError(
                "there is nothing to search: give options a range, e.g. 'model.lr=tag(log,interval(1e-4,1e-2))' or "
                "batch_size=32,64"
            )
        metrics = plugin.config.metrics
        self.objectives = objectives_of(options["objectives"], metrics)
        self.every_images = metrics.get("every_images")
        if options["pruner"] is not None and (len(self.objectives) > 1 or not self.every_images):
            raise UserError("pruning needs one objective and scores while training: give hydra.sweeper.pruner=null")
        self.stream = getattr(plugin.launcher, "stream", None)
        for params in sampled(self.space):
            self.composed(params, 0)                # a wrong value is refused before the first trial
        self.failures_left = self.failures = options["failures"]
        self.trials: dict[int, optuna.Trial] = {}   # that are being tried, by number
        self.live: dict[int, Job] = {}              # that are looked after
        self.looking = threading.Lock()
        self.exhausted = False
        storage = options["storage"] or f"sqlite:///{self.folder.resolve()}/study.db"
        self.study, self.n_trials = open_study(plugin, storage, self.space, self.objectives)
        self.whole_grid = isinstance(self.study.sampler, optuna.samplers.GridSampler)
        with self.record.change() as content:
            content["search"] = {"storage": hidden(storage), "study_name": self.study.study_name,
                                 "objectives": self.objectives}

    # ---- jobs ----

    def jobs(self) -> Iterator[Job]:
        """What an earlier start left unfinished, then new trials, one whenever the next is asked for."""
        import optuna
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.plugin.options["storage"] is None or frozen.user_attrs.get(FOLDER) == str(self.folder.resolve()):
                trial = optuna.Trial(self.study, frozen._trial_id)
                for name, one in self.space.items():    # what was not proposed yet when it was interrupted
                    trial._suggest(name, one)
                yield from self.job(trial)
        if self.whole_grid:
            self.try_failed_again()
        while self.failures_left > 0 and self.wanted():
            try:
                trial = self.study.ask(self.space)
            except ImportError as error:  # that samplers put off until they need it
                name = self.plugin.options["sampler"]["_target_"]
                raise UserError(f"{name} needs another package: pip install {error.name}") from error
            yield from self.job(trial)

    def wanted(self) -> bool:
        """Whether there is another trial to come; of a grid, a failed one does not count."""
        from optuna.trial import TrialState

        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        there = len(states) - (states.count(TrialState.FAIL) if self.whole_grid else 0)
        return TrialState.WAITING in states or (there < self.n_trials and not self.exhausted)

    def try_failed_again(self) -> None:
        """Queues the combinations of a grid whose only trials have failed, which its sampler takes for visited."""
        import optuna
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        settled = [trial.params for trial in trials if trial.state != TrialState.FAIL]
        left = {str(trial.params): trial for trial in trials if trial.params and trial.params not in settled}
        for failed in list(left.values())[: max(0, self.n_trials - len(settled))]:
            self.study.add_trial(optuna.trial.create_trial(
                state=TrialState.WAITING, params=failed.params, distributions=failed.distributions,
                system_attrs=failed.system_attrs,
            ))

    def composed(self, params: dict[str, Any], number: int) -> Job:
        """The job of chosen values.

        Raises:
            UserError: an option or a need does not fit, as with Hydra's own exceptions.
        """
        words = [*self.fixed, *words_of(params)]
        job = compose_job(self.loader, self.plugin.config, words, number, frozenset(self.fixed))
        if self.stream is not None:
            need_of(job.trainer)
        return job

    def job(self, trial: Any) -> Iterator[Job]:
        """The job of a trial; none where it repeats a finished one, cannot be, or has been pruned, but not told."""
        from optuna.trial import TrialState

        trial.set_user_attr(FOLDER, str(self.folder.resolve()))
        for done in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if done.params == trial.params:
                trial.set_user_attr("repeats", done.number)
                self.tell(trial, values=done.values)
                return
        try:
            job = self.composed(trial.params, trial.number)
        except (UserError, HydraException, OmegaConfBaseException) as error:  # values that do not go together
            words, reason = words_of(trial.params), str(error).splitlines()[0]
            self.record.note(trial.number, status="failed", reason=reason, folder=str(trial.number),
                             overrides=[*self.fixed, *words], shown=" ".join(words))
            self.failed(trial, reason)
            return
        with self.looking:
            self.trials[trial.number] = trial
        if read_summary(job.folder).get("reason") == "pruned":
            self.ended(job, {"status": "stopped", "reason": "pruned"})
            return
        with self.looking:
            self.live[trial.number] = job
        yield job

    def in_batches(self) -> None:
        """Hands jobs to a launcher that takes batches and returns when all of one have ended."""
        jobs = self.jobs()
        while batch := list(islice(jobs, self.plugin.options["n_jobs"])):
            for _, group in groupby(enumerate(batch), key=lambda pair: pair[1].number - pair[0]):
                part = [job for _, job in group]
                for job, entry in zip(part, launch_elsewhere(self.plugin.launcher, part, self.record), strict=True):
                    self.ended(job, entry)

    def ended(self, job: Job, entry: Mapping[str, Any]) -> None:
        """Tells Optuna how a trial ended; one that was interrupted stays open for the next start.

        Raises:
            UserError: an objective does not exist, or nothing can be pruned by it.
        """
        from optuna.trial import TrialState

        with self.looking:
            trial = self.trials.pop(job.number)
            self.live.pop(job.number, None)
        if entry["status"] == "finished":
            values = self.values(job.folder)
            if all(map(math.isfinite, values)):
                trial.set_user_attr("monitor", entry.get("monitor"))
                self.tell(trial, values=values)
                return
            missing = read_summary(job.folder).get("scores_missing") or {}
            why = [f"no {name}: {missing[name]}" for name in self.objectives if name in missing]
            entry = {"status": "failed", "reason": "; ".join(why) or f"{values} is not finite"}
        if entry["status"] == "failed":
            self.failed(trial, entry["reason"])
        elif entry["status"] == "stopped" and entry["reason"] == "pruned":
            self.tell(trial, state=TrialState.PRUNED)

    def failed(self, trial: Any, reason: str) -> None:
        """Tells Optuna of a failed trial."""
        from optuna.trial import TrialState

        self.failures_left -= 1
        trial.set_user_attr("reason", reason)
        self.tell(trial, state=TrialState.FAIL)

    def tell(self, trial: Any, **how: Any) -> None:
        """`study.tell`; a grid says by a RuntimeError of `Study.stop` that nothing is left."""
        if "values" in how and self.failures_left > 0:
            self.failures_left = self.failures
        try:
            self.study.tell(trial, **how)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            self.exhausted = True

    def values(self, folder: Path) -> list[float]:
        """The objectives of a finished run.

        Raises:
            UserError: it has none of that name, or trials are to be pruned by one that it did not log while training.
        """
        known = entries_of(read_summary(folder))
        if missing := [name for name in self.objectives if name not in known]:
            near = choices(missing[0], known)
            near += " Write '+hydra.sweeper.objectives={<name>: minimize}' where it has a /" if "/" in near else ""
            raise UserError(f"the objective '{missing[0]}' is not in '{folder}/summary.json': {near}")
        name = next(iter(self.objectives))
        pruned = self.plugin.options["pruner"] is not None and name != MONITORED
        if pruned and not any(name in line for line in logged(folder / "metrics.jsonl")):
            raise UserError(
                f"'{name}' is in no line of '{folder}/metrics.jsonl', so nothing can be pruned by it: give "
                "hydra.sweeper.pruner=null"
            )
        return [known[name] for name in self.objectives]

    # ---- pruning ----

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, what the running jobs log is reported, and the hopeless ones are asked to stop."""
        if self.plugin.options["pruner"] is None:
            yield
            return
        over = threading.Event()

        def watch() -> None:
            said = ""
            while not over.wait(WATCH_SECONDS):
                try:
                    with self.looking:
                        for number in [number for number, job in self.live.items() if self.hopeless(job)]:
                            (self.live.pop(number).folder / STOP).write_text("pruned")
                except Exception as error:  # of a database, say: the next look may succeed
                    if str(error) != said:
                        said = str(error)
                        print(f"pruning    failed and is retried: {shortened(said, 200)}", flush=True)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def hopeless(self, job: Job) -> bool:
        """Reports the scores that a job has logged since the last look; whether one of them was too bad to continue.

        A step is a scoring: the k-th at k times `metrics.every_images`, so that trials meet at the same steps.
        """
        trial = self.trials[job.number]
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        (name,) = self.objectives
        for line in logged(job.folder / "metrics.jsonl"):
            key = monitored(self.plugin.config.metrics, line) if name == MONITORED else name
            step = int(line.get("images", 0)) // self.every_images
            if key not in line or step < 1 or step in reported:
                continue
            trial.report(line[key], step)
            reported = {**reported, step: line[key]}
            if trial.should_prune():
                return True
        return False

    # ---- the end ----

    def conclude(self) -> bool:
        """Prints the best trials and saves them, as `best` or, with several objectives, as `best_<trial>` each.

        Returns:
            whether there are any.
        """
        from optuna.trial import TrialState

        self.plugin.multirun.show()
        trials = self.study.get_trials(deepcopy=False)
        states = {state: sum(t.state == state for t in trials) for state in TrialState}
        if not states[TrialState.COMPLETE]:
            return False
        first = [trial for trial in self.study.best_trials if "repeats" not in trial.user_attrs]
        best = sorted(first, key=lambda trial: trial.values)
        best = best[:1] if len(self.objectives) == 1 else best
        others = [f"{n} {state.name.lower()}" for state, n in states.items() if n and state != TrialState.COMPLETE]
        rest = f" ({', '.join(others)})" if others else ""
        print(f"\nbest of {counted(states[TrialState.COMPLETE], 'trial')}{rest}")
        for trial in best:
            self.save(trial, "best" if len(self.objectives) == 1 else f"best_{trial.number}")
        with self.record.change() as content:
            content["search"]["best"] = [{"number": t.number, "values": t.values, "params": t.params} for t in best]
        return True

    def save(self, trial: Any, name: str) -> None:
        """Prints one of the best trials and writes its experiment."""
        known = trial.user_attrs
        names = [known.get("monitor") or name if name == MONITORED else name for name in self.objectives]
        reached = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, trial.values, strict=True))
        words = [*self.fixed, *words_of(trial.params)]
        comment = f"Trial {trial.number} of {known[FOLDER]}: {reached}."
        dirs = own_dirs(self.plugin.config.hydra)
        command = save_experiment(self.folder, name, words, self.loader, comment, dirs=dirs)
        print(f"trial {trial.number}: {reached}")
        for key, value in trial.params.items():
            print(f"  {key:32} {value}")
        print(f"  train it: {command}", flush=True)
