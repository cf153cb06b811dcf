"""What a job is told, where a multirun lives, and who may work there."""

import json
import os
import subprocess
import sys
import time

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from aigc.config.words import as_typed, override, quoted
from aigc.errors import UserError
from aigc.multirun.jobs import Job, note_waiting
from aigc.multirun.ledger import Ledger, Multirun, find_folder, table
from aigc.runs.lock import FolderLock
from aigc.runs.summary import write_summary
from aigc.training import launch

from ..conftest import environment


def composed(folder, *task, typed=(), dirs=()):
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "output_subdir": ".hydra",
                                       "overrides": {"task": list(task), "hydra": list(typed)},
                                       "runtime": {"config_sources": [own(path) for path in dirs]}}})


def own(path):
    return {"schema": "file", "path": path, "provider": "command-line"}


def test_the_same_command_finds_its_newest_folder_and_another_does_not(tmp_path):
    command = {"overrides": ["seed=1,2"], "params": {}}
    for name in ("2026-01-01_multirun", "2026-01-02_multirun"):
        with Ledger(tmp_path / name).change() as content:
            content["command"] = command
    with Ledger(tmp_path / "2026-01-03_multirun").change() as content:
        content["command"] = {**command, "params": {"model.latent": "1,2"}}
    config = composed(tmp_path / "now_multirun")
    assert find_folder(config, command).name == "2026-01-02_multirun"
    assert find_folder(config, {"overrides": ["seed=1,2,3"], "params": {}}).name == "now_multirun"
    taken = tmp_path / "2026-01-01_multirun"
    config = composed(taken, typed=[f"hydra.sweep.dir={taken}"])
    assert find_folder(config, command) == taken
    with pytest.raises(UserError, match=r"holds another multirun \(seed=1,2\): choose another hydra.sweep.dir"):
        find_folder(config, {"overrides": ["seed=3"], "params": {}})


def test_a_multirun_that_goes_on_is_not_started_twice_and_a_refused_one_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Multirun(composed("runs/m", "seed=1,2"), {}) as first:
        assert first.record.read()["command"]["overrides"] == ["seed=1,2"]
        with pytest.raises(UserError, match=rf"already running, as process {os.getpid()} on .*'runs/m'"):
            Multirun(composed("runs/m", "seed=1,2"), {}).__enter__()
        first.record.note(0, status="waiting", reason=None, folder="0", shown="")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="resume= continues one run"):
        Multirun(composed("runs/m", "resume=a,b"), {})


def test_a_second_start_that_is_refused_keeps_what_the_first_one_left(tmp_path):
    killed = Ledger(tmp_path / "m")
    with killed.change() as content:
        content |= {"command": {"overrides": ["seed=1,2"], "params": {}}, "jobs": []}
    killed.note(0, status="running", reason=None, folder="0", shown="")
    (tmp_path / "m" / "study.db").write_text("trials")
    with pytest.raises(KeyboardInterrupt), Multirun(composed(tmp_path / "m", "seed=1,2"), {}):
        raise KeyboardInterrupt
    assert [job["status"] for job in killed.jobs()] == ["waiting"] and (tmp_path / "m" / "study.db").exists()


def test_a_first_start_that_had_begun_a_job_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), Multirun(composed(tmp_path / "m", "seed=1,2"), {}) as first:
        first.record.note(0, status="waiting", reason=None, folder="0", shown="")
        (first.folder / "0").mkdir()
        raise KeyboardInterrupt
    assert first.record.path.is_file()


def test_the_same_words_on_other_config_folders_are_another_multirun(tmp_path):
    for name in ("a", "b"):
        with Ledger(tmp_path / f"{name}_multirun").change() as content:
            content["command"] = Multirun(composed(tmp_path / "now", "experiment=best", dirs=[f"/{name}"]), {}).command
    for name in ("a", "b"):
        again = Multirun(composed(tmp_path / "now", "experiment=best", dirs=[f"/{name}"]), {})
        assert again.folder.name == f"{name}_multirun"
    assert Multirun(composed(tmp_path / "now", "experiment=best"), {}).folder.name == "now"


def test_a_lock_is_held_by_the_child_and_taken_over_once_it_has_ended(tmp_path):
    lock = FolderLock(tmp_path)
    assert lock.take()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock.descriptor,))
    lock.note(child.pid)
    lock.release()                                         # as if this process had been killed
    second = FolderLock(tmp_path)
    assert not second.take() and second.holder()[1] == child.pid
    started = time.monotonic()
    second.take_over(30)
    assert child.wait() == -15 and time.monotonic() - started < 10
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", stubborn], pass_fds=(second.descriptor,), stdout=subprocess.PIPE)
    child.stdout.readline()
    second.note(child.pid)
    second.release()
    with pytest.raises(UserError, match=rf"is in use by process {child.pid} on .*: wait for it, or end it"):
        FolderLock(tmp_path).take_over(0.3)
    child.kill()
    child.communicate()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child that its parent has ended")
def test_a_process_ends_with_the_one_that_started_it_even_by_sigkill(tmp_path):
    child = ("import time; from aigc.training import launch; launch.end_with_parent(); print('on', flush=True); "
             "time.sleep(60)")
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    told = "import os, sys; os.environ['AIGC_PARENT'] = str(os.getpid()); " + parent
    grown = subprocess.Popen([sys.executable, "-c", told], env=environment(), stdout=subprocess.PIPE, text=True)
    assert grown.stdout.readline() == "on\n"
    grown.kill()
    grown.wait()
    assert grown.stdout.read() == ""                       # ends when the child, which holds it too, has ended
    late = {launch.PARENT_VARIABLE: str(grown.pid)}        # it has ended before the child could ask for the signal
    assert subprocess.run([sys.executable, "-c", child], env=environment(**late)).returncode == 143


@pytest.mark.parametrize("text", ["red star", "a, b", "{style} of {text}", "it's", r"back\slash", "[x", "a=b", "100%"])
def test_free_text_reaches_a_job_as_it_was_meant(text):
    parse = OverridesParser.create().parse_override
    meant = parse(quoted(f"data.text={text}"))
    hydras_own = f"data.text={meant.get_value_element_as_str()}"
    assert parse(quoted(as_typed(hydras_own))).value() == text
    assert parse(override("hydra.run.dir", text)).value() == text
    assert as_typed("model.widths=[8, 16]") == "model.widths=[8, 16]"


def test_a_job_starts_anew_without_checkpoint_and_goes_on_with_one(tmp_path):
    job = Job(0, ["seed=3"], tmp_path / "0", "abc", {}, words=["--config-dir=/mine"])
    (tmp_path / "0" / "samples").mkdir(parents=True)
    (tmp_path / "0" / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "0" / "output.log").write_text("said\n")
    start = [sys.executable, "-m", "aigc.train", "--config-dir=/mine", "hydra.mode=RUN"]
    assert job.command() == [*start, "seed=3", f"hydra.run.dir='{tmp_path / '0'}'"]
    assert [path.name for path in (tmp_path / "0").iterdir()] == ["output.log"]  # nothing half-written stays
    for name in ("checkpoints/last.ckpt", ".hydra/config.yaml"):
        (tmp_path / "0" / name).parent.mkdir()
        (tmp_path / "0" / name).write_text("budget: {images: 100}")
    job.budget = {"images": 100}
    assert job.command() == [*start, f"resume={tmp_path / '0'}"]
    assert not job.finished
    (tmp_path / "0" / "summary.json").write_text(json.dumps({"status": "finished", "signature": "abc"}))
    assert job.finished
    job.budget = {"images": 200}                           # by an experiment's file, say
    with pytest.raises(UserError, match="holds a run whose configuration has changed since"):
        _ = job.finished
    job.budget, job.signature = {"images": 100}, "other"
    with pytest.raises(UserError, match="holds a run whose configuration has changed since"):
        _ = job.finished
    (tmp_path / "0" / "summary.json").write_text(json.dumps({"status": "failed", "signature": "abc"}))
    with pytest.raises(UserError, match="holds a run whose configuration has changed since"):
        _ = job.finished
    (tmp_path / "0" / "checkpoints" / "last.ckpt").unlink()
    assert not job.finished                                # it failed before it had saved anything: is tried anew


def test_nothing_is_noted_where_a_job_belongs_to_another_configuration(tmp_path):
    record, jobs = Ledger(tmp_path), [Job(k, [], tmp_path / str(k), "abc", {}) for k in range(2)]
    record.note(1, status="finished", reason=None, folder="1", shown="")
    write_summary(jobs[1].folder, status="finished", signature="other")
    with pytest.raises(UserError, match="holds a run whose configuration"):
        note_waiting(jobs, record)
    assert [(job["number"], job["status"]) for job in record.jobs()] == [(1, "finished")]


def test_the_table_is_aligned_and_its_numbers_are_short():
    jobs = [
        {"number": 0, "folder": "0_gan", "shown": "model.lr=0.0016051911333587634", "status": "finished",
         "reason": None, "seconds": 90.0, "score": 0.123456, "monitor": "fd_classifier"},
        {"number": 1, "folder": "1_gan", "shown": "model.lr=1e-05", "status": "failed", "reason": "no\nroom"},
    ]
    assert table(jobs).splitlines() == [
        "job    options            status           minutes  fd_classifier",
        "0_gan  model.lr=0.001605  finished             1.5         0.1235",
        "1_gan  model.lr=1e-05     failed: no room",
    ]
