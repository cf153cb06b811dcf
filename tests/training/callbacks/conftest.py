"""A family whose samples are known, tiny data, and a trainer that only says what callbacks ask."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from aigc.data.digits import Digits
from aigc.data.pairs import PairData
from aigc.data.split import Split
from aigc.models.family import Family, Translator
from aigc.noise import SeededNoise
from tests import forked
from tests.conftest import environment


class Copies(Family):
    """Knows the digits: sample k is a training image of its label, chosen by seeds[k], with `spread` times noise."""

    def __init__(self, *, channels=1, size=(8, 8), classes=10, condition="label", spread=0.0, wrong=0.0):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Dropout(0.5))
        self.layer[2].eval()  # one module in another mode than the rest
        data = Digits(batch_size=16)
        data.setup()
        self.shown, self.digits = data.to_float({"image": data.images("train")})["image"], data.labels("train")
        self.asked = []  # (number of images, training mode, gradients on, autocast on)

    def training_step(self, batch, batch_idx):
        return {"loss": self.layer(batch["image"].mean((1, 2, 3))[:, None]).square().mean()}

    def validation_step(self, batch, batch_idx):
        noise = torch.randn(len(batch["image"]))
        return {"brightness": batch["image"].mean(), "noise": noise.mean(), "rows": float(len(noise))}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

    def sample(self, n, *, condition=None, seeds=None, **options):
        self.asked.append((n, self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        torch.rand(n)  # a careless sampler, which takes random numbers from everybody
        noise = SeededNoise(seeds)
        labels = [k % 10 for k in seeds] if condition is None else condition.tolist()
        drawn = noise(2).abs()
        images = []
        for label, (choice, slip) in zip(labels, drawn.tolist(), strict=True):
            if self.hparams.wrong and slip < self.hparams.wrong:
                label = (label + 1) % 10
            rows = (self.digits == label).nonzero()[:, 0]
            images.append(self.shown[rows[int(choice * 1000) % len(rows)]])
        return torch.stack(images) + self.hparams.spread * noise(1, 8, 8)

    def panels(self, batch):
        return {"pairs": torch.cat([batch["image"], -batch["image"]], 3)}


class Inverted(Translator):
    """Turns every image into its negative, both ways; `off` is added to what comes back."""

    accepts = ("unpaired", "paired")

    def __init__(self, *, channels=3, size=(16, 16), one_way=False, off=0.0, nothing=False):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)
        if one_way:
            self.directions = ("a2b",)
        self.asked = []  # direction and seeds of every call

    def translate(self, images, *, direction="a2b", seeds=None):
        self.check_direction(direction)
        assert len(seeds) == len(images)
        self.asked.append((direction, list(seeds)))
        return (images if self.hparams.nothing else -images) + self.hparams.off * (direction == "b2a")


class TwoSides(PairData):
    """Smooth random images and, as pairs, their negatives with a little noise; or sides of unequal length."""

    def __init__(self, *, counts=(20, 20), pairs=True, size=(16, 20), seed=0):
        super().__init__(batch_size=4, seed=seed)
        self.sides, self.pairs, self.wanted = counts, pairs, size

    def load(self):
        splits = {}
        for number, name in enumerate(("train", "validation", "test")):
            generator = torch.Generator().manual_seed(number)
            n = max(self.sides)
            a = torch.rand(n, 3, 4, 5, generator=generator)
            a = (nn.functional.interpolate(a, self.wanted, mode="bilinear") * 255).round()
            b = (255 - a + 8 * torch.randn(a.shape, generator=generator)).clamp(0, 255).round()
            splits[name] = (Split(a[: self.sides[0]].byte()), Split(b[: self.sides[1]].byte()))
        return self.pair_splits(splits, pairs=dict.fromkeys(splits, self.pairs))


class Lines(L.pytorch.loggers.Logger):
    """Keeps what is logged."""

    name = version = "lines"

    def __init__(self):
        super().__init__()
        self.lines, self.pictures = [], []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))

    def log_image(self, key, images, step=None):
        self.pictures.append((key, [Path(image).name for image in images], step))

    def log_hyperparams(self, *args, **kwargs):
        pass


class Alone:
    """The strategy of one process."""

    def broadcast(self, value, src=0):
        return value

    def barrier(self, name=None):
        pass


@pytest.fixture(scope="session")
def digits():
    data = Digits(batch_size=16)
    data.setup()
    return data


def alone(data, folder):
    """The trainer of one process, as far as callbacks ask."""
    return SimpleNamespace(
        datamodule=data, loggers=[Lines()], strategy=Alone(), world_size=1, global_rank=0, is_global_zero=True,
        should_stop=False, default_root_dir=str(folder),
    )


def in_two_processes(folder, what):
    """What two processes that meet over gloo say, by rank."""
    command = [sys.executable, "-m", "tests.training.callbacks.two_processes", str(folder)]
    runs = [forked.Forked([*command, rank, what], env=environment()) for rank in "01"]
    errors = [run.communicate(timeout=240)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture
def trainer(digits, tmp_path):
    return alone(digits, tmp_path)
