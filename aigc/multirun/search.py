"""A search: Optuna proposes, jobs of any launcher try, what they report decides what is proposed or stopped next.

The study lies in a database and the jobs in the folder of the search, so a search that was killed goes on: trials that
were running go on in their folders, finished ones are told, the rest is proposed.
"""

import contextlib
import json
import math
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from aigc.config import instantiate
from aigc.errors import RunError, UserError, choices
from aigc.multirun.best import save_experiment
from aigc.multirun.jobs import Job, compose_job
from aigc.multirun.running import STOP
from aigc.multirun.space import grid_of, read_space, words_of
from aigc.run import read_summary

WATCH_SECONDS = 1.0          # between two looks at what the jobs have logged
FOLDER = "folder"            # the trial's attribute that says whose search it belongs to


def search(plugin: Any, arguments: Sequence[str]) -> None:
    """Searches until there have been `n_trials` trials, prints the best and saves it as an experiment.

    Args:
        plugin: the sweeper, with its options, Hydra's configuration and the launcher (hydra_plugins/aigc_multirun.py).
        arguments: the overrides as typed.

    Raises:
        UserError: Optuna is missing, there is nothing to search, or an objective does not exist.
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
    stream = getattr(plugin.launcher, "stream", None)
    try:
        with searching.watching():
            if stream is not None:
                stream(searching.jobs(), expected=searching.n_trials, ended=searching.ended)
            else:
                searching.in_batches()
    finally:
        found = searching.conclude()
    if searching.failures and not searching.failures_left:
        raise RunError(f"the search gave up: {searching.failures} trials failed in a row, see their output.log")
    if not found:
        raise RunError("no trial of the search has come to its end: see their output.log")


class Searching:
    """One start of a search."""

    def __init__(self, plugin: Any, arguments: Sequence[str]):
        import optuna

        options = plugin.options
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
        self.failures_left = self.failures = options["failures"]
        self.trials: dict[int, optuna.Trial] = {}   # that are being tried, by number
        self.live: dict[int, Job] = {}              # that are looked after
        self.looking = threading.Lock()
        self.exhausted = False
        storage = options["storage"] or f"sqlite:///{self.folder.resolve()}/study.db"
        name = options["study_name"] or self.folder.name
        try:
            known = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(storage)}
            sampler, self.n_trials = self.sampler(options["sampler"], options["n_trials"], known.get(name, 0))
            self.study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, sampler=sampler,
                directions=list(self.objectives.values()),
                pruner=instantiate(options["pruner"], "hydra.sweeper.pruner") if options["pruner"] else
                optuna.pruners.NopPruner(),
            )
        except UserError:
            raise
        except Exception as error:  # whatever the driver of a database raises
            reason = str(error).strip().splitlines()[0]
            sentence = f"the study in '{hidden(storage)}' cannot be opened ({reason}): check hydra.sweeper.storage"
            raise UserError(sentence) from error
        with self.record.change() as content:
            content["search"] = {"storage": hidden(storage), "study_name": name, "objectives": self.objectives}

    def sampler(self, node: Mapping[str, Any], n_trials: int | None, there: int) -> tuple[Any, int]:
        """The sampler, and how many trials there are to be.

        A sampler with a seed draws other numbers when a search goes on that has so many trials `there`.
        """
        given: dict[str, Any] = {}
        node = dict(node)
        if node["_target_"] == "optuna.samplers.GridSampler":
            grid = given["search_space"] = grid_of(self.space)
            count = 1
            for values in grid.values():
                count *= len(values)
            n_trials = count if n_trials is None else min(n_trials, count)
        elif node.get("seed") is not None:
            node["seed"] += there
        if n_trials is None:
            raise UserError("hydra.sweeper.n_trials is needed: only a grid has an end of its own")
        return instantiate(node, "hydra.sweeper.sampler", **given), n_trials

    # ---- jobs ----

    def jobs(self) -> Iterator[Job]:
        """What an earlier start left unfinished, then new trials, one whenever the next is asked for."""
        import optuna
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if self.plugin.options["storage"] is None or frozen.user_attrs.get(FOLDER) == str(self.folder.resolve()):
                yield from self.job(optuna.Trial(self.study, frozen._trial_id))
        while len(self.study.get_trials(deepcopy=False)) < self.n_trials and not self.exhausted and self.failures_left:
            trial = self.study.ask(self.space)
            trial.set_user_attr(FOLDER, str(self.folder.resolve()))
            yield from self.job(trial)

    def job(self, trial: Any) -> Iterator[Job]:
        """The job of a trial; none where it repeats a finished one, or has been pruned already, but not told."""
        from optuna.trial import TrialState

        for done in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if done.params == trial.params:
                trial.set_user_attr("repeats", done.number)
                self.tell(trial, values=done.values)
                return
        words = [*self.fixed, *words_of(trial.params)]
        job = compose_job(self.loader, self.plugin.config, words, trial.number, frozenset(self.fixed))
        self.trials[trial.number] = trial
        if read_summary(job.folder).get("reason") == "pruned":
            self.ended(job, {"status": "stopped", "reason": "pruned"})
            return
        self.live[trial.number] = job
        yield job

    def in_batches(self) -> None:
        """Hands jobs to a launcher that takes batches and returns when all of one have ended."""
        jobs = self.jobs()
        while batch := list(islice(jobs, self.plugin.options["n_jobs"])):
            for _, group in groupby(enumerate(batch), key=lambda pair: pair[1].number - pair[0]):
                part = [job for _, job in group]
                returns = self.plugin.launcher.launch([job.overrides for job in part], part[0].number)
                noted = {entry["number"]: entry for entry in self.record.jobs()}
                for job, returned in zip(part, returns, strict=True):
                    lost = {"status": "failed", "reason": f"the launcher lost it: {returned._return_value}"}
                    self.ended(job, noted.get(job.number, lost))

    def ended(self, job: Job, entry: Mapping[str, Any]) -> None:
        """Tells Optuna how a trial ended; one that was interrupted stays open for the next start.

        Raises:
            UserError: an objective does not exist.
        """
        from optuna.trial import TrialState

        with self.looking:
            trial = self.trials.pop(job.number)
            self.live.pop(job.number, None)
        if entry["status"] == "finished":
            values = self.values(job.folder)
            if all(map(math.isfinite, values)):
                self.failures_left = self.failures
                self.tell(trial, values=values)
                return
            entry = {"status": "failed", "reason": f"{values} is not finite"}
        if entry["status"] == "failed":
            self.failures_left -= 1
            trial.set_user_attr("reason", entry["reason"])
            self.tell(trial, state=TrialState.FAIL)
        elif entry["status"] == "stopped" and entry["reason"] == "pruned":
            self.tell(trial, state=TrialState.PRUNED)

    def tell(self, trial: Any, **how: Any) -> None:
        """`study.tell`; a grid says by a RuntimeError of `Study.stop` that nothing is left."""
        try:
            self.study.tell(trial, **how)
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            self.exhausted = True

    def values(self, folder: Path) -> list[float]:
        """The objectives of a finished run.

        Raises:
            UserError: it has none of that name.
        """
        known = entries_of(read_summary(folder))
        if missing := [name for name in self.objectives if name not in known]:
            near = choices(missing[0], known)
            raise UserError(f"the objective '{missing[0]}' is not in '{folder}/summary.json': {near}")
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
            while not over.wait(WATCH_SECONDS):
                with self.looking:
                    for number in [number for number, job in self.live.items() if self.hopeless(job)]:
                        (self.live.pop(number).folder / STOP).write_text("pruned")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def hopeless(self, job: Job) -> bool:
        """Reports the scores that a job has logged since the last look; whether one of them was too bad to go on.

        A step is a scoring: the k-th at k times `metrics.every_images`, so that trials meet at the same steps.
        """
        trial = self.trials[job.number]
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        (name,) = self.objectives
        for line in logged(job.folder / "metrics.jsonl"):
            key = name if name in line else monitored(self.plugin.config.metrics, line)
            step = int(line.get("images", 0)) // self.every_images
            if key is None or step < 1 or step in reported:
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
        print(f"\nbest of {states[TrialState.COMPLETE]} trials" + (f" ({', '.join(others)})" if others else ""))
        for trial in best:
            self.save(trial, "best" if len(self.objectives) == 1 else f"best_{trial.number}")
        with self.record.change() as content:
            content["search"]["best"] = [{"number": t.number, "values": t.values, "params": t.params} for t in best]
        return True

    def save(self, trial: Any, name: str) -> None:
        """Prints one of the best trials and writes its experiment."""
        entry = next(entry for entry in self.record.jobs() if entry["number"] == trial.number)
        names = [entry["monitor"] if name == MONITORED else name for name in self.objectives]
        reached = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, trial.values, strict=True))
        words = [*self.fixed, *words_of(trial.params)]
        comment = f"Trial {trial.number} of {self.folder}: {reached}."
        command = save_experiment(self.folder, name, words, self.loader, comment)
        print(f"trial {trial.number}: {reached}")
        for key, value in trial.params.items():
            print(f"  {key:32} {value}")
        print(f"  train it: {command}", flush=True)


MONITORED = "monitored"      # the objective that the runs themselves call best


def objectives_of(asked: Mapping[str, Any] | None, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Objectives with Optuna's directions; none asked for: the score that best.ckpt goes by.

    Raises:
        UserError: an unknown direction, or nothing is measured.
    """
    known = ("minimize", "maximize")
    for name, direction in (asked or {}).items():
        if direction not in known:
            raise UserError(f"hydra.sweeper.objectives.{name}={direction} is unknown: {choices(direction, known)}")
    if not metrics and (not asked or MONITORED in asked):
        raise UserError("a search needs scores, and metrics=none measures nothing: choose metrics=, or objectives")
    return dict(asked or {MONITORED: "minimize" if metrics.get("mode", "min") == "min" else "maximize"})


def hidden(url: str) -> str:
    """The URL of a database without its password."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", url)


def entries_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's summary that can be an objective, by name: its last scores, and `sampling.seconds`-like
    paths of other entries; `monitored` is the best of the score that best.ckpt goes by.
    """
    scores = summary.get("scores") or {}
    last = scores.get("last") or {}
    best = scores.get("best")
    found: dict[str, Any] = {MONITORED: math.nan if best is None and last else best, **last}
    for key, value in summary.items():
        nested = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        found |= {k: v for k, v in nested.items() if k not in found}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def monitored(metrics: Mapping[str, Any], line: Mapping[str, Any]) -> str | None:
    """Which score of a log line best.ckpt goes by: the Fréchet distance, of the first direction, unless named."""
    network = metrics.get("network")
    name = metrics.get("monitor") or ("fid" if network == "inception" else f"fd_{network}")
    return next((key for key in line if key == name or (key.endswith(f"/{name}") and "identity" not in key)), None)


def logged(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may be written at the moment."""
    lines = []
    with contextlib.suppress(OSError):
        for text in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines
