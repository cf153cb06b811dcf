"""Two processes over gloo, started as a user would: equal weights, equal scores, one run folder."""

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from aigc.config.targets import instantiate
from aigc.data.digits import Digits
from aigc.errors import UserError
from aigc.files.turns import rank
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.runs.summary import read_summary
from aigc.training import launch
from aigc.training.fit import fit
from tests.training.callbacks.conftest import Alone

from . import forked
from .conftest import COMMON, TINY, compose_train, environment, once, python_train
from .families import STAGES, staged
from .ranks import CAPTIONED, SHAPES, STEPS, cases, stage_of

TWO = ["trainer.devices=2", "trainer.strategy=ddp"]
REPORT = "+callbacks.report._target_=tests.rank_report.RankReport"
CASES = list(cases())


def two(folder, *overrides):
    told = [f"hydra.run.dir={folder}/run", REPORT, f"+callbacks.report.folder={folder}"]
    return python_train(*COMMON, *TWO, *overrides, *told), environment(AIGC_ALLOW_TARGETS="tests")


def reports(folder):
    return tuple(json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1))


@pytest.fixture(scope="module")
def pair():
    """The folder in which two processes have trained every case of tests/ranks.py."""
    return once("pair", train_pairs)


def train_pairs(folder):
    for name in STAGES:
        data = [word for word in COMMON if not word.startswith("data=")] + SHAPES if name in CAPTIONED else COMMON
        staged(name, folder / stage_of(name), *data, "budget.images=64", "budget.minutes=null")
    env = environment(AIGC_ALLOW_TARGETS="tests", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(launch.free_port()))
    both = [forked.Forked([sys.executable, "-m", "tests.ranks", str(folder), str(rank)], env=env) for rank in (0, 1)]
    try:
        said = [process.communicate(timeout=280) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_keep_equal_weights_and_share_the_images(case, pair):
    first, second = reports(pair / case)
    assert first["world"] == second["world"] == 2
    assert first["weights"] == second["weights"]
    assert first["images"] == second["images"] == 32 * STEPS  # 2 x 16 a step, counted over both
    assert first["scores"] == second["scores"] and first["scores"]
    data = compose_train(*cases()[case]).data
    walked = Counter(first["indices"] + second["indices"])
    assert sum(walked.values()) == 32 * STEPS
    assert set(walked.values()) == {max(1, 32 * STEPS // data.train) if "train" in data else 1}
    run = pair / case
    drawn = [] if case.startswith("classifier") else ["samples"]           # which makes no images, and shows none
    assert sorted(p.name for p in run.iterdir()) == [
        "README.md", "checkpoints", "metrics.jsonl", "rank0.json", "rank1.json", *drawn, "summary.json"]
    summary = read_summary(run)
    assert summary["devices"] == 2 and summary["global_batch"] == 32 and summary["scores"]["last"] == first["scores"]
    assert summary["precision"] == ("bf16-mixed" if "bf16" in case else "32-true")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == sorted(line["images"] for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_scores_of_two_processes_are_those_of_one(case, pair, tmp_path):
    family = load_family(pair / case, "last")
    cfg = compose_train(*cases()[case])
    data = instantiate(cfg.data, "data")
    data.setup()
    alone = SimpleNamespace(
        datamodule=data, loggers=[], strategy=Alone(), world_size=1, global_rank=0, is_global_zero=True,
        should_stop=False, default_root_dir=str(tmp_path),
    )
    got = instantiate(cfg.metrics, "metrics").score(alone, family, final=True)
    before = reports(pair / case)[0]["scores"]
    assert got.keys() == before.keys()
    for name, value in got.items():
        assert value == pytest.approx(before[name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gan-32-true", "flow-sharded", "latent-sharded"])
def test_resumed_by_the_same_two_equals_uninterrupted(case, pair):
    assert reports(pair / f"{case}-resumed")[0]["weights"] == reports(pair / case)[0]["weights"]
    half = 16 * STEPS
    halves, whole = reports(pair / f"{case}-resumed"), reports(pair / case)
    assert all(again["indices"] == full["indices"][half // 2 :] for again, full in zip(halves, whole, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "precision"), [("flow", "32-true"), ("flow", "bf16-mixed"), ("dit", "32-true"),
                                                ("latent", "32-true")])
def test_sharded_training_is_training_and_its_checkpoint_is_anyones(case, precision, pair):
    sharded = f"{case}-sharded" if precision == "32-true" else f"{case}-sharded-bf16"
    names = (f"{case}-{precision}", sharded)
    contents = [read_checkpoint(pair / name / "checkpoints" / "last.ckpt") for name in names]
    one, other = (content["state_dict"] for content in contents)
    assert one.keys() == other.keys() and any(name.startswith("ema.") for name in one)
    tolerance = 2e-5 if precision == "32-true" else 2e-2    # sums in another order; Adam divides small ones by small
    for name, value in one.items():
        assert type(other[name]) is torch.Tensor and other[name].shape == value.shape
        assert torch.allclose(value.float(), other[name].float(), atol=tolerance), name
    moments = [content["optimizer_states"][0]["state"] for content in contents]
    assert moments[0].keys() == moments[1].keys()
    shapes = [{(k, name): tensor.shape for k, kept in one.items() for name, tensor in kept.items()} for one in moments]
    assert shapes[0] == shapes[1] and {name for _, name in shapes[0]} == {"step", "exp_avg", "exp_avg_sq", "momentum"}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vae-32-true", "flow-sharded"])
def test_one_process_goes_on_with_the_images_of_two_or_is_refused(case, pair, tmp_path):
    shutil.copytree(pair / case, tmp_path / "run")
    more = ["budget.images=320", "trainer.strategy=auto", "batch_size=32"]
    more += [REPORT, f"+callbacks.report.folder={tmp_path}"]
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"trained with 32 images a step over all devices, this would be 16: give "
                                        r"batch_size=32"):
        fit(compose_train(*cases()[case], *more[:2]), tmp_path / "run", resumed=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    os.environ["AIGC_ALLOW_TARGETS"] = "tests"
    try:
        summary = fit(compose_train(*cases()[case], *more), tmp_path / "run", resumed=True)
    finally:
        del os.environ["AIGC_ALLOW_TARGETS"]
    assert summary["images"] == 320 and summary["devices"] == 1
    data = Digits(batch_size=32, seed=1)
    steps = [data.train_dataloader().dataset[k]["index"].tolist() for k in (STEPS, STEPS + 1)]
    assert json.loads((tmp_path / "rank0.json").read_text())["indices"] == steps[0] + steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["latent-32-true", "latent-sharded"])
def test_latents_are_measured_on_the_first_images_of_all_ranks(case, pair):
    space = load_family(pair / case, "last").first_stage
    data = Digits(batch_size=32, seed=1)
    loaded = data.train_dataloader().dataset
    seen = [data.prepare(loaded[k], "cpu") for k in (0, 1)]       # 64 images, the first two steps of both
    walked = [report["indices"][:32] for report in reports(pair / case)]
    assert sorted(walked[0] + walked[1]) == sorted(torch.cat([batch["index"] for batch in seen]).tolist())
    latents = space.family.encode(torch.cat([batch["image"] for batch in seen]))
    torch.testing.assert_close(space.mean[:, 0, 0], latents.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    around = latents - latents.mean((0, 2, 3), keepdim=True)
    assert float(space.scale) == pytest.approx(float(around.square().mean().rsqrt()), rel=1e-4)


def test_what_cannot_be_sharded_is_refused(tmp_path):
    for family, sentence in (("gan", "GAN has several or small ones: use trainer=ddp"),
                             ("vae", "VAE has several or small ones: use trainer=ddp")):
        with pytest.raises(UserError, match=f"trainer=fsdp shards one large network, but {sentence}"):
            fit(compose_train(*TINY[family], "metrics=none", "trainer.strategy=fsdp"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_torchrun_starts_it_too_and_the_run_folder_is_written_once(tmp_path):
    free = launch.free_port()
    words = [*COMMON, *TINY["diffusion"], "trainer=fsdp", "trainer.accelerator=cpu", "metrics=none",
             "callbacks.samples.n=4", "budget.images=64", "budget.minutes=null", "study=s"]
    words.remove("trainer=cpu")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free}", "-m",
               "aigc.train", *words]
    done = forked.run(command, env=environment(), cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["runs"] and done.stdout.count("finished: 64 images") == 1
    (run,) = (tmp_path / "runs" / "s").iterdir()
    written = sorted(path.name for path in run.iterdir())
    assert written == [".hydra", "README.md", "checkpoints", "metrics.jsonl", "samples", "summary.json"]
    assert load_family(run).sample(2, seeds=[1, 2]).shape == (2, 1, 8, 8)


@pytest.mark.slow
def test_sigterm_stops_both_after_the_same_step_and_resume_goes_on(tmp_path):
    shape = [*TINY["vae"], "metrics=none", "~callbacks.samples", "budget.minutes=null"]
    command, env = two(tmp_path, *shape, "budget.images=10000000")
    child = forked.Forked(command, env=env)
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
    again = forked.run(python_train(f"resume={tmp_path / 'run'}", f"budget.images={more}"), env=env)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "rank1.json").read_text())["images"] == more
    assert read_summary(tmp_path / "run")["status"] == "finished"


def test_ranks_and_devices_are_read_from_the_environment(monkeypatch):
    assert rank() is None
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert rank() == 3
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rank() == 1
    assert launch.count_devices("cpu", 2) == 2
    assert launch.count_devices("cpu", [0, 1, 2]) == 3
    assert launch.count_devices("cpu", "auto") == 1


def test_processes_that_nobody_started_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"trainer.num_nodes=2 needs a process on every node: start it with"):
        launch.check_world(1, 2)
    launch.check_world(4, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    launch.check_world(2, 2)
    with pytest.raises(UserError, match=r"4 processes were started, trainer.devices=1 times .* are 2: make"):
        launch.check_world(1, 2)


def test_lightning_believes_the_launcher_not_the_job_it_runs_in(monkeypatch):
    assert launch.cluster() is None
    monkeypatch.setenv("SLURM_NTASKS", "1")                # sbatch, then one process that starts the others
    assert type(launch.cluster()).__name__ == "LightningEnvironment"
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert type(launch.cluster()).__name__ == "SLURMEnvironment" and not launch.cluster().auto_requeue
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")      # torchrun inside a job
    assert launch.cluster() is None
