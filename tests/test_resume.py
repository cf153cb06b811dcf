"""A run that was stopped, in whatever way, and resumed is the run that never stopped, bit for bit."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.models.checkpoints import read_checkpoint
from aigc.runs.lock import FolderLock
from aigc.runs.resume import over_saved, resumed_config
from aigc.runs.summary import read_summary
from aigc.training.fit import fit

from . import forked
from .conftest import COMMON, TINY, compose_train, environment, python_train
from .families import words

IMAGES = 3200
CLOCKWORK = ("seconds", "loops", "callbacks", "epoch")  # what clocks and Lightning's own counters of restarts say
FAST = ["metrics=none", "~callbacks.samples", "log_every=7"]


def assert_same(first, second, where="checkpoint"):
    """Equal to the last bit, through dicts, lists and tensors."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            if key not in CLOCKWORK:
                assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def curve(folder: Path) -> list[dict]:
    """The logged lines without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def start(folder: Path, family: str, *more: str) -> forked.Forked:
    command = python_train(
        *COMMON, *TINY[family], *FAST, f"budget.images={IMAGES}", "budget.minutes=null",
        "callbacks.checkpoint.every_seconds=0.2", f"hydra.run.dir={folder}", *more,
    )
    return forked.Forked(command, env=environment())


def images_in(path: Path) -> int:
    return read_checkpoint(path)["progress"]["images"]


@pytest.mark.parametrize(
    ("family", "number"),
    [("gan", signal.SIGKILL), ("vae", signal.SIGKILL), ("diffusion", signal.SIGKILL),
     ("gan", signal.SIGTERM), ("vae", signal.SIGINT)],
)
def test_stopped_at_any_moment_and_resumed_equals_uninterrupted(family, number, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    cfg = compose_train(*TINY[family], *FAST, f"budget.images={IMAGES}", "budget.minutes=null")
    fit(cfg, whole)

    child = start(broken, family)
    last = broken / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(child.pid, number)
    _, said = child.communicate(timeout=60)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert child.returncode == expected, said
    stopped_at = images_in(last)
    assert 0 < stopped_at < IMAGES
    if number != signal.SIGKILL:
        assert read_summary(broken)["status"] == "stopped"
        assert read_summary(broken)["reason"] == number.name
        assert "Traceback" not in said

    saved = compose_train(*TINY[family], *FAST, f"budget.images={IMAGES}", "budget.minutes=null")
    summary = fit(saved, broken, resumed=True)
    assert summary["status"] == "finished"
    assert_same(read_checkpoint(whole / "checkpoints" / "last.ckpt"), read_checkpoint(last))
    assert curve(whole) == curve(broken)


@pytest.mark.parametrize("family", ["biggan"])
def test_resumed_from_between_a_players_turns_equals_uninterrupted(family, tmp_path):
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    told = [*words(family), *FAST, "budget.minutes=null", "model.decay_from=1"]     # rates that no budget changes
    fit(compose_train(*told, "budget.images=96"), whole)
    fit(compose_train(*told, "budget.images=48"), halved)  # three batches: the generator's turn is every second
    fit(compose_train(*told, "budget.images=96"), halved, resumed=True)
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, halved))
    assert one["progress"]["images"] == 96 and any(name.endswith("_u") for name in one["state_dict"])
    assert_same(one["state_dict"], other["state_dict"])
    assert_same(one["optimizer_states"], other["optimizer_states"])


def test_resume_from_the_command_line_continues_in_the_same_folder(tmp_path):
    folder = tmp_path / "run"
    cfg = compose_train(*TINY["vae"], *FAST, "budget.images=640", "budget.minutes=null")
    fit(cfg, folder)
    assert images_in(folder / "checkpoints" / "last.ckpt") == 640
    (folder / ".hydra").mkdir()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    before = (folder / ".hydra" / "config.yaml").read_bytes()
    done = forked.run(python_train(f"resume={folder}", "budget.images=1280"), env=environment(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert images_in(folder / "checkpoints" / "last.ckpt") == 1280
    assert (folder / ".hydra" / "config.yaml").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    seen = [line["images"] for line in curve(folder)]
    assert seen == sorted(set(seen)) and seen[-1] == 1280


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    cfg = compose_train(*TINY["vae"], *FAST, "budget.images=320", "budget.minutes=null")
    fit(cfg, tmp_path)
    before = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert fit(cfg, tmp_path, resumed=True)["images"] == 320
    assert_same(before, read_checkpoint(tmp_path / "checkpoints" / "last.ckpt"))


def test_resume_refuses_what_would_make_another_experiment(tmp_path):
    cfg = compose_train(*TINY["vae"], *FAST, "budget.images=320")
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(cfg, tmp_path / ".hydra" / "config.yaml")
    with pytest.raises(UserError, match=r"'model\.latent' cannot change when a run is resumed"):
        resumed_config(cfg, tmp_path, ["resume=x", "model.latent=3"])
    cfg.budget.images = 999
    changed = resumed_config(cfg, tmp_path, ["resume=x", "budget.images=999"])
    assert changed.budget.images == 999
    with pytest.raises(UserError, match="not a run folder"):
        resumed_config(cfg, tmp_path / "none", [])


def test_another_number_of_images_a_step_is_refused_and_the_summary_stays(tmp_path):
    fit(compose_train(*TINY["vae"], *FAST, "budget.images=160"), tmp_path)
    before, lines = read_summary(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 999999}\n')                 # what a resumed run would cut off
    with pytest.raises(UserError, match=r"16 images a step over all devices, this would be 32: give batch_size=16"):
        fit(compose_train(*TINY["vae"], *FAST, "budget.images=320", "batch_size=32"), tmp_path, resumed=True)
    assert read_summary(tmp_path) == before
    with pytest.raises(UserError, match="seed"):
        fit(compose_train(*TINY["vae"], *FAST, "budget.images=320", "data.seed=5"), tmp_path, resumed=True)
    with pytest.raises(UserError, match="number of training images"):
        fit(compose_train(*TINY["vae"], *FAST, "budget.images=320", "data.validation=7"), tmp_path, resumed=True)
    assert read_summary(tmp_path) == before                 # a refused resume changes nothing
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines + b'{"images": 999999}\n'


def test_another_family_in_the_folder_is_refused(tmp_path):
    fit(compose_train(*TINY["vae"], *FAST, "budget.images=160"), tmp_path)
    with pytest.raises(UserError, match=r"holds a aigc\.models\.vae\.VAE, the configuration asks for"):
        fit(compose_train(*TINY["gan"], *FAST, "budget.images=160"), tmp_path, resumed=True)


def test_a_resume_that_lacks_weights_of_its_scores_is_refused_and_changes_nothing(tmp_path):
    short = [*TINY["vae"], *FAST]
    fit(compose_train(*short, "budget.images=320"), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 999999}\n')                 # what a resumed run would cut off
    (tmp_path / "README.md").write_text("a card")
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "README.md")}
    summary = read_summary(tmp_path)
    gone = ["metrics=squeezenet", f"metrics.weights={tmp_path}/gone.pth"]  # the file was there when the run began
    with pytest.raises(UserError, match=r"gone\.pth"):
        fit(compose_train(*short[:-3], *gone, "~callbacks.samples", "budget.images=640"), tmp_path, resumed=True)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    after = read_summary(tmp_path)
    assert {**after, "updated": None} == {**summary, "updated": None}


def saved(folder: Path, cfg) -> Path:
    """A run folder that says it was made by this configuration."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return folder


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        (["logger=none"], "logger", {}),                   # a group replaces the saved one, ...
        (["trainer=gpu"], "trainer.accelerator", "gpu"),
        (["trainer=gpu"], "trainer.precision", "auto"),
        (["trainer.devices=2"], "trainer.max_time", "1:00"),  # ... a value changes one of it
        (["trainer.max_time=2:00"], "trainer.max_time", "2:00"),  # also one that was added with +
        (["~trainer.max_time"], "trainer.max_time", None),
        (["~logger.wandb"], "logger", {}),
        (["logger.wandb.project=mine"], "logger.wandb.tags", ["first"]),
        (["logger.wandb.project=mine"], "logger.wandb.project", "mine"),
        (["logger=default"], "logger.wandb.tags", []),
        (["logger=default", "logger.wandb.project=mine"], "logger.wandb.project", "mine"),
        (["budget.images=7"], "budget.minutes", 3.0),
        (["budget={images: 7}"], "budget.images", 7),
        (["budget.minutes=null"], "budget.minutes", None),
    ],
)
def test_what_may_change_is_replaced_as_a_group_and_changed_as_a_value(typed, key, value, tmp_path):
    own = ["logger=default", "logger.wandb.tags=[first]", "trainer.precision=32", "+trainer.max_time='1:00'"]
    run = saved(tmp_path / "run", compose_train(*TINY["vae"], *own, "study=s"))
    words = over_saved([f"resume={run}", *typed])
    cfg = compose_train(*words, common=False)
    config = resumed_config(cfg, run, words)
    found = OmegaConf.select(config, key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value
    assert config.model.latent == 4 and config.study == "s"
    if "wandb" in config.logger:
        assert config.logger.wandb.group == "s"


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("model.latent=9", "'model.latent' cannot change when a run is resumed"),
        ("++data.size=9", "'data.size' cannot change when a run is resumed"),
        ("data.path=x", "'data.path' is not an option of this run's data"),
        ("logger.wandb.project=x", "the run has no 'logger.wandb'; give logger=default too"),
    ],
)
def test_what_a_resumed_run_does_not_have_or_may_not_change_is_named(typed, sentence, tmp_path):
    run = saved(tmp_path / "run", compose_train(*TINY["vae"]))
    words = over_saved([f"resume={run}", typed])
    with pytest.raises(UserError, match=sentence):
        resumed_config(compose_train(*words, *(["model=vae"] if "model" in typed else []), common=False), run, words)


def test_only_a_command_that_resumes_is_read_over_the_saved_configuration():
    assert over_saved(["trainer.devices=2", "~logger.wandb"]) == ["trainer.devices=2", "~logger.wandb"]
    assert over_saved(["resume=null", "trainer.devices=2"]) == ["resume=null", "trainer.devices=2"]


def test_a_run_whose_data_moved_is_resumed_and_other_data_are_refused(tmp_path):
    from PIL import Image

    old, new, other = (tmp_path / name for name in ("old", "new", "other"))
    old.mkdir()
    for k in range(20):
        Image.effect_noise((8, 8), 20 + k).save(old / f"{k:02}.png")
    own = [word for word in TINY["vae"]] + FAST + ["data=image_folder", "batch_size=4", "budget.minutes=null"]
    cfg = compose_train(*own, f"data.path={old}", "budget.images=8")
    first = fit(cfg, saved(tmp_path / "run", cfg))
    shutil.copytree(old, other)
    Image.new("L", (8, 8), 3).save(other / "07.png")
    old.rename(new)

    def moved(path):
        words = over_saved([f"resume={tmp_path / 'run'}", f"data.path={path}", "budget.images=16"])
        again = resumed_config(compose_train(*words, common=False), tmp_path / "run", words)
        return fit(again, tmp_path / "run", resumed=True)

    with pytest.raises(UserError, match="cannot resume: the checkpoint's data is"):
        moved(other)
    assert read_summary(tmp_path / "run")["images"] == 8
    second = moved(new)
    assert second["images"] == 16 and second["data"] == first["data"] and second["signature"] == first["signature"]


def test_a_run_whose_data_moved_is_evaluated_where_they_are_now(tmp_path, monkeypatch):
    from PIL import Image

    from aigc.scoring.networks import classifier

    from .test_evaluate import evaluated

    monkeypatch.setattr(classifier, "_train", lambda *args, **options: None)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for k in range(20):
        Image.effect_noise((8, 8), 20 + k).save(old / f"{k:02}.png")
    own = [*TINY["vae"], *FAST, "data=image_folder", "batch_size=4", "budget.minutes=null", "budget.images=8"]
    cfg = compose_train(*own, f"data.path={old}")
    summary = fit(cfg, saved(tmp_path / "run", cfg))
    old.rename(new)
    options = {"run": tmp_path / "run", "num_samples": 8, "resamples": 0, "memorisation": "false", "device": "cpu"}
    with pytest.raises(UserError, match=r"data\.path=.*old does not exist: .*; these are the data that '.*run' was "
                                        r"trained on: data\.<option>=\.\.\. says where they are now, data=<data set>"):
        evaluated(**options)
    record = evaluated(**options, data__path=new, out=tmp_path / "x.json")
    found = record["protocol"]["fd_classifier"]
    assert found["data_fingerprint"] == summary["data"]["fingerprint"] and found["num_reals"] == 16


def test_a_run_that_had_saved_nothing_starts_over_when_it_is_resumed(tmp_path):
    cfg = compose_train(*TINY["vae"], *FAST, "budget.images=160", "log_every=5")
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "images": 80}\n')
    (tmp_path / "summary.json").write_text('{"status": "running", "recipe": "mine"}')
    summary = fit(cfg, tmp_path, resumed=True)
    assert summary["status"] == "finished" and summary["recipe"] == "mine"
    assert [line["images"] for line in curve(tmp_path)] == [80, 160]


def test_a_run_in_use_is_not_resumed(tmp_path):
    run = saved(tmp_path / "run", compose_train(*TINY["vae"]))
    lock = FolderLock(run)
    assert lock.take()
    done = forked.run(python_train(f"resume={run}"), env=environment())
    lock.release(remove=True)
    assert done.returncode == 2 and f"is in use: process {os.getpid()} on {socket.gethostname()}" in done.stderr
    assert [path.name for path in run.iterdir()] == [".hydra"]
