"""A family of the user's own that makes no images: trained, resumed, evaluated and refused through the commands."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from aigc.data.digits import Digits
from aigc.models.checkpoints import load_family

from . import forked
from .conftest import COMMON, environment

FAMILY = '''
import torch
from aigc.models.family import Family
from aigc.models.options import Average, Schedule, grouped
from aigc.networks.ema import EMA


class Namer(Family):
    """Tells which class an image is of: a linear classifier, and nothing that draws."""

    conditions = ("none", "label")

    @grouped
    def __init__(self, channels, size, *, classes: int, condition: str = "none", rate: float, schedule: Schedule,
                 average: Average):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(channels * size[0] * size[1], classes)
        self.ema = EMA(self.layer, **vars(average))

    def losses(self, network, batch):
        logits = network(batch["image"].flatten(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, batch["label"]),
                "accuracy": (logits.argmax(1) == batch["label"]).float().mean()}

    def training_step(self, batch, batch_idx):
        return self.losses(self.layer, batch)

    def validation_step(self, batch, batch_idx):
        return self.losses(self.ema, batch)

    def averages(self):
        return [(self.ema, self.layer)]

    def configure_optimizers(self):
        return torch.optim.Adam(self.layer.parameters(), self.hparams.rate)
'''
RECIPE = """# @package _global_
defaults:
  - override /data: digits
  - override /metrics: losses
model:
  _target_: own_naming.Namer
  rate: 0.01
  warmup_images: 0
  decay_from: 1.0
  ema_halflife_images: 500
  ema_ramp: 0.05
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "naming.yaml").write_text(RECIPE)
    (folder / "own_naming.py").write_text(FAMILY)
    Image.new("L", (8, 8)).save(folder / "image.png")
    train(folder, "--config-dir", "conf", "model=naming", *COMMON, "condition=label", "hydra.run.dir=run",
          "budget.minutes=null", "budget.images=1600", "metrics.every_images=800", "metrics.validation_images=100",
          "metrics.monitor=val/loss", "log_every=10")
    return folder


def call(folder: Path, verb: str, *words: str):
    env = environment(AIGC_ALLOW_TARGETS="own_naming")
    env["PYTHONPATH"] = f"{env['PYTHONPATH']}:{folder}"
    return forked.run([sys.executable, "-m", f"aigc.{verb}", *words], env=env, cwd=folder)


def train(folder: Path, *words: str) -> str:
    done = call(folder, "train", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "run" / "summary.json").read_text())


def test_its_scores_are_its_losses_and_nothing_is_drawn(desk):
    summary = summary_of(desk)
    assert (summary["status"], summary["capabilities"], summary["translates"]) == ("finished", [], False)
    assert set(summary["scores"]["last"]) == {"val/loss", "val/accuracy"}
    assert summary["scores"]["last"]["val/accuracy"] > 0.5      # of ten classes
    assert summary["scores"]["best"] == min(
        line["val/loss"] for line in map(json.loads, (desk / "run" / "metrics.jsonl").read_text().splitlines())
        if "val/loss" in line
    )
    assert not list((desk / "run").rglob("*.png"))
    card = (desk / "run" / "README.md").read_text()
    assert "it makes no images" in card and "aigc.train resume=" in card
    assert "aigc.generate" not in card and "aigc.evaluate" in card


@pytest.fixture
def load_own(monkeypatch):
    """Loads the last checkpoint of `desk` in this process."""
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "own_naming")

    def load(desk):
        monkeypatch.syspath_prepend(str(desk))
        return load_family(desk / "run", "last")

    yield load
    sys.modules.pop("own_naming", None)


def test_it_loads_as_any_other(desk, load_own):
    family = load_own(desk)
    assert family.capabilities() == [] and not family.makes_images()
    assert family.hparams.ema_halflife_images == 500 and family.progress.images == 1600
    assert torch.isfinite(family.layer.weight).all()


@pytest.mark.parametrize(("verb", "words", "message"), [
    ("generate", ["n=2"], "makes no images: generate needs a run of biggan or"),
    ("edit", ["task=translate", "images=image.png"], "makes no images: task=translate needs a run of cut or"),
])
def test_what_needs_images_says_so_in_one_sentence(desk, verb, words, message):
    done = call(desk, verb, "run=run", *words)
    assert done.returncode == 2 and "'run' holds a Namer, which " + message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_gives_its_losses_on_all_held_out_images(desk, load_own):
    done = call(desk, "evaluate", "run=run", "checkpoint=last", "out=losses.json", "batch_size=1000")
    assert done.returncode == 0, done.stderr
    record = json.loads((desk / "losses.json").read_text())
    assert set(record["scores"]) == {"val/loss", "val/accuracy", "test/val/loss", "test/val/accuracy"}
    family = load_own(desk)
    data = Digits(batch_size=16)
    data.setup()
    for split, prefix in (("validation", ""), ("test", "test/")):
        batch = next(iter(data.eval_dataloader(split, batch_size=1000)))
        wanted = family.validation_step(data.prepare(batch, family.device), 0)
        for name, value in wanted.items():
            assert record["scores"][f"{prefix}val/{name}"]["value"] == pytest.approx(float(value), rel=1e-5)
            assert record["protocol"][f"{prefix}val/{name}"]["num_samples"] == data.count(split)
    assert record["catalogue"]["val/loss"]["better"] == "less"


def test_what_it_has_no_use_for_is_refused_before_any_work(desk):
    done = call(desk, "evaluate", "run=run", "guidance=2", "out=no.json")
    assert done.returncode == 2, done.stderr
    assert "guidance: a family that makes no images is scored by its own losses" in done.stderr
    done = call(desk, "train", "--config-dir", "conf", "model=naming", *COMMON, "condition=label", "hydra.run.dir=no",
                "metrics=classifier")
    assert done.returncode == 2 and "Namer makes no images" in done.stderr and "metrics=losses" in done.stderr
    assert not (desk / "no").exists() and not (desk / "no.json").exists()


def test_it_resumes(desk):
    before = summary_of(desk)
    train(desk, "resume=run", "budget.images=2400")
    after = summary_of(desk)
    assert (before["images"], after["images"], after["status"]) == (1600, 2400, "finished")
    assert after["scores"]["last"]["val/loss"] < before["scores"]["last"]["val/loss"]
