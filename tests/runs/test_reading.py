import json
import math
import subprocess
import sys
import threading

import pytest

from aigc.errors import UserError
from aigc.runs.reading import find_runs, read_run, read_runs
from tests.conftest import environment
from tests.report.made import evaluate, make_run


def test_runs_are_found_at_any_depth_by_folder_glob_and_list_each_once(tmp_path):
    one = make_run(tmp_path / "runs" / "study" / "one")
    two = make_run(tmp_path / "runs" / "study" / "sweep" / "0_gan")
    (one / "wandb" / "offline-run-1_abc").mkdir(parents=True)
    (one / "wandb" / "offline-run-1_abc" / "run-abc.wandb").touch()             # the same run again
    (tmp_path / "runs" / "other" / ".hydra").mkdir(parents=True)                # another program's job
    (tmp_path / "runs" / "other" / ".hydra" / "config.yaml").write_text("port: 80\n")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs" / "study")
    assert find_runs(tmp_path / "runs") == [one, two]
    assert find_runs(str(tmp_path / "runs" / "*")) == [one, two]
    assert find_runs([str(one), str(tmp_path / "runs" / "study")]) == [one, two]
    assert find_runs(str(tmp_path / "**" / "0_gan")) == [two]
    with pytest.raises(UserError, match=r"other' holds no run: give a folder"):
        find_runs([one, tmp_path / "runs" / "other"])
    with pytest.raises(UserError, match=r"none' does not exist: "):
        find_runs(tmp_path / "none")


def test_numbers_are_names_of_folders_too_and_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [make_run(tmp_path / name / "one") for name in ("2024", "nan")]
    assert find_runs([2024, float("nan")]) == made and find_runs(2024) == made[:1]
    for nothing in (None, [], [None]):
        with pytest.raises(UserError, match=r"^runs= names nothing: give a folder"):
            find_runs(nothing)


def test_w_and_b_runs_are_read_several_at_a_time(tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=10)                 # passes only when two are in it

    def inspect(command, **options):
        both.wait()
        return subprocess.CompletedProcess(command, 0, '{"type": "exit", "exit": {"exit_code": 0}}\n', "")

    monkeypatch.setattr(subprocess, "run", inspect)
    for name in "ab":
        (tmp_path / f"offline-run-1_{name}").mkdir()
        (tmp_path / f"offline-run-1_{name}" / f"run-{name}.wandb").touch()
    assert [(run.name, run.status) for run in read_runs(tmp_path)] == [
        (f"offline-run-1_{name}", "finished") for name in "ab"]


def test_a_run_is_read_whole(tmp_path):
    folder = make_run(tmp_path / "a", overrides=("model=gan",))
    (folder / "samples" / "000006400_b2a.png").write_bytes((folder / "samples" / "000006400.png").read_bytes())
    evaluate(folder, "later", 2.0, 20)
    evaluate(folder, "earlier", 3.0, 10)
    run = read_run(folder)
    assert (run.name, run.study, run.family, run.data, run.status) == ("a", "made", "GAN", "digits", "finished")
    assert run.config["model"]["rate"] == 1e-3 and run.overrides == ["model=gan", "seed=1"]
    assert len(run.history) == 22 and run.history[0]["loss"] == 1.0
    assert {key: sorted(found) for key, found in run.samples.items()} == {"samples": [0, 6400, 12800], "b2a": [6400]}
    assert [record["made"] for record in run.evaluations] == ["earlier", "later"]
    assert run.warnings == []


def test_broken_files_cost_themselves_alone_and_are_said(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "summary.json").write_text("{")
    (folder / ".hydra" / "overrides.yaml").write_text("a: 1\n")
    text = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("nonsense\n" + text + '{"step": 3, "los')     # the last is being written
    evaluate(folder, "one", 2.0, 20)
    (folder / "evaluations" / "two.json").write_text("[]")
    run = read_run(folder)
    assert len(run.history) == 22 and len(run.evaluations) == 1 and run.family == "gan" and run.status == "unknown"
    assert len(run.warnings) == 4
    assert "summary.json could not be read" in run.warnings[0]
    assert "overrides.yaml holds no list" in run.warnings[1]
    assert run.warnings[2] == "1 of 23 lines of metrics.jsonl is broken and left out"
    assert "two.json holds no mapping" in run.warnings[3]


def test_jobs_of_a_multirun_that_left_no_run_are_there_too(tmp_path):
    sweep = tmp_path / "made" / "sweep"
    make_run(sweep / "0_gan")
    (sweep / "multirun.yaml").touch()
    jobs = [{"number": 0, "folder": "0_gan", "status": "finished"},
            {"number": 1, "folder": "1_vae", "status": "failed", "reason": "no memory", "overrides": ["model=vae"]}]
    (sweep / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    found = read_runs(sweep)
    assert [(run.name, run.family, run.status) for run in found] == [
        ("sweep/0_gan", "GAN", "finished"), ("sweep/1_vae", "vae", "failed"),
    ]
    (sweep / "jobs.json").write_text('{"jobs": [')
    assert [run.name for run in read_runs(sweep)] == ["sweep/0_gan"]


PROGRAM = """
import numpy as np, wandb
run = wandb.init(mode="offline", project="elsewhere", name="plain", group="tries", config={"lr": 0.1, "model": "Net"})
for step in range(6):
    log = {"loss": 1 / (step + 1), "psnr": float("nan") if step == 3 else 10.0 + step, "note": "words"}
    if step % 5 == 0:
        log["faces"] = [wandb.Image(np.full((8, 8, 3), 40 * step + k, np.uint8)) for k in range(2)]
    run.log(log)
run.finish()
"""


def test_offline_wandb_runs_of_other_programs_are_read(tmp_path):
    here = environment(WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = find_runs(tmp_path)
    run = read_run(folder)
    assert (run.name, run.study, run.family, run.status, run.source) == ("plain", "tries", "Net", "finished", "wandb")
    assert run.config == {"lr": 0.1, "model": "Net"} and run.warnings == []
    assert [line["loss"] for line in run.history] == [pytest.approx(1 / k) for k in range(1, 7)]
    assert [line["step"] for line in run.history] == list(range(6)) and math.isnan(run.history[3]["psnr"])
    assert set(run.history[0]) == {"step", "seconds", "loss", "psnr"}
    assert {key: sorted(found) for key, found in run.samples.items()} == {"faces": [0, 5], "faces 2": [0, 5]}
    (folder / f"run-{folder.name.split('-')[-1]}.wandb").write_bytes(b"nothing")
    assert "W&B could not read" in read_run(folder).warnings[0]
