"""Searches with jobs that are played, so that what Optuna is told and asked can be followed to the number."""

import importlib.util
import json
import math
import re
import shlex
import sys
import time
from types import SimpleNamespace

import optuna
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.errors import RunError, UserError
from aigc.multirun import devices, running
from aigc.multirun.ledger import Ledger, Multirun
from aigc.multirun.search import sweep as module
from aigc.multirun.search.sweep import search
from aigc.runs.summary import write_summary
from tests import forked
from tests.conftest import compose_train, environment

SEARCHES = ["tpe", "random", "grid", "pruned", "multi_objective"]
LOG = "model.rate=tag(log,interval(1e-4,1e-1))"


class Played:
    """A launcher of one place: `play(job)` says what a run of these overrides would leave behind."""

    def __init__(self, play, record):
        self.play, self.record, self.played = play, record, []

    def stream(self, jobs, *, expected, ended):
        for job in jobs:
            self.played.append(job)
            made = self.play(job)
            write_summary(job.folder, signature=job.signature, **made)
            ended(job, self.record.note(job.number, status=made["status"], reason=made.get("reason"), **job.facts,
                                        score=(made.get("scores") or {}).get("best"), monitor="fd"))


class Batches(Played):
    """A launcher of another package, as Hydra knows them."""

    stream = None

    def launch(self, overrides, number):
        self.played.append((list(overrides), number))
        for k, words in enumerate(overrides, number):
            name = f"{k}_vae_digits"
            self.record.note(k, status="finished", reason=None, folder=name, shown="", monitor="fd", score=1)
            write_summary(self.record.folder / name, **scored(rate_of(words)))
        return [SimpleNamespace(_return_value=None)] * len(overrides)


def rate_of(words):
    return float(next(word.split("=")[1] for word in words if word.startswith("model.rate=")))


def scored(value, **last):
    return {"status": "finished", "scores": {"best": value, "last": {"fd": value, **last}}}


@pytest.fixture
def start(tmp_path):
    """Starts `hparams_search=<name>` with these words and a launcher that plays its jobs."""
    register_schemas()

    def go(name, play, *words, launcher=Played, folder="m", base=("model=vae", "data=digits")):
        own = [word for word in words if word.lstrip("+").startswith("hydra.")]
        task = [f"hparams_search={name}", *base, "study=s", *(word for word in words if word not in own)]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            all_words = [*task, *own, f"hydra.sweep.dir={tmp_path}/{folder}"]
            config = loader.load_configuration("train", all_words, RunMode.MULTIRUN)
            options = OmegaConf.to_container(config.hydra.sweeper)
            multirun = Multirun(config, options["params"] or {})
            played = launcher(play, Ledger(multirun.folder))
            plugin = SimpleNamespace(options=options, config=config, multirun=multirun, launcher=played,
                                     hydra_context=SimpleNamespace(config_loader=loader))
            with multirun:
                search(plugin, task)
        return played.played

    yield go
    GlobalHydra.instance().clear()


def study(folder, name="m"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/{name}/study.db")


def states(folder):
    return [trial.state.name for trial in study(folder).trials]


def composed(*words):
    """What a command composes to, without Hydra's own configuration."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        cfg = loader.load_configuration("train", list(words), RunMode.RUN)
    return {key: value for key, value in OmegaConf.to_container(cfg).items() if key != "hydra"}


def optimum(job):
    """Best at a rate of 0.01."""
    return scored(abs(math.log10(rate_of(job.overrides)) + 2))


def test_a_search_finds_the_optimum_and_saves_it_as_an_experiment(start, tmp_path, capsys):
    jobs = start("tpe", optimum, LOG, "model.latent=4,8", "~callbacks.samples", "+trainer.max_steps=7")
    assert len(jobs) == 20 and [job.number for job in jobs] == list(range(20))
    assert jobs[0].folder == tmp_path / "m" / "0_vae_digits"
    trials = study(tmp_path).trials
    best = min(trials, key=lambda trial: trial.value)
    assert best.value < 0.1
    said = capsys.readouterr().out
    assert f"best of 20 trials\ntrial {best.number}: fd {best.value:.4g}" in said
    assert f"--config-dir {tmp_path}/m experiment=best '~callbacks.samples'" in said

    searched = f"hydra.searchpath=[file://{tmp_path}/m]"
    assert composed(searched, "experiment=best", "~callbacks.samples") == composed(*jobs[best.number].overrides)


def test_a_search_around_the_best_of_another_is_saved_so_that_its_command_works(start, tmp_path, capsys):
    start("random", optimum, LOG, "model.latent=6", "hydra.sweeper.n_trials=2", folder="s1")
    first = f"hydra.searchpath=[file://{tmp_path}/s1]"
    jobs = start("random", lambda job: scored(1.0), "model.prior=normal,mixture", "hydra.sweeper.n_trials=1", first,
                 folder="s 2", base=("experiment=best",))
    said = capsys.readouterr().out.split("train it: ")[-1].strip()
    assert said == (f"python -m aigc.train --config-dir '{tmp_path}/s 2' experiment=best_again "
                    f"'hydra.searchpath=[\"file://{tmp_path}/s1\"]'")
    done = forked.run([sys.executable, *shlex.split(said)[1:], "--cfg", "job"], env=environment(), cwd=tmp_path)
    shown = OmegaConf.to_container(OmegaConf.create(done.stdout))
    assert shown == composed(first, *jobs[0].overrides) and shown["model"]["latent"] == 6


def test_a_search_goes_on_where_it_was_interrupted_and_with_more_trials(start, tmp_path):
    def broken(job):
        if job.number == 2:
            raise KeyboardInterrupt
        return optimum(job)

    words = [LOG, "hydra.sweeper.n_trials=4"]
    with pytest.raises(KeyboardInterrupt):
        start("tpe", broken, *words)
    open_trial = study(tmp_path).trials[2]
    assert open_trial.state.name == "RUNNING"
    jobs = start("tpe", optimum, *words)
    assert [job.number for job in jobs] == [2, 3]
    assert rate_of(jobs[0].overrides) == open_trial.params["model.rate"]    # the same trial, in its folder
    assert start("tpe", optimum, *words) == []                              # nothing is left
    more = start("tpe", optimum, LOG, "hydra.sweeper.n_trials=6")
    assert [job.number for job in more] == [4, 5]
    rates = [trial.params["model.rate"] for trial in study(tmp_path).trials]
    assert len(set(rates)) == 6                                             # a new start draws new numbers


def test_an_experiment_that_was_edited_stays_and_the_new_one_stands_beside_it(start, tmp_path, capsys):
    def names():
        return sorted(path.name for path in (tmp_path / "m" / "experiment").iterdir())

    best = tmp_path / "m" / "experiment" / "best.yaml"
    start("random", optimum, LOG, "hydra.sweeper.n_trials=2")
    own = best.read_text()
    best.write_text(own.replace("study: s", "study: mine"))
    edited = best.read_text()
    assert edited != own
    for n in (3, 4):
        capsys.readouterr()
        start("random", optimum, LOG, f"hydra.sweeper.n_trials={n}")
        said = capsys.readouterr().out
        assert best.read_text() == edited and names() == ["best.yaml", "best_2.yaml"]
        assert f"'{best}' was edited and stays as it is: this one is best_2.yaml" in said
        assert "experiment=best_2" in said
    best.unlink()
    start("random", lambda job: scored(0.0), LOG, "hydra.sweeper.n_trials=5")
    assert "Trial 4 of" in best.read_text()
    start("random", lambda job: scored(-1.0), LOG, "hydra.sweeper.n_trials=6")      # its own is replaced
    assert "Trial 5 of" in best.read_text() and names() == ["best.yaml", "best_2.yaml"]
    best.write_bytes(b"\xff")
    start("random", lambda job: scored(-2.0), LOG, "hydra.sweeper.n_trials=7")
    assert best.read_bytes() == b"\xff" and "Trial 6 of" in (tmp_path / "m/experiment/best_2.yaml").read_text()


def test_a_grid_tries_everything_once(start, tmp_path):
    played = start("grid", optimum, "model.rate=0.1,0.01,0.001", "model.latent=range(4,9,2)")
    tried = {tuple(job.overrides[-2:]) for job in played}
    assert len(played) == len(tried) == 9
    assert study(tmp_path).best_params["model.rate"] == 0.01
    assert start("grid", optimum, "model.rate=0.1,0.01,0.001", "model.latent=range(4,9,2)") == []


def test_a_repeated_trial_is_not_trained_again(start, tmp_path):
    played = start("random", optimum, "model.rate=0.1,0.01", "hydra.sweeper.n_trials=8")
    assert len(played) == 2
    trials = study(tmp_path).trials
    assert len(trials) == 8 and all(trial.value == abs(math.log10(trial.params["model.rate"]) + 2) for trial in trials)


def test_failed_and_pruned_trials_are_recorded_and_too_many_failures_end_it(start, tmp_path, capsys):
    def play(job):
        if job.number % 2:
            return {"status": "failed", "reason": "no room"}
        return {"status": "stopped", "reason": "pruned"} if job.number == 2 else optimum(job)

    start("random", play, LOG, "hydra.sweeper.n_trials=5")
    assert states(tmp_path) == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "COMPLETE"]
    assert study(tmp_path).trials[1].user_attrs["reason"] == "no room"
    assert "best of 2 trials (1 pruned, 2 fail)" in capsys.readouterr().out
    with pytest.raises(RunError, match="gave up: 3 trials failed in a row"):
        start("random", lambda job: {"status": "failed", "reason": "x"}, LOG, "hydra.sweeper.failures=3",
              "hydra.sweeper.n_trials=20")
    assert len(study(tmp_path).trials) == 8


def test_scores_that_are_not_finite_are_failures_and_a_wrong_objective_is_named(start, tmp_path):
    nan = {"status": "finished", "scores": {"best": None, "last": {"fd": math.nan}}}
    start("random", lambda job: nan if job.number else optimum(job), LOG, "hydra.sweeper.n_trials=2")
    assert states(tmp_path) == ["COMPLETE", "FAIL"]


def test_a_wrong_objective_is_named_and_can_be_corrected(start, tmp_path):
    words = [LOG, "hydra.sweeper.n_trials=1"]
    with pytest.raises(UserError, match=r"the objective 'fdd' is not in .*summary.json': did you mean 'fd'"):
        start("random", optimum, *words, "+hydra.sweeper.objectives.fdd=minimize")
    assert states(tmp_path) == ["RUNNING"]                                 # and is told once the name is right
    start("random", optimum, *words, "+hydra.sweeper.objectives.fd=minimize")
    assert states(tmp_path) == ["COMPLETE"]
    with pytest.raises(UserError, match=re.escape("objectives={<name>: minimize}' where it has a /")):
        start("random", lambda job: scored(1.0, **{"val/elbo": 1.0}), LOG, "+hydra.sweeper.objectives.elbo=minimize",
              folder="slash")


@pytest.mark.parametrize("other", ["+hydra.sweeper.objectives.label_accuracy=maximize",
                                   "+hydra.sweeper.objectives.fd=minimize",
                                   "+hydra.sweeper.objectives={monitored:minimize,fd:minimize}"])
def test_a_study_is_not_mixed_with_values_of_other_objectives(other, start, tmp_path):
    start("random", optimum, LOG, "hydra.sweeper.n_trials=1")
    before = Ledger(tmp_path / "m").read()["search"]
    with pytest.raises(UserError, match=r"the study 'm' holds trials for monitored \(minimize\): choose another"):
        start("random", optimum, LOG, "hydra.sweeper.n_trials=2", other)
    assert Ledger(tmp_path / "m").read()["search"] == before and states(tmp_path) == ["COMPLETE"]


def test_a_refused_second_start_keeps_the_study_and_the_job_of_the_first(start, tmp_path):
    def killed(job):
        job.folder.mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start("random", killed, LOG)
    with pytest.raises(UserError, match="has no option 'sed'"):
        start("random", optimum, LOG, "+hydra.sweeper.sampler.sed=1")
    assert states(tmp_path) == ["RUNNING"]


def test_machines_share_a_study_of_the_same_command_and_no_other(start, tmp_path, capsys):
    shared = [f"hydra.sweeper.storage='sqlite:///{tmp_path}/all.db'", "hydra.sweeper.study_name=all"]
    start("random", optimum, "model.rate=0.1,0.01", *shared, "hydra.sweeper.n_trials=4", folder="a")
    start("random", lambda job: scored(9.0), "model.rate=0.1,0.01", *shared, "hydra.sweeper.n_trials=6", folder="b")
    best = (tmp_path / "b" / "experiment" / "best.yaml").read_text()
    assert f"of {tmp_path}/a: fd 0." in best and "rate: 0.01" in best
    sentence = r"the study 'all' holds trials of another search \(.*model.rate=0.1,0.01\)"
    other = [["model.rate=0.1,0.01,0.001"], ["model.rate=0.1,0.01", "model.latent=4"]]
    for folder, words in zip("cd", other, strict=True):
        with pytest.raises(UserError, match=sentence):
            start("random", optimum, *words, *shared, "hydra.sweeper.n_trials=8", folder=folder)
    trials = optuna.load_study(study_name="all", storage=f"sqlite:///{tmp_path}/all.db").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6


def test_what_ends_a_search_is_not_hidden_by_what_it_says_at_the_end(start, monkeypatch):
    def full(job):
        raise OSError("no space left")

    monkeypatch.setattr(module.Searching, "conclude", lambda self: next(iter(())))
    with pytest.raises(OSError, match="no space left"):
        start("random", full, LOG)


def test_jobs_that_fail_together_end_the_search_as_well(start, tmp_path):
    class Failing(Batches):
        def launch(self, overrides, number):
            for k in range(number, number + len(overrides)):
                self.record.note(k, status="failed", reason="no room", folder=str(k), shown="")
            return [SimpleNamespace(_return_value=None)] * len(overrides)

    with pytest.raises(RunError, match="gave up: 3 trials failed in a row"):
        start("random", None, LOG, "hydra.sweeper.n_jobs=2", "hydra.sweeper.failures=3", launcher=Failing)
    assert states(tmp_path) == ["FAIL"] * 4


def test_values_that_do_not_go_together_fail_and_the_search_goes_on(start, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: ("0",))
    played = start("grid", lambda job: scored(1.0), "trainer.accelerator=cpu,gpu", "trainer.devices=1,2")
    assert len(played) == 3 and sorted(states(tmp_path)) == ["COMPLETE"] * 3 + ["FAIL"]
    (failed,) = [job for job in Ledger(tmp_path / "m").jobs() if job["status"] == "failed"]
    assert failed["shown"] == "trainer.accelerator=gpu trainer.devices=2"
    assert failed["reason"].startswith("trainer.devices=2, but this machine has 1 GPU: ")


def test_a_grid_tries_again_what_failed(start, tmp_path):
    words = ["model.rate=0.1,0.01,0.001"]
    with pytest.raises(RunError, match="no trial of the search has finished"):
        start("grid", lambda job: {"status": "failed", "reason": "disk"}, *words)
    first = start("grid", lambda job: scored(1.0) if job.number == 3 else {"status": "failed", "reason": "x"}, *words)
    assert [job.number for job in first] == [3, 4, 5]
    second = start("grid", optimum, *words)
    rates = {rate_of(job.overrides) for job in [first[0], *second]}
    assert [job.number for job in second] == [6, 7] and rates == {0.1, 0.01, 0.001}
    assert start("grid", optimum, *words) == []


def test_several_objectives_give_every_trial_that_is_best_for_some_price(start, tmp_path, capsys):
    def play(job):
        steps = next(int(word.split("=")[1]) for word in job.overrides if word.startswith("model.latent="))
        return {**scored(1 / steps), "sampling": {"evaluations": steps}}

    start("multi_objective", play, "model.latent=choice(2,4,8)", "hydra.sweeper.n_trials=12")
    saved = sorted(path.stem for path in (tmp_path / "m" / "experiment").iterdir())
    front = json.loads((tmp_path / "m" / "jobs.json").read_text())["search"]["best"]
    assert saved == sorted(f"best_{trial['number']}" for trial in front)
    assert sorted(trial["values"] for trial in front) == [[0.125, 8], [0.25, 4], [0.5, 2]]
    assert "sampling.evaluations 8" in capsys.readouterr().out


def test_trials_that_fall_behind_are_stopped_by_what_they_log(start, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)
    stopped = {}

    def play(job):
        """Logs four scorings, 100 images apart, as long as nobody stops it; later jobs are worse."""
        job.folder.mkdir(parents=True)
        for k in range(1, 5):
            with (job.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"images": 103 * k, "fd_classifier": job.number + 1 / k}) + "\n")
            time.sleep(0.15)
            if (job.folder / "stop").exists():
                stopped[job.number] = (k, (job.folder / "stop").read_text())
                return {"status": "stopped", "reason": "pruned"}
        return {"status": "finished", "scores": {"best": job.number + 0.25, "last": {"fd_classifier": 1}}}

    words = [LOG, "metrics.every_images=100", "hydra.sweeper.n_trials=4", "hydra.sweeper.pruner.n_startup_trials=2"]
    start("pruned", play, *words)
    assert stopped == {2: (2, "pruned"), 3: (2, "pruned")}                  # the first scoring is let pass
    trials = study(tmp_path).trials
    assert trials[0].intermediate_values == pytest.approx({k: 1 / k for k in range(1, 5)})
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]


def test_pruning_by_a_score_goes_by_no_other(start, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)

    def play(job):
        """Logs the score that best.ckpt goes by, and the objective only in the end."""
        job.folder.mkdir(parents=True)
        (job.folder / "metrics.jsonl").write_text(json.dumps({"images": 100, "fd_classifier": 1.0}) + "\n")
        time.sleep(0.2)
        return scored(1.0, **{"final/label_accuracy": 0.5})

    words = [LOG, "metrics.every_images=100", "+hydra.sweeper.objectives={final/label_accuracy:maximize}"]
    with pytest.raises(UserError, match=r"'final/label_accuracy' is in no line of .* nothing can be pruned by it"):
        start("pruned", play, *words)
    assert study(tmp_path).trials[0].intermediate_values == {}


def test_pruning_survives_jobs_that_come_meanwhile_and_looks_that_fail(start, monkeypatch, capsys):
    looks = []

    def slow(self, job):
        looks.append(job.number)
        time.sleep(0.05)
        if len(looks) == 2:
            raise OSError("database is locked")

    class Three(Played):
        def stream(self, jobs, *, expected, ended):
            for job in [job for job in jobs if not time.sleep(0.03)]:
                super().stream([job], expected=expected, ended=ended)

    monkeypatch.setattr(module, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(module.Searching, "hopeless", slow)
    start("pruned", optimum, LOG, "metrics.every_images=100", "hydra.sweeper.n_trials=8", launcher=Three)
    said = [line for line in capsys.readouterr().out.splitlines() if "is retried" in line]
    assert said == ["pruning    failed and is retried: database is locked"] and len(looks) > 3


def test_other_launchers_get_batches(start, tmp_path):
    played = start("random", None, LOG, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2", launcher=Batches)
    assert [(len(batch), number) for batch, number in played] == [(2, 0), (2, 2), (1, 4)]
    assert all(trial.value == trial.params["model.rate"] for trial in study(tmp_path).trials)


def test_a_job_that_another_launcher_lost_fails_and_the_search_goes_on(start, tmp_path, monkeypatch):
    class Losing(Batches):
        def launch(self, overrides, number):
            super().launch(overrides[1:], number + 1)
            raise ConnectionError("job 17 has not produced any output\nsee its log")

    monkeypatch.setattr(running, "QUIET_SECONDS", 0)
    start("random", None, LOG, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", launcher=Losing)
    assert states(tmp_path) == ["FAIL", "COMPLETE"] * 2
    reason = study(tmp_path).trials[0].user_attrs["reason"]
    assert reason == "the launcher lost it: ConnectionError: job 17 has not produced any output"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tpe"], "there is nothing to search: give options a range"),
        (["tpe", LOG, "metrics=none"], "a search needs scores, and metrics=none measures nothing"),
        (["tpe", LOG, "+hydra.sweeper.objectives.fd=lower"], "objectives.fd=lower is unknown: choose from"),
        (["tpe", LOG, "hydra.sweeper.n_trials=null"], "n_trials is needed"),
        (["tpe", LOG, "hydra.sweeper.sampler._target_=os.system"], "_target_=os.system is not allowed there"),
        (["tpe", LOG, "+hydra.sweeper.sampler.sed=1"], "'hydra.sweeper.sampler' has no option 'sed'"),
        (["tpe", LOG, "hydra.sweeper.sampler._target_=optuna.samplers.RandomSampler"], "; the options of a preset"),
        (["tpe", LOG, "hydra.sweeper.sampler=tpe"], "give hydra.sweeper.sampler._target_=optuna.samplers.<class>"),
        (["tpe", LOG, "hydra.sweeper.pruner=median", "metrics.every_images=9"], "sweeper.pruner=median names no"),
        (["tpe", LOG, "hydra.sweeper.n_trials=abc"], "n_trials must be a whole number of at least 1 or null, not abc"),
        (["tpe", LOG, "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs must be a whole number of at least 1, not 0"),
        (["tpe", LOG, "hydra.sweeper.failures=null"], "failures must be a whole number of at least 1, not null"),
        (["tpe", LOG, "model=vae,vea"], "Could not find 'model/vea'"),
        (["tpe", LOG, "batch_size=32,abc"], "Error merging override batch_size=abc"),
        (["tpe", LOG, "trainer.devices=1,many"], "trainer.devices=many is unknown"),
        (["tpe", LOG, "hydra.sweeper.storage='postgresql://u:pa@ss@h/db'"], "in 'postgresql://u:***@h/db' cannot be"),
        (["tpe", LOG, "hydra.sweeper.storage='no://me:secret@x'"], "the study in 'no://me:***@x' cannot be opened"),
        (["tpe", "model.rate=interval(2,1)"], "'model.rate=interval(2,1)' leaves nothing to choose from"),
        (["grid", "model.rate=interval(0.1,0.2)"], "a grid needs lists or steps, 'model.rate' is an interval"),
        (["pruned", LOG, "metrics=none", "+hydra.sweeper.objectives.seconds=minimize"], "pruning needs one objective"),
        (["random", LOG, "model.latnt=3"], "Could not override 'model.latnt'"),
    ],
)
def test_what_cannot_be_searched_is_refused_and_leaves_nothing(words, sentence, start, tmp_path):
    with pytest.raises((UserError, HydraException), match=re.escape(sentence)):
        start(words[0], optimum, *words[1:])
    assert not (tmp_path / "m" / "jobs.json").exists() and not (tmp_path / "m" / "study.db").exists()


@pytest.mark.skipif(importlib.util.find_spec("cmaes") is not None, reason="this sampler has its package here")
def test_a_sampler_whose_package_is_missing_says_so_and_its_trial_is_proposed_later(start, tmp_path):
    words = [LOG, "model.beta=interval(0.5,1.5)", "hydra.sweeper.n_trials=3"]
    with pytest.raises(UserError, match=r"optuna\.samplers\.CmaEsSampler needs another package: pip install cmaes"):
        start("random", optimum, *words, "hydra.sweeper.sampler._target_=optuna.samplers.CmaEsSampler")
    assert [len(trial.params) for trial in study(tmp_path).trials][-1] == 0
    start("random", optimum, *words)
    assert [len(trial.params) for trial in study(tmp_path).trials] == [2, 2, 2]


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_goes_with_every_model_and_launcher(name):
    for model, family in (("gan", "GAN"), ("cyclegan", "CycleGAN")):
        cfg = compose_train(f"hparams_search={name}", f"model={model}", common=False)
        assert cfg.model._target_.endswith(f".{family}")
    compose_train(f"hparams_search={name}", "hydra/launcher=submitit_local", common=False)
    chosen = HydraConfig.get()
    assert chosen.mode == RunMode.MULTIRUN and chosen.sweeper.sampler._target_.startswith("optuna.samplers.")
    found = [chosen.runtime.choices[f"hydra/{part}"] for part in ("sweeper", "launcher")]
    assert found == ["optuna", "submitit_local"]
