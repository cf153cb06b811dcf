"""What goes wrong says so in one sentence, with the right exit code, and nothing half-written."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aigc.errors import RunError, UserError, choices
from aigc.models.checkpoints import AtomicCheckpointIO, find_checkpoint, load_family, read_checkpoint
from aigc.runs.summary import read_summary
from aigc.training.fit import fit

from . import forked
from .conftest import COMMON, TINY, compose_train, environment, python_train

FAST = ["metrics=none", "~callbacks.samples"]


def run(*overrides: str, cwd: Path) -> subprocess.CompletedProcess:
    return forked.run(python_train(*overrides), env=environment(), cwd=cwd)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=gann"], "aigc: 'model=gann' does not exist: did you mean 'gan' or 'vqgan' or 'r3gan'?"),
        (["model.latnt=3", "model=vae"], "aigc: there is no option 'model.latnt': did you mean 'model.latent'"),
        (["model=vae", "model.latent=many"], "aigc: 'model.latent' is 'many', which does not fit int"),
        (["seed=abc"], "aigc: seed: Value 'abc' of type 'str' could not be converted to Integer"),
        (["data=mnist", "data.root=nowhere", "data.download=false"], "aigc: "),
        (["data=image_folder", "data.path=nowhere"], "aigc: "),
        (["data=image_folder"], "aigc: 'data' needs the option 'path': add data.path=<value>"),
        (["condition=lable"], "aigc: Diffusion has no condition 'lable': did you mean 'label'?"),
        (["resume=nowhere"], "aigc: resume="),
        (["log_every=0"], "aigc: log_every must be a whole number of at least 1, not 0"),
        (["callbacks.samples.every_images=0"], "aigc: callbacks.samples.every_images must be a whole number"),
        (["data=digits", "metrics=inception", "metrics.weights=nowhere.pt"], "aigc: "),
        (["trainer=gpu"], "aigc: trainer.accelerator=gpu, but torch sees no GPU"),
    ],
)
def test_bad_input_is_one_sentence_exit_code_2_and_leaves_nothing(overrides, sentence, tmp_path):
    if overrides == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run(*overrides, cwd=tmp_path)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert said[-1].startswith(sentence), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["evaluate", "generate"])
def test_an_option_that_is_needed_is_named_and_nothing_else_said(module, tmp_path):
    done = forked.run([sys.executable, "-m", f"aigc.{module}"], env=environment(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "aigc: the option 'run' is needed: give it as <option>=<value>\n"


def test_corrupt_data_are_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            (raw / name).write_bytes(b"not an idx file")
    done = run("data=mnist", f"data.root={tmp_path}", "data.download=false", "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert str(tmp_path) in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()



def test_nan_in_a_loss_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    from aigc.models.vae import VAE

    healthy = VAE.training_step

    def poisoned(self, batch, batch_idx):
        out = healthy(self, batch, batch_idx)
        return {**out, "loss": out["loss"] * float("nan")} if self.progress.images >= 480 else out

    monkeypatch.setattr(VAE, "training_step", poisoned)
    often = "callbacks.checkpoint.every_seconds=0"
    cfg = compose_train(*TINY["vae"], *FAST, "budget.images=3200", "log_every=3", often)
    with pytest.raises(RunError, match=r"became (nan|infinite or NaN).* the last good checkpoint is kept"):
        fit(cfg, tmp_path)
    good = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert good["progress"]["images"] == 480
    assert all(torch.isfinite(v).all() for v in good["state_dict"].values() if v.is_floating_point())
    assert read_summary(tmp_path)["status"] == "failed"
    assert "NaN" in read_summary(tmp_path)["reason"] or "nan" in read_summary(tmp_path)["reason"]

    monkeypatch.setattr(VAE, "training_step", healthy)
    assert fit(cfg, tmp_path, resumed=True)["status"] == "finished"


def limited(bytes_: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


def test_a_disk_that_takes_no_more_ends_the_run_and_keeps_the_checkpoint(tmp_path):
    cfg = compose_train(*TINY["gan"], *FAST, "budget.images=160")
    fit(cfg, tmp_path)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / ".hydra").mkdir()
    from omegaconf import OmegaConf

    OmegaConf.save(cfg, tmp_path / ".hydra" / "config.yaml")
    done = subprocess.run(
        python_train(f"resume={tmp_path}", "budget.images=320"), env=environment(), capture_output=True, text=True,
        preexec_fn=limited(len(before) // 2),
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("aigc: the checkpoint ") and "make room and resume" in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(*COMMON, *TINY["vae"], "budget.images=160", "hydra.run.dir=file/run", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "file/run" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["model=pix2pix"], ["-m", "seed=1,2"]])
def test_a_start_that_is_refused_touches_nothing_in_the_users_folder(words, tmp_path):
    mine = tmp_path / "mine" / "samples" / "a.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    before = {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    option = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
    done = run(*words, "data=digits", f"{option}=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert f"is not empty (samples): choose a new or an empty folder as {option}" in done.stderr
    assert {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_one_image_a_step_is_refused_where_batch_norm_needs_two_and_trains_elsewhere(tmp_path):
    one = ["model=dcgan", *FAST, "batch_size=1", "budget.images=2"]
    with pytest.raises(UserError, match="batch_size=1 is too small: the batch norm of this GAN needs at least 2"):
        fit(compose_train(*one), tmp_path / "small")       # 8 px: the generator starts from a single pixel
    assert not (tmp_path / "small").exists()
    large = ["data=shapes", "data.train=8", "data.validation=4", "data.test=4", "model.generator_widths=[8,8,8]",
             "model.discriminator_widths=[8,8,8]"]
    assert fit(compose_train(*one, *large), tmp_path / "large")["images"] == 2


PARTS = {"family": "x", "state_dict": {}, "hyper_parameters": {}, "progress": {}}  # what a checkpoint has at least


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({**PARTS, "n": 1}, path)

    def half(obj, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(RunError, match=r"No space left on device.*the previous last.ckpt is intact"):
        AtomicCheckpointIO().save_checkpoint({**PARTS, "n": 2}, path)
    assert read_checkpoint(path)["n"] == 1
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_missing_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="has no checkpoint"):
        find_checkpoint(tmp_path)
    junk = tmp_path / "junk.ckpt"
    junk.write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_family(junk)
    torch.save({"state_dict": {}}, junk)
    with pytest.raises(UserError, match="not a checkpoint of aigc"):
        load_family(junk)
    torch.save({"state_dict": {}, "family": "os.system", "hyper_parameters": {}, "progress": {}}, junk)
    with pytest.raises(UserError, match="is not allowed there"):
        load_family(junk)


def test_choices_names_the_nearest_or_all():
    assert choices("heunn", ["heun", "euler"]) == "did you mean 'heun'?"
    assert choices("zzz", ["b", "a"]) == "choose from a, b"


def test_a_run_says_what_it_is(tmp_path):
    fit(compose_train(*TINY["gan"], *FAST, "budget.images=160"), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["images"] == 160
    assert summary["family"] == "GAN" and summary["parameters"] > 1000 and summary["global_batch"] == 16
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert summary["images_per_second"] == pytest.approx(160 / summary["seconds"], rel=0.02)
    assert summary["peak_memory_mb"] > 50
