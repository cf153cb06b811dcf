"""Whose a run folder is, and that a start which is refused leaves everything as it was."""

import os
import subprocess
import sys
import threading

import pytest

from aigc.errors import UserError
from aigc.runs.claim import claim_again, claim_new, claim_own, is_run
from aigc.runs.lock import FolderLock

from ..conftest import environment


def state(folder):
    """Every path under a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")}


def fill(folder, *files):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["a.png", "b.png", "c.png", "d.png", "e.png"], r"is not empty \(a.png, b.png, c.png and 2 more\): choose"),
        (["samples/a.png"], r"is not empty \(samples\)"),
        (["wandb/run"], r"is not empty \(wandb\)"),
        ([".lock"], r"is not empty \(.lock\)"),            # somebody else's file of that name
        ([".hydra/config.yaml"], "holds a run already"),
        (["summary.json"], "holds a run already: resume='.*' continues it, a new one needs another hydra.run.dir"),
        (["metrics.jsonl", ".lock"], "holds a run already"),
        (["checkpoints/last.ckpt"], "holds a run already"),
    ],
)
def test_a_folder_with_something_in_it_is_refused_and_stays_as_it_is(files, sentence, tmp_path):
    fill(tmp_path / "mine", *files)
    before = state(tmp_path)
    with pytest.raises(UserError, match=sentence):
        claim_new(tmp_path / "mine")
    assert state(tmp_path) == before


@pytest.mark.parametrize("files", [[], [".DS_Store", ".git/config"], ["train.log", "job.out", "job.err"]])
def test_an_empty_folder_is_taken_and_a_refused_start_leaves_what_was_there(files, tmp_path):
    (tmp_path / "mine").mkdir()
    fill(tmp_path / "mine", *files)
    (tmp_path / "mine" / "printed").touch()                # by a shell, for what the run will print
    before = state(tmp_path)
    claim = claim_new(tmp_path / "mine")
    fill(claim.folder, ".hydra/config.yaml", "summary.json", "wandb/x/y", "samples/000000000.png")
    claim.discard()
    claim.release()
    assert state(tmp_path) == before


def test_what_somebody_puts_there_meanwhile_stays(tmp_path):
    claim = claim_new(tmp_path / "a" / "b" / "run")
    fill(claim.folder, ".hydra/config.yaml", ".hydra/mine.yaml", "samples/notes.txt", "samples/000000000.png")
    claim.discard()
    claim.release()
    assert sorted(state(claim.folder)) == [".hydra", ".hydra/mine.yaml", "samples", "samples/notes.txt"]
    other = claim_new(tmp_path / "other")
    fill(other.folder, ".hydra/config.yaml", "summary.json", "thesis.tex")
    before = state(other.folder)
    other.discard()
    assert state(other.folder) == before


def test_a_refused_start_removes_the_folders_that_it_made_and_no_others(tmp_path):
    (tmp_path / "kept").mkdir()
    claim = claim_new(tmp_path / "kept" / "a" / "b" / "run")
    fill(claim.folder, ".hydra/config.yaml")
    claim.discard()
    claim.release()
    assert state(tmp_path) == {"kept": None}


def test_a_run_that_has_trained_is_never_discarded(tmp_path):
    claim = claim_new(tmp_path / "run")
    fill(claim.folder, ".hydra/config.yaml", "summary.json", "checkpoints/last.ckpt")
    before = {name: held for name, held in state(tmp_path).items() if not name.endswith(".lock")}
    claim.discard()
    claim.release()
    assert state(tmp_path) == before


def test_a_start_that_was_killed_before_its_first_record_leaves_a_folder_that_can_be_used(tmp_path):
    killed = "import os, sys; from pathlib import Path; from aigc.runs.claim import claim_new; " \
             "c = claim_new(Path(sys.argv[1])); (c.folder / '.hydra').mkdir(); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "run")], env=environment())
    assert done.returncode == -9 and sorted(os.listdir(tmp_path / "run")) == [".hydra", ".lock"]
    assert not is_run(tmp_path / "run")
    claim = claim_new(tmp_path / "run")
    claim.discard()
    claim.release()
    assert os.listdir(tmp_path / "run") == []


def test_names_that_carry_the_time_get_a_suffix_where_two_starts_meet(tmp_path):
    folder, claims = tmp_path / "runs" / "12-00-00_vae", []
    threads = [threading.Thread(target=lambda: claims.append(claim_new(folder, suffix=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = sorted(claim.folder.name for claim in claims)
    assert names == ["12-00-00_vae", "12-00-00_vae_2", "12-00-00_vae_3", "12-00-00_vae_4"]


def test_of_starts_that_name_the_same_folder_one_gets_it(tmp_path):
    for number in range(20):
        claims, refused = [], []
        ready = threading.Barrier(4)

        def go(folder=tmp_path / str(number), claims=claims, refused=refused, ready=ready):
            ready.wait()
            try:
                claims.append(claim_new(folder))
            except UserError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(claims) == 1 and all("is in use: process" in sentence for sentence in refused)
        assert FolderLock(claims[0].folder).holder()[1] == os.getpid()


def test_a_run_is_resumed_by_one_process_at_a_time(tmp_path):
    fill(tmp_path, "checkpoints/last.ckpt", ".hydra/config.yaml")
    before = state(tmp_path)
    claim = claim_own(tmp_path)
    with pytest.raises(UserError, match=rf"is in use: process {os.getpid()} on .* trains there; wait"):
        claim_own(tmp_path)
    with pytest.raises(UserError, match="holds a run already"):
        claim_new(tmp_path)
    claim.discard()                                        # nothing of a run that goes on
    claim.release()
    assert state(tmp_path) == before


def test_a_job_that_comes_again_takes_its_own_folder_and_not_anybody_elses(tmp_path):
    fill(tmp_path / "run", "metrics.jsonl")
    claim_again(tmp_path / "run").release()
    fill(tmp_path / "mine", "a.png")
    with pytest.raises(UserError, match="is not empty"):
        claim_again(tmp_path / "mine")
