"""Plain multiruns, up to what the launcher is given."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.errors import RunError, UserError
from aigc.multirun import running
from aigc.multirun.jobs import Job
from aigc.multirun.ledger import Ledger, Multirun
from aigc.runs.lock import FolderLock
from aigc.runs.summary import write_summary
from hydra_plugins.aigc_multirun import Grid, Processes


class Here(Processes):
    """Notes what it is given, and finishes it."""

    def stream(self, jobs, *, expected, ended=None):
        self.given.append([(job.number, job.shown) for job in jobs])
        self.seen.append([job["status"] for job in self.record.jobs()])
        for number, _ in self.given[-1]:
            self.record.note(number, status="finished", reason=None)


class Elsewhere:
    """A launcher of another package, which loses job 0."""

    def launch(self, overrides, number):
        self.given.append([(k, words[-1]) for k, words in enumerate(overrides, number)])
        for k in range(max(1, number), number + len(overrides)):
            self.record.note(k, status="finished", reason=None)
        if number == 0:
            raise ConnectionError("job 17 is gone")
        return [SimpleNamespace(_return_value=None)] * len(overrides)


@pytest.fixture
def start(tmp_path):
    """Starts a multirun of these words in batches."""
    register_schemas()

    def go(launcher, *words, size=None):
        task = ["model=vae", "data=digits", "study=s", *words]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            config = loader.load_configuration("train", [*task, f"hydra.sweep.dir={tmp_path}/m"], RunMode.MULTIRUN)
            grid = Grid(max_batch_size=size, params={})
            grid.multirun, grid.config, grid.launcher = Multirun(config, {}), config, launcher
            grid.hydra_context = SimpleNamespace(config_loader=loader)
            launcher.record, launcher.given, launcher.seen = Ledger(tmp_path / "m"), [], []
            grid.sweep(task)

    yield go
    GlobalHydra.instance().clear()


def test_all_jobs_are_there_before_the_first_batch_starts(start):
    here = Here()
    start(here, "seed=1,2,3", size=2)
    assert here.given == [[(0, "seed=1"), (1, "seed=2")], [(2, "seed=3")]]
    assert here.seen == [["waiting"] * 3, ["finished"] * 2 + ["waiting"]]


@pytest.mark.parametrize(
    ("words", "size", "sentence"),
    [
        (["model=vae,vea"], 1, "Could not find 'model/vea'"),
        (["trainer.devices=1,many"], 1, "trainer.devices=many is unknown"),
        (["seed=1,2"], 0, "hydra.sweeper.max_batch_size must be a whole number of at least 1 or null, not 0"),
        (["model.rate=interval(0.1,0.2)"], None, "has no finite set of values"),
    ],
)
def test_a_mistake_in_any_batch_is_refused_before_the_first_and_leaves_nothing(words, size, sentence, start, tmp_path):
    here = Here()
    with pytest.raises((UserError, HydraException), match=sentence):
        start(here, *words, size=size)
    assert here.given == [] and not (tmp_path / "m" / "jobs.json").exists()


def test_a_job_that_another_launcher_lost_does_not_end_the_multirun(start, monkeypatch):
    monkeypatch.setattr(running, "QUIET_SECONDS", 0)
    elsewhere = Elsewhere()
    with pytest.raises(RunError, match="of 3 jobs 1 failed"):
        start(elsewhere, "seed=1,2,3", size=2)
    assert elsewhere.given == [[(0, "seed=1"), (1, "seed=2")], [(2, "seed=3")]]
    states = [(job["status"], job["reason"]) for job in elsewhere.record.jobs()]
    assert states == [("failed", "the launcher lost it: ConnectionError: job 17 is gone")] + [("finished", None)] * 2


def test_the_others_of_a_lost_job_are_waited_for(tmp_path, monkeypatch):
    jobs = [Job(k, [], tmp_path / str(k), "abc", {}) for k in range(3)]
    record, lock = Ledger(tmp_path), FolderLock(tmp_path / "1")
    for job in jobs:
        record.note(job.number, status="running", reason=None, **job.facts)
    assert lock.take()
    done = "import json, time; time.sleep(2); json.dump({'status': 'finished'}, open('1/summary.json', 'w'))"
    child = subprocess.Popen([sys.executable, "-c", done], cwd=tmp_path, pass_fds=(lock.descriptor,))
    lock.release()
    write_summary(jobs[2].folder, status="finished")     # but its supervisor had no time to say so

    class Lost:
        def launch(self, overrides, number):
            raise ConnectionError("gone")

    monkeypatch.setattr(running, "QUIET_SECONDS", 0.6)
    started = time.monotonic()
    entries = running.launch_elsewhere(Lost(), jobs, record)
    assert child.poll() == 0 and time.monotonic() - started > 2
    assert [entry["status"] for entry in entries] == ["failed", "finished", "finished"]
