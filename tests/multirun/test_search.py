"""Searches with jobs that are played, so that what Optuna is told and asked can be followed to the number."""

import json
import math
import re
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

from aigc.config import CONFIG_DIR, register_schemas
from aigc.errors import RunError, UserError
from aigc.multirun.record import Multirun, Record
from aigc.multirun.search import search
from aigc.run import write_summary

from ..conftest import compose_train

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
    typed = ["model=vae", "data=digits", "study=s"]

    def go(name, play, *words, launcher=Played):
        own = [word for word in words if word.lstrip("+").startswith("hydra.")]
        task = [f"hparams_search={name}", *typed, *(word for word in words if word not in own)]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            all_words = [*task, *own, f"hydra.sweep.dir={tmp_path}/m"]
            config = loader.load_configuration("train", all_words, RunMode.MULTIRUN)
            options = OmegaConf.to_container(config.hydra.sweeper)
            multirun = Multirun(config, options["params"] or {})
            played = launcher(play, Record(multirun.folder))
            plugin = SimpleNamespace(options=options, config=config, multirun=multirun, launcher=played,
                                     hydra_context=SimpleNamespace(config_loader=loader))
            with multirun:
                search(plugin, task)
        return played.played

    yield go
    GlobalHydra.instance().clear()


def study(folder):
    return optuna.load_study(study_name="m", storage=f"sqlite:///{folder}/m/study.db")


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

    def compose(*words):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            cfg = loader.load_configuration("train", list(words), RunMode.RUN)
        return {key: value for key, value in OmegaConf.to_container(cfg).items() if key != "hydra"}

    searched = f"hydra.searchpath=[file://{tmp_path}/m]"
    assert compose(searched, "experiment=best", "~callbacks.samples") == compose(*jobs[best.number].overrides)


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
    trials = study(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "COMPLETE"]
    assert trials[1].user_attrs["reason"] == "no room"
    assert "best of 2 trials (1 pruned, 2 fail)" in capsys.readouterr().out
    with pytest.raises(RunError, match="gave up: 3 trials failed in a row"):
        start("random", lambda job: {"status": "failed", "reason": "x"}, LOG, "hydra.sweeper.failures=3",
              "hydra.sweeper.n_trials=20")
    assert len(study(tmp_path).trials) == 8


def test_scores_that_are_not_finite_are_failures_and_a_wrong_objective_is_named(start, tmp_path):
    nan = {"status": "finished", "scores": {"best": None, "last": {"fd": math.nan}}}
    start("random", lambda job: nan if job.number else optimum(job), LOG, "hydra.sweeper.n_trials=2")
    assert [trial.state.name for trial in study(tmp_path).trials] == ["COMPLETE", "FAIL"]
    wrong = ["hydra.sweeper.n_trials=3", "+hydra.sweeper.objectives.fdd=minimize"]
    with pytest.raises(UserError, match=r"the objective 'fdd' is not in .*summary.json': did you mean 'fd'"):
        start("random", optimum, LOG, *wrong)
    assert study(tmp_path).trials[2].state.name == "RUNNING"               # and is told once the name is right
    start("random", optimum, LOG, "hydra.sweeper.n_trials=3")
    assert study(tmp_path).trials[2].state.name == "COMPLETE"


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
    from aigc.multirun import search as module

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


def test_other_launchers_get_batches(start, tmp_path):
    played = start("random", None, LOG, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2", launcher=Batches)
    assert [(len(batch), number) for batch, number in played] == [(2, 0), (2, 2), (1, 4)]
    assert all(trial.value == trial.params["model.rate"] for trial in study(tmp_path).trials)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tpe"], "there is nothing to search: give options a range"),
        (["tpe", LOG, "metrics=none"], "a search needs scores, and metrics=none measures nothing"),
        (["tpe", LOG, "+hydra.sweeper.objectives.fd=lower"], "objectives.fd=lower is unknown: choose from"),
        (["tpe", LOG, "hydra.sweeper.n_trials=null"], "n_trials is needed"),
        (["tpe", LOG, "hydra.sweeper.sampler._target_=os.system"], "'os.system' is not in an allowed package"),
        (["tpe", LOG, "+hydra.sweeper.sampler.sed=1"], "'hydra.sweeper.sampler' has no option 'sed'"),
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
