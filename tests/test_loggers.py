import json
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from aigc.loggers import JsonLines, Wandb, logged_in
from aigc.progress import Progress


def test_jsonl_lines_carry_images_and_seconds_and_are_rewound(tmp_path):
    logger = JsonLines(tmp_path)
    logger.progress = Progress(images=64, seconds=1.5)
    logger.log_metrics({"loss": 2.0}, step=1)
    logger.progress.images = 128
    logger.log_metrics({"loss": 1.0}, step=2)
    lines = [json.loads(line) for line in logger.path.read_text().splitlines()]
    assert lines[0] == {"step": 1, "images": 64, "seconds": 1.5, "loss": 2.0}
    with open(logger.path, "a") as file:
        file.write('{"step": 3, "ima')  # what a kill leaves behind
    logger.rewind(64)
    assert [json.loads(line)["images"] for line in logger.path.read_text().splitlines()] == [64]


def test_offline_unless_logged_in_and_never_a_prompt(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not logged_in()
    assert Wandb(str(tmp_path))._wandb_init["mode"] == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / "netrc").chmod(0o600)
    assert logged_in()
    assert Wandb(str(tmp_path))._wandb_init["mode"] == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert Wandb(str(tmp_path))._wandb_init["mode"] == "offline"
    assert Wandb(str(tmp_path), offline=True)._wandb_init["mode"] == "offline"


def inspect(run: Path) -> list[dict]:
    """What W&B's own reader finds in an offline run."""
    files = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    records = []
    for file in files:
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(file)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        records += [json.loads(line) for line in found.stdout.splitlines()]
    return records


@pytest.mark.slow
def test_an_offline_run_is_readable_by_wandb_leet(tmp_path, composed):
    from aigc.training import fit

    from .conftest import TINY

    cfg = composed(
        *TINY["vae"], "logger=default", "budget.images=640", "metrics=none", "callbacks.samples.n=4", "log_every=10",
        "logger.wandb.tags=[vae,digits]",
    )
    summary = fit(cfg, tmp_path)
    assert wandb.run is None
    records = inspect(tmp_path)
    by_type = {record["type"]: record for record in records}
    assert by_type["run"]["run"]["run_id"] == summary["wandb_id"]
    assert by_type["run"]["run"]["tags"] == ["vae", "digits"] and by_type["run"]["run"]["run_group"] == "default"
    configs = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert any(config.get("batch_size") == 16 and config.get("model", {}).get("latent") == 4 for config in configs)
    axes = {r["metric"].get("glob_name"): r["metric"].get("step_metric") for r in records if r["type"] == "metric"}
    assert axes["*"] == "images"
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = [(item["images"], item["loss"]) for item in history if "loss" in item]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert curve == [(line["images"], pytest.approx(line["loss"])) for line in lines if "loss" in line]
    assert [images for images, _ in curve] == [160, 320, 480, 640]
    pictures = [item for item in history if "samples.filenames" in item]
    assert [item["images"] for item in pictures] == [0, 640]
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    assert all((folder / item["samples.filenames"][0]).is_file() for item in pictures)
    assert any(record["type"] == "stats" for record in records)
