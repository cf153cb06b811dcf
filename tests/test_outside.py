"""A package outside this one adds a part of each kind, by one file and one YAML at most, and the verbs use it."""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.images.recipes import read_recipe
from aigc.models.checkpoints import load_family
from aigc.noise import SeededNoise, mix
from aigc.runs.summary import read_summary

from . import forked
from .conftest import environment, once
from .families import words

FILES = {
    "outside/__init__.py": "",
    "outside/flat.py": '''
        """Images of one grey level each: the k-th of n has the level 5 k, and the class that says whether k is odd."""

        import torch

        from aigc.data.datamodule import ImageData
        from aigc.data.split import Split


        class Flat(ImageData):
            def __init__(self, *, batch_size: int, seed: int = 0, split_seed: int = 0, images: int = 40):
                super().__init__(batch_size=batch_size, seed=seed, split_seed=split_seed)
                self.images, self.classes, self.class_names = images, 2, ["even", "odd"]

            def load(self):
                k = torch.arange(self.images)
                levels = (5 * k).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
                return {name: Split(levels, k % 2) for name in ("train", "validation", "test")}
    ''',
    "conf/data/flat.yaml": '''
        _target_: outside.flat.Flat
        images: 40
        batch_size: ${batch_size}
        seed: ${seed}
    ''',
    "outside/mean.py": '''
        """The mean image: with a batch of all images, one step of this rate gives it exactly."""

        import torch
        from torch import nn

        from aigc.models.family import Family


        class Mean(Family):
            def __init__(self, *, channels: int, size: tuple[int, int], rate: float = 0.5):
                super().__init__()
                self.save_hyperparameters()
                self.image = nn.Parameter(torch.zeros(channels, *size))

            def loss(self, batch):
                return ((batch["image"] - self.image) ** 2).mean(0).sum()

            def training_step(self, batch, batch_idx):
                return {"loss": self.loss(batch)}

            def validation_step(self, batch, batch_idx):
                return {"loss": self.loss(batch)}

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)

            @torch.no_grad()
            def sample(self, n, *, condition=None, seeds=None, brighter=0.0, **options):
                self.check_options(options, ["brighter"])
                return (self.image + brighter).clamp(-1, 1).expand(n, -1, -1, -1).clone()
    ''',
    "conf/model/mean.yaml": '''
        _target_: outside.mean.Mean
        rate: 0.5
    ''',
    "outside/jump.py": '''
        """A sampler: from noise to the expected image in one step, and a share of it."""


        def jump(denoise, x, path, *, noise, share: float = 1.0):
            return share * denoise(x, *path[0])
    ''',
    "conf/sampler/jump.yaml": '''
        name: outside.jump.jump
        steps: 2
        share: 0.5
    ''',
    "outside/pull.py": '''
        """A guide: towards one grey level, wholly where pull is 1."""


        def pull(x, x0, alpha, sigma, *, level: float = 0.5, pull: float = 1.0):
            return x0 + pull * (level - x0)
    ''',
    "outside/spread.py": '''
        """A score over features: how far the generated ones spread, as a share of how far the real ones do."""

        from aigc.runs.catalogue import Entry
        from aigc.scoring.scores.registry import score


        @score(Entry("spread_*", "more", bounds=(0, None), reads=("features",)))
        def spread(features, logits, real):
            return float(features.std(0).mean() / real.std(0).mean())
    ''',
    "outside/fade.py": '''
        """An editing task: pictures fade into samples of the family."""

        from torch.nn import functional as F


        def fade(family, images, masks, seeds, *, strength: float = 0.5):
            made = family.sample(len(images), seeds=seeds)
            return images.lerp(F.interpolate(made, size=images.shape[2:]), strength)
    ''',
    "conf/task/fade.yaml": '''
        function: outside.fade.fade
        needs: sample
        strength: 0.5
    ''',
}
TRAIN = ["data=flat", "trainer=cpu", "trainer.precision=32", "logger=none", "~callbacks.samples",
         "budget.minutes=null"]
MEAN = 5 * 39 / 2                                          # of the 40 levels


@pytest.fixture(scope="module")
def home() -> Path:
    """The folder of the outside package, with a run of its family and a diffusion run on its data."""
    def make(folder):
        for name, content in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(textwrap.dedent(content).lstrip())
        verb(folder, "train", *TRAIN, "model=mean", "batch_size=40", "budget.images=80",
             "metrics=losses", "hydra.run.dir=mean")
        verb(folder, "train", *TRAIN, *words("diffusion"), "condition=none", "batch_size=8", "budget.images=16",
             "metrics=none", "hydra.run.dir=diffusion")

    return once("outside", make)


def verb(folder, name, *typed, allowed="outside", code=0):
    """What a verb prints, called in the folder, so that its package is found, and with its configurations."""
    command = [sys.executable, "-m", f"aigc.{name}", "--config-dir", str(folder / "conf"), *typed]
    done = forked.run(command, env=environment(AIGC_ALLOW_TARGETS=allowed), cwd=folder)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_each_part_is_one_file_and_at_most_one_yaml():
    parts = [Path(name).stem for name in FILES if name.startswith("outside/") and "__init__" not in name]
    settings = [Path(name).stem for name in FILES if name.startswith("conf/")]
    assert sorted(parts) == ["fade", "flat", "jump", "mean", "pull", "spread"]
    assert len({*settings}) == len(settings) and {*settings} <= {*parts}


def test_a_family_learns_from_a_data_set(home):
    summary = read_summary(home / "mean")
    assert summary["status"] == "finished" and summary["images"] == 80 and summary["recipe"] == "mean"
    assert summary["data"]["name"] == "flat" and summary["data"]["classes"] == 2
    lines = [json.loads(line) for line in (home / "mean" / "metrics.jsonl").read_text().splitlines()]
    around = 64 * np.var([5 * k / 127.5 for k in range(40)])                  # over 8 x 8 pixels
    assert [line["val/loss"] for line in lines if "val/loss" in line][-1] == pytest.approx(around, rel=1e-5)


def test_generate_makes_its_images_with_its_options(home, tmp_path):
    said = verb(home, "generate", "run=mean", "n=3", f"out={tmp_path / 'a'}", "+options.brighter=0.2")
    assert said == f"3 images in {tmp_path / 'a'}\n"
    made = np.asarray(Image.open(tmp_path / "a" / "00002.png"))
    assert made.shape == (8, 8) and (made == round(MEAN + 0.2 * 127.5)).all()
    assert read_recipe(tmp_path / "a" / "00002.png")["options"] == {"options": {"brighter": 0.2}}
    wrong = verb(home, "generate", "run=mean", "n=1", f"out={tmp_path / 'b'}", "+options.brigter=1", code=2)
    assert wrong.strip().endswith("aigc: Mean has no sampling option 'brigter': did you mean 'brighter'?")


def test_edit_does_its_task_and_knows_its_options(home, tmp_path):
    Image.new("RGB", (24, 16), (200, 200, 200)).save(tmp_path / "grey.png")
    typed = ["task=fade", "run=mean", f"images={tmp_path / 'grey.png'}", "task.strength=0.25"]
    verb(home, "edit", *typed, f"out={tmp_path / 'made'}")
    made = np.asarray(Image.open(tmp_path / "made" / "grey.png"))
    assert made.shape == (16, 24) and (made == round(200 * 0.75 + MEAN * 0.25)).all()
    for word, sentence in (("+task.strenght=1", "aigc: The task 'fade' has no option 'strenght': did you mean"),
                           ("task.needs=translate", "aigc: 'mean' holds a Mean, which makes images from noise")):
        assert sentence in verb(home, "edit", *typed, word, f"out={tmp_path / 'no'}", code=2)
    assert "in no package that you trust" in verb(home, "edit", *typed, "run=diffusion", f"out={tmp_path / 'no'}",
                                                  allowed="", code=2)


def test_a_sampler_and_a_guide_go_with_a_diffusion_run(home, tmp_path):
    typed = ["run=diffusion", "n=2", "format=npy", "sampler=jump"]
    verb(home, "generate", *typed, f"out={tmp_path / 'a'}")
    verb(home, "generate", *typed, f"out={tmp_path / 'b'}", "sampler.share=1.0", "+options.autoguidance=1")
    half, whole = (np.load(tmp_path / name / "images.npy") for name in "ab")
    assert half.shape == (2, 8, 8, 1) and half.std() > 0
    family = load_family(home / "diffusion")
    noise = SeededNoise([mix(0, k) for k in range(2)])
    one = family.denoise(noise(*family.shape), torch.tensor(0.0), torch.tensor(1.0))
    told = one.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    assert np.abs(whole.transpose(0, 3, 1, 2).astype(int) - told.numpy().astype(int)).max() <= 1
    for sampler, level in (("heun", 0.5), ("jump", 0.25)):
        verb(home, "generate", "run=diffusion", "n=2", "format=npy", f"sampler={sampler}", f"out={tmp_path / sampler}",
             "+options.guide=outside.pull.pull")
        assert (np.load(tmp_path / sampler / "images.npy") == round((level + 1) * 127.5)).all()
    wrong = verb(home, "generate", *typed, f"out={tmp_path / 'c'}", "+sampler.shar=1", code=2)
    assert "The sampler 'outside.jump.jump' has no option 'shar': did you mean 'share'?" in wrong


def test_a_score_is_measured_in_training_and_by_evaluate_and_compared(home, tmp_path):
    few = ["num_samples=20", "kd_subset_size=10"]
    for brighter, name in ((0, "scored"), (1, "again")):
        verb(home, "train", *TRAIN, "model=mean", "batch_size=40", f"budget.images={40 + 40 * brighter}",
             "metrics=classifier", "metrics.second=null", "metrics.extra=[outside.spread]",
             "metrics.monitor=spread_classifier", *(f"metrics.{word}" for word in few),
             f"hydra.run.dir={tmp_path / name}")
    summary = read_summary(tmp_path / "scored")
    assert summary["scores"]["last"]["spread_classifier"] == 0                # all samples are the mean image
    assert summary["scores"]["monitor"] == "spread_classifier" and summary["scores"]["best"] == 0
    said = verb(home, "evaluate", f"run={tmp_path / 'scored'}", "extra=[outside.spread]",
                f"out={tmp_path / 'a.json'}", *few)
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["scores"]["spread_classifier"]["value"] == 0 and "spread_classifier" in said
    said = verb(home, "compare", f"runs=[{tmp_path / 'scored'},{tmp_path / 'again'}]", "score=spread_classifier")
    assert "spread_classifier: more is better" in said and "2 runs in " in said


def test_a_score_of_pictures_against_themselves(home, tmp_path):
    (tmp_path / "pictures").mkdir()
    for k in range(20):
        Image.new("L", (8, 8), 10 * k).save(tmp_path / "pictures" / f"{k:02}.png")
    verb(home, "evaluate", f"run={tmp_path / 'pictures'}", f"against={tmp_path / 'pictures'}", "data=flat",
         "metrics=classifier", "kd_subset_size=10", "extra=[outside.spread]", f"out={tmp_path / 'a.json'}")
    score = json.loads((tmp_path / "a.json").read_text())["scores"]["spread_classifier"]
    assert score["value"] == pytest.approx(1, abs=1e-6) and 0.5 < score["low"] < score["high"] < 1.5
