"""A SLURM job: its signal saves, asks for another turn, and the next turn goes on as if nothing had happened."""

import json
import os
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

from aigc.errors import UserError
from aigc.models.checkpoints import read_checkpoint
from aigc.runs.summary import read_summary
from aigc.training import launch
from tests import forked
from tests.conftest import TINY, environment, python_train
from tests.test_resume import assert_same, curve

SCONTROL = """#!/bin/sh
echo "$@" >> {said}
"""
WORDS = ["data=digits", "batch_size=16", "metrics=none", "logger=none", "~callbacks.samples", "log_every=7",
         "budget.minutes=null", "trainer=slurm", "trainer.accelerator=cpu", "study=s"]
IMAGES = 4800


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    """A machine with scontrol, and a job of two tasks on one node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(SCONTROL.format(said=tmp_path / "said.txt"))
    (folder / "scontrol").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_ID": "4242", "JOB_NAME": "train", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1",
                        "NODELIST": "127.0.0.1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path


class Job:
    """srun's part: one process a task, each told its rank; signals go to all; the first failure ends the others."""

    def __init__(self, where: Path, *words: str, **told: str) -> None:
        env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(launch.free_port()), **told)
        where.mkdir(exist_ok=True)
        ranks = [{f"SLURM_{name}": str(k) for name in ("PROCID", "LOCALID")} | {"SLURM_NODEID": "0"}
                 for k in range(int(env["SLURM_NTASKS"]))]
        self.tasks = [forked.Forked(python_train(*WORDS, *words), env=env | rank, cwd=where) for rank in ranks]

    def send_signal(self, number: int) -> None:
        for task in self.tasks:
            os.kill(task.pid, number)

    def wait(self, timeout: float) -> tuple[int, str, str]:
        """The exit code and what all tasks together said on stdout and stderr."""
        deadline = time.monotonic() + timeout
        while any(task.poll() is None for task in self.tasks):
            time.sleep(0.05)
            if any(task.returncode for task in self.tasks) or time.monotonic() > deadline:
                for task in self.tasks:
                    task.kill()
        said = [task.communicate() for task in self.tasks]
        code = max(abs(task.returncode) for task in self.tasks)
        return code, "".join(out for out, _ in said), "".join(err for _, err in said)


@pytest.mark.slow
def test_a_signalled_job_is_requeued_and_goes_on_as_if_nothing_had_happened(cluster):
    words = [*TINY["vae"], f"budget.images={IMAGES}"]
    whole = Job(cluster / "whole", *words)
    broken = Job(cluster / "broken", *words)
    run = cluster / "broken" / "runs" / "s" / "slurm_4242_0_vae_digits"
    deadline = time.monotonic() + 100
    while not (run / "metrics.jsonl").exists() and broken.tasks[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    broken.send_signal(signal.SIGUSR1)
    code, said, wrong = broken.wait(timeout=100)
    assert code == 0, wrong
    assert (cluster / "said.txt").read_text() == "requeue 4242\n"
    assert said.count("requeued: SLURM job 4242") == 1
    assert read_summary(run)["status"] == "stopped" and read_summary(run)["reason"] == "SIGUSR1"
    stood = read_checkpoint(run / "checkpoints" / "last.ckpt")["progress"]["images"]
    assert 0 < stood < IMAGES

    code, _, wrong = Job(cluster / "broken", *words, SLURM_RESTART_COUNT="1").wait(timeout=100)
    assert code == 0, wrong
    assert whole.wait(timeout=100)[0] == 0
    assert [path.name for path in run.parent.iterdir()] == [run.name]
    assert (cluster / "said.txt").read_text() == "requeue 4242\n"
    assert read_summary(run)["status"] == "finished" and read_summary(run)["devices"] == 2
    never = cluster / "whole" / "runs" / "s" / run.name
    files = [folder / "checkpoints" / "last.ckpt" for folder in (never, run)]
    assert_same(*(read_checkpoint(path) for path in files))
    assert curve(never) == curve(run)


@pytest.mark.slow
def test_a_job_that_comes_again_before_its_first_checkpoint_starts_anew(cluster):
    where = cluster / "one"
    run = where / "runs" / "s" / "slurm_7_3_vae_digits"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 7, "images": 112}) + "\n")
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "1",
             "SLURM_NTASKS_PER_NODE": "1"}
    code, _, wrong = Job(where, *TINY["vae"], "budget.images=224", **array).wait(timeout=100)
    assert code == 0, wrong
    assert [line["images"] for line in curve(run)] == [112, 224]  # and not 112 twice
    assert read_summary(run)["status"] == "finished"


def test_what_scontrol_says_is_handed_on(cluster, monkeypatch):
    assert launch.requeue() == "requeued: SLURM job 4242 will resume from its checkpoint"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert launch.requeue().startswith("requeued: SLURM job 7_3 ")
    assert (cluster / "said.txt").read_text() == "requeue 4242\nrequeue 7_3\n"
    (cluster / "bin" / "scontrol").write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"did not requeue job 7_3 \(Access denied\): submit it again with resume="):
        launch.requeue()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="No such file or directory"):
        launch.requeue()


def test_outside_slurm_it_is_refused(tmp_path):
    command = [sys.executable, "-m", "aigc.train", *WORDS, *TINY["vae"]]
    done = forked.run(command, env=environment(), cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last == "aigc: trainer=slurm is for SLURM jobs: start it with sbatch or srun, or use trainer=ddp"
    assert list(tmp_path.iterdir()) == []


def refused(where: Path, *words: str) -> list[tuple[int, str, float]]:
    """Exit code, sentences and seconds after the first end of two tasks, of which nobody ends the other."""
    tasks = []
    for number in "01":
        env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT="29317", SLURM_PROCID=number, SLURM_LOCALID=number,
                          SLURM_NODEID="0", SLURM_STEP_ID=where.name, AIGC_CACHE=str(where))
        command = [sys.executable, "-m", "aigc.train", *WORDS, *TINY["vae"], "budget.images=32", *words]
        tasks.append(forked.Forked(command, env=env, cwd=where))
    ends: dict[int, float] = {}
    deadline = time.monotonic() + 100
    while len(ends) < 2 and time.monotonic() < deadline:
        ends |= {k: time.monotonic() for k, task in enumerate(tasks) if k not in ends and task.poll() is not None}
        time.sleep(0.05)
    for task in tasks:
        task.kill()
    told = [task.communicate()[1] for task in tasks]
    return [(task.returncode, text, ends[k] - min(ends.values()))
            for k, (task, text) in enumerate(zip(tasks, told, strict=True))]


@pytest.mark.parametrize(("words", "sentence"), [
    (["hydra.run.dir=mine"], "is not empty (a.png): choose a new or an empty folder as hydra.run.dir"),  # one looks
    (["data=image_folder", "data.path=nowhere"], "data.path=nowhere does not exist"),  # both do
])
def test_where_one_task_is_refused_all_end_soon_with_its_code_and_one_sentence(words, sentence, cluster):
    mine = cluster / "mine"
    mine.mkdir()
    (mine / "a.png").write_text("precious")
    first, second = refused(cluster, *words)
    assert (first[0], second[0]) == (2, 2), (first, second)
    assert first[1].count("aigc: ") == 1 and sentence in first[1] and "aigc: " not in second[1], (first, second)
    assert "Traceback" not in first[1] + second[1] and max(first[2], second[2]) < 30
    assert [path.name for path in mine.iterdir()] == ["a.png"] and not list(cluster.glob("runs/*/*"))
