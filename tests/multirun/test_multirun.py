"""Multiruns as users start them, stop them and lose them: real processes, real training."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aigc.models.checkpoints import read_checkpoint
from aigc.multirun.ledger import Ledger
from aigc.runs.lock import FolderLock
from aigc.runs.summary import read_summary
from aigc.training.fit import fit

from ..conftest import TINY, compose_train, environment, python_train
from ..test_resume import assert_same, curve

WORDS = ["data=digits", "trainer=cpu", "logger=none", "batch_size=16", *TINY["vae"], "metrics=none",
         "~callbacks.samples", "log_every=7", "budget.minutes=null", "callbacks.checkpoint.every_seconds=0.2",
         "study=s"]


def start(where: Path, *words: str, **told: str) -> subprocess.Popen:
    return subprocess.Popen(python_train("-m", *WORDS, *words), env=environment(**told), cwd=where, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(path: Path, pattern: str, child: subprocess.Popen) -> Path:
    """The first file of that name once it is there and has something in it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for found in path.glob(pattern):
            if found.stat().st_size:
                return found
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    raise AssertionError(f"{pattern} did not come")


def states(folder: Path) -> list[tuple[str, str | None]]:
    return [(job["status"], job["reason"]) for job in Ledger(folder).jobs()]


@pytest.mark.slow
def test_a_multirun_that_was_killed_ends_with_exactly_the_jobs_that_were_missing(tmp_path):
    words = ["seed=1,2,3", "budget.images=4800"]
    first = start(tmp_path, *words)
    interrupted = wait_for(tmp_path, "runs/s/*_multirun/1_vae_digits/checkpoints/last.ckpt", first).parents[1]
    folder = interrupted.parent
    first.kill()
    first.communicate()
    assert not (folder / "2_vae_digits").exists()
    done = {path: path.stat().st_mtime_ns for path in (folder / "0_vae_digits").rglob("*") if path.is_file()}
    assert read_summary(folder / "0_vae_digits")["status"] == "finished"

    second = start(tmp_path, *words)
    said, wrong = second.communicate(timeout=120)
    assert second.returncode == 0, wrong
    assert f"{folder.relative_to(tmp_path)} resumed, 1 job is finished" in said
    assert "0_vae_digits  seed=1  started" not in said
    assert "[2/3] 1_vae_digits  seed=2  goes on" in said and "[3/3] 2_vae_digits  seed=3  started" in said
    assert [path.name for path in (tmp_path / "runs" / "s").iterdir()] == [folder.name]
    assert states(folder) == [("finished", None)] * 3
    assert done == {path: path.stat().st_mtime_ns for path in done}      # what was finished was not touched
    assert "SIGTERM" in (interrupted / "output.log").read_text()         # the orphan was told, and saved
    assert read_summary(interrupted)["images"] == 4800

    whole = tmp_path / "whole"                                           # and is as if nothing had happened
    own = ["seed=2" if word == "seed=1,2,3" else word for word in words]
    fit(compose_train(*WORDS, *own, common=False), whole)
    files = [run / "checkpoints" / "last.ckpt" for run in (whole, interrupted)]
    assert_same(*(read_checkpoint(path) for path in files))
    assert curve(whole) == curve(interrupted)
    typed = OmegaConf.to_container(OmegaConf.load(folder / "2_vae_digits" / ".hydra" / "overrides.yaml"))
    assert typed == [*WORDS, "seed=3", "budget.images=4800"]             # exactly its own


@pytest.mark.slow
def test_a_failed_job_is_reported_the_next_goes_on_with_its_two_devices_and_ctrl_c_saves_it(tmp_path):
    devices = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    torn = {"LOCAL_RANK": "1", "NODE_RANK": "3", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}  # of whoever started us
    child = start(tmp_path, "condition=lable,none,label", "budget.images=5000000", *devices, **torn)
    going = wait_for(tmp_path, "runs/s/*_multirun/1_*/checkpoints/last.ckpt", child).parents[1]
    folder = going.parent
    os.kill(child.pid, signal.SIGINT)
    said, wrong = child.communicate(timeout=60)
    assert child.returncode == 130 and wrong.strip().splitlines()[-1] == "aigc: interrupted"
    assert [job["status"] for job in Ledger(folder).jobs()] == ["failed", "stopped", "waiting"]
    assert Ledger(folder).jobs()[0]["reason"] == "VAE has no condition 'lable': did you mean 'label'?"
    assert 0 < read_checkpoint(going / "checkpoints" / "last.ckpt")["progress"]["images"] < 5000000
    summary = read_summary(going)
    assert (summary["status"], summary["reason"], summary["devices"]) == ("stopped", "interrupted", 2)
    assert "Traceback" not in (going / "output.log").read_text()
    lines = said.splitlines()
    table = lines[lines.index("") + 1:]
    assert table[0].split() == ["job", "options", "status", "minutes", "score"] and len(table) == 4
    assert "condition=lable" in table[1] and "failed: VAE has no condition 'lable'" in table[1]
    assert "stopped: interrupted" in table[2] and table[3].split()[-1] == "waiting"
    lock = FolderLock(going)
    assert lock.take()                                                   # nobody works there any more
    lock.release()


@pytest.mark.slow
def test_submitit_runs_a_search_for_real_and_a_second_start_tries_nothing_twice(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    losses = [word for word in WORDS if word != "metrics=none"]
    command = python_train(
        *losses, "hparams_search=random", "hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2", "metrics=losses",
        "metrics.monitor=val/elbo", "metrics.mode=max", "metrics.validation_images=50", "budget.images=320",
        "model.rate=tag(log,interval(1e-4,1e-2))", "hydra.sweeper.n_trials=2",
    )
    for _ in range(2):
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert "resumed, 2 jobs are finished" in done.stdout and "started" not in done.stdout
    (folder,) = (tmp_path / "runs" / "s").iterdir()
    content = json.loads((folder / "jobs.json").read_text())
    assert [job["status"] for job in content["jobs"]] == ["finished"] * 2
    scores = [job["score"] for job in content["jobs"]]
    (best,) = content["search"]["best"]
    assert best["values"] == [max(scores)] and best["number"] == scores.index(max(scores))
    assert f"trial {best['number']}: val/elbo" in done.stdout
    shown = subprocess.run(
        python_train("--config-dir", str(folder), "experiment=best", "--cfg", "job"), env=environment(), cwd=tmp_path,
        capture_output=True, text=True,
    )
    trained = OmegaConf.load(folder / content["jobs"][best["number"]]["folder"] / ".hydra" / "config.yaml")
    asked = OmegaConf.create(shown.stdout)
    del asked.callbacks.samples                                          # what `~callbacks.samples` took away
    assert asked == trained


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found by /proc")
def test_a_job_whose_supervisor_is_killed_on_a_cluster_does_not_end_the_others(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    child = start(tmp_path, "seed=1,2", "budget.images=20000", "hydra/launcher=submitit_local")
    killed = wait_for(tmp_path, "runs/s/*_multirun/0_*/checkpoints/last.ckpt", child).parents[1]
    wait_for(tmp_path, "runs/s/*_multirun/1_*/checkpoints/last.ckpt", child)
    _, trains = FolderLock(killed).holder()
    os.kill(int(Path(f"/proc/{trains}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    said, wrong = child.communicate(timeout=200)
    assert child.returncode == 1 and "of 2 jobs 1 failed" in wrong and "Traceback" not in wrong
    (lost, reason), finished = states(killed.parent)
    assert lost == "failed" and reason.startswith("the launcher lost it: UncompletedJobError")
    assert finished == ("finished", None) and "1_vae_digits  seed=2" in said
