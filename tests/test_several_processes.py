"""Two processes over gloo, started as a user would: equal weights, equal scores, one run folder."""

import json
import os
import signal
import subprocess
import time

import pytest

from aigc import launch
from aigc.checkpoints import read_checkpoint
from aigc.run import read_summary

from .conftest import COMMON, TINY, environment, python_train

SCORED = ["metrics.num_samples=24", "metrics.every_images=128", "metrics.validation_images=32", "metrics.num_reals=64",
          "metrics.kd_subset_size=16", "callbacks.samples.n=4"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
REPORT = "+callbacks.report._target_=tests.rank_report.RankReport"


def two(folder, *overrides):
    told = [f"hydra.run.dir={folder}/run", REPORT, f"+callbacks.report.folder={folder}"]
    return python_train(*COMMON, *TWO, *overrides, *told), environment(AIGC_ALLOW_TARGETS="tests")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gan", "vae", "diffusion"])
def test_two_processes_keep_equal_weights_and_scores(family, tmp_path):
    command, env = two(tmp_path, *TINY[family], *SCORED, "condition=label", "budget.images=256", "budget.minutes=null")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first["world"] == second["world"] == 2
    assert first["weights"] == second["weights"]
    assert first["images"] == second["images"] == 256  # 8 steps of 2 x 16, counted over both
    assert first["scores"] == second["scores"] and "label_accuracy" in first["scores"]
    assert len(set(first["indices"]) & set(second["indices"])) == 0
    assert len(set(first["indices"] + second["indices"])) == 256
    run = tmp_path / "run"
    written = sorted(p.name for p in run.iterdir())
    assert written == [".hydra", "checkpoints", "metrics.jsonl", "samples", "summary.json"]
    summary = read_summary(run)
    assert summary["devices"] == 2 and summary["global_batch"] == 32 and summary["scores"]["last"] == first["scores"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == sorted(line["images"] for line in lines)


@pytest.mark.slow
def test_sigterm_stops_both_after_the_same_step_and_resume_goes_on(tmp_path):
    shape = [*TINY["vae"], "metrics=none", "~callbacks.samples", "budget.minutes=null"]
    command, env = two(tmp_path, *shape, "budget.images=10000000")
    child = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not log.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 143, said
    assert read_summary(tmp_path / "run")["status"] == "stopped"
    stopped_at = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["progress"]["images"]
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first["images"] == second["images"] == stopped_at
    assert first["weights"] == second["weights"]

    more = stopped_at + 320
    again = subprocess.run(
        python_train(f"resume={tmp_path / 'run'}", f"budget.images={more}"), env=env, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "rank1.json").read_text())["images"] == more
    assert read_summary(tmp_path / "run")["status"] == "finished"


def test_ranks_and_devices_are_read_from_the_environment(monkeypatch):
    assert launch.rank() is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launch.rank() == 3
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.rank() == 1
    assert launch.count_devices("cpu", 2) == 2
    assert launch.count_devices("cpu", [0, 1, 2]) == 3
    assert launch.count_devices("cpu", "auto") == 1
