import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from aigc.errors import RunError, UserError
from aigc.runs.progress import Progress
from aigc.training.loggers import JsonLines, Wandb, logged_in, score_rows


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
    before = logger.path.read_bytes()
    again = JsonLines(tmp_path)
    again.rewind_to, again.progress = 64, Progress(images=96, seconds=2.0)
    again.finalize("failed")  # refused before its first line
    assert again.path.read_bytes() == before
    again.log_metrics({"loss": 1.5}, step=2)
    again.log_metrics({"loss": 1.4}, step=3)
    assert [json.loads(line)["images"] for line in logger.path.read_text().splitlines()] == [64, 96, 96]
    last = JsonLines(tmp_path)
    last.rewind_to = 64
    last.finalize("success")  # nothing was left to do
    assert [json.loads(line)["images"] for line in logger.path.read_text().splitlines()] == [64]


def test_a_full_disk_that_takes_no_shorter_curve_is_named_and_keeps_the_old_one(tmp_path, monkeypatch):
    logger = JsonLines(tmp_path)
    logger.progress, logger.rewind_to = Progress(images=96), 64
    logger.path.write_text('{"images": 64}\n{"images": 128}\n')

    def full(self, text, **options):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(RunError, match=r"/metrics.jsonl could not be cut back to the 64 images that the run "
                                           r"resumes from \(No space left on device\), and is as it was: make room"):
            logger.log_metrics({"loss": 1.0}, step=3)
    assert logger.path.read_text() == '{"images": 64}\n{"images": 128}\n' and len(list(tmp_path.iterdir())) == 1


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
    from aigc.training.fit import fit
    from tests.conftest import TINY

    cfg = composed(
        *TINY["vae"], "logger=default", "budget.images=640", "metrics=losses", "metrics.validation_images=50",
        "metrics.monitor=val/elbo", "metrics.mode=max", "callbacks.samples.n=4", "log_every=10", "study=first",
        "logger.wandb.tags=[mine]",
    )
    summary = fit(cfg, tmp_path)
    assert wandb.run is None
    records = inspect(tmp_path)
    by_type = {record["type"]: record for record in records}
    assert by_type["run"]["run"]["run_id"] == summary["wandb_id"]
    assert by_type["run"]["run"]["tags"] == ["vae", "digits", "mine"] and by_type["run"]["run"]["run_group"] == "first"
    configs = [record["config"]["update"] for record in records if record["type"] == "config"]
    (config,) = (config for config in configs if "batch_size" in config)
    assert config["batch_size"] == 16 and config["model"]["latent"] == 4 and "latent" not in config
    assert (config["recipe"], config["dataset"]) == ("vae", "digits")
    axes = [record["metric"] for record in records if record["type"] == "metric"]
    assert [axis["step_metric"] for axis in axes if axis.get("glob_name") == "*"][-1] == "images"
    assert {"images", "minutes"} <= {axis.get("name") for axis in axes if axis["options"].get("hidden")}
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    curve = [(item["images"], item["loss"]) for item in history if "loss" in item]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert curve == [(line["images"], pytest.approx(line["loss"])) for line in lines if "loss" in line]
    assert [images for images, _ in curve] == [160, 320, 480, 640]
    assert all(item["minutes"] == pytest.approx(item["seconds"] / 60, abs=1e-4) for item in history)
    pictures = [item for item in history if "samples.filenames" in item]
    assert [item["samples.captions"][0].split(",")[0] for item in pictures] == ["0 images", "640 images"]
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    assert all((folder / item["samples.filenames"][0]).is_file() for item in pictures)
    (table,) = (json.loads((folder / item["scores.path"]).read_text()) for item in history if "scores.path" in item)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert {row["score"]: row["value"] for row in rows} == summary["scores"]["last"]
    final: dict = {}
    for record in records:
        final |= record["summary"].get("update", {}) if record["type"] == "summary" else {}
    assert final["status"] == "finished" and final["best/val/elbo"] == pytest.approx(summary["scores"]["best"])
    assert final["parameters"] == summary["parameters"]
    assert any(record["type"] == "stats" for record in records)
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", str(tmp_path / "wandb")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # what the README says uploads it
    assert "Would sync 1 run(s)" in done.stdout + done.stderr


def test_score_rows_say_how_and_give_the_floor_to_its_distance():
    protocol = {"metric": "fd_classifier", "floor": 0.1, "floor_final": 0.05, "network": "classifier",
                "num_samples": 2000, "split": "train"}
    scores = {"fd_classifier": 0.4, "final/fd_classifier": 0.3, "label_accuracy": 0.9}
    rows = {row["score"]: row for row in score_rows(scores, protocol)}
    assert [rows[name]["floor"] for name in scores] == [0.1, 0.05, None]
    assert [rows[name]["value"] for name in scores] == [0.4, 0.3, 0.9]
    assert rows["fd_classifier"]["num_samples"] == 2000 and rows["fd_classifier"]["network_sha256"] is None
    second = {"scores": ["fd_efficientnet"], "metric": "fd_efficientnet", "network": "efficientnet", "floor": 3.0}
    rows = score_rows({"fd_classifier": 0.4, "fd_efficientnet": 9.0}, {**protocol, "second": second})
    assert [(row["network"], row["floor"]) for row in rows] == [("classifier", 0.1), ("efficientnet", 3.0)]


class Online:
    """W&B's run as far as the logger asks it, with an account."""

    id = "abc"

    def __init__(self):
        self.summary, self.artifacts, self.code, self.logged = {}, [], None, []
        self.config = SimpleNamespace(update=lambda values, allow_val_change: None)

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, values):
        self.logged.append(values)

    def log_artifact(self, artifact, aliases):
        self.artifacts.append((artifact.name, artifact.type, sorted(artifact.manifest.entries), aliases))

    def finish(self, exit_code):
        self.code = exit_code


@pytest.mark.parametrize(("options", "kept"), [({}, True), ({"checkpoint": False}, False), ({"offline": True}, False)])
def test_the_checkpoint_becomes_an_artifact_online_alone(tmp_path, monkeypatch, options, kept):
    monkeypatch.setattr(wandb, "init", lambda **given: run)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("a card")
    run, logger = Online(), Wandb(str(tmp_path), **{"offline": False, **options})
    assert logger.begin({"seed": 1}) == "abc"
    summary = {"status": "stopped", "reason": "SIGTERM", "images": 64, "scores": {}, "protocol": {}}
    logger.finish(summary)
    expected = [("model-abc", "model", ["README.md", "best.ckpt"], ["latest", "best"])] if kept else []
    assert run.artifacts == expected and run.code == 0 and run.summary["reason"] == "SIGTERM"
    logger.finish(summary)  # closed already
    assert run.artifacts == expected


def test_a_refused_run_adds_nothing_to_w_and_b(tmp_path, monkeypatch):
    run = Online()
    monkeypatch.setattr(wandb, "init", lambda **given: run)
    logger = Wandb(str(tmp_path), offline=False)
    logger.begin({})
    logger.finish(None)
    assert run.code == 1 and not run.summary and not run.artifacts


def test_what_w_and_b_refuses_is_one_sentence_with_advice_that_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(UserError, match=r"^WANDB_MODE=ofline is not a W&B mode: did you mean 'offline'"):
        Wandb(str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match=r"^W&B refused the run \(.*project.*\): change what it names$"):
        Wandb(str(tmp_path), project="a/b").begin({})


def test_an_unreachable_server_is_one_sentence(tmp_path, monkeypatch):
    def unreachable(**given):
        raise wandb.errors.CommError("failed to reach the server\nand a long story")

    monkeypatch.setattr(wandb, "init", unreachable)
    with pytest.raises(UserError, match=r"^W&B refused the run \(failed to reach the server\): give logger"):
        Wandb(str(tmp_path), offline=False).begin({})
