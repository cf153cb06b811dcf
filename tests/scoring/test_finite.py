"""Every score is a number or has a reason, whatever the images: constant, of one pixel, two of them, of one class."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from aigc.data.datamodule import ImageData
from aigc.data.split import Split
from aigc.errors import RunError, UserError
from aigc.models.family import Family
from aigc.training.callbacks.scores import Scores
from tests.test_evaluate import evaluated, write
from tests.training.callbacks.conftest import Inverted, TwoSides, alone
from tests.training.callbacks.test_translation_scores import scored

NAMES = {"fd_classifier", "kd_classifier", "is_classifier", "fd_classifier_over_floor", "label_accuracy"}
MORE = {"precision_classifier", "recall_classifier", "density_classifier", "coverage_classifier",
        "memorised_classifier"}


class Flat(ImageData):
    """`numbers` images of a split, each of one level: image k has `level(k)`."""

    def __init__(self, *, numbers, size=(8, 8), classes=None, level=lambda k: 90):
        super().__init__(batch_size=16)
        self.numbers, self.wanted, self.classes, self.level = numbers, size, classes, level

    def load(self):
        return {name: Split(torch.tensor([self.level(k) for k in range(n)], dtype=torch.uint8)[:, None, None, None]
                            .expand(-1, 1, *self.wanted).contiguous(),
                            torch.arange(n) % self.classes if self.classes else None)
                for name, n in self.numbers.items()}


class Still(TwoSides):
    """Two sides of one image, again and again."""

    def load(self):
        images = torch.full((self.sides[0], 3, *self.wanted), 50, dtype=torch.uint8)
        splits = {name: (Split(images), Split(images)) for name in ("train", "validation", "test")}
        return self.pair_splits(splits, pairs=dict.fromkeys(splits, True))


class Same(Family):
    """Draws one image again and again; its loss on held-out images is `loss`."""

    def __init__(self, *, size=(8, 8), condition="none", classes=None, loss=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(1, 1)

    def sample(self, n, *, condition=None, seeds=None, **options):
        return torch.zeros(n, 1, *self.hparams.size)

    def validation_step(self, batch, batch_idx):
        return {"loss": self.hparams.loss, "rows": 1.0}


def said(scores: dict, callback) -> dict[str, str]:
    """The reasons in the record, once every score is a number."""
    assert all(math.isfinite(value) for value in scores.values()), scores
    return callback.facts()["scores_missing"]


@pytest.mark.parametrize(("numbers", "options", "reasons"), [
    ({"train": 40, "test": 40}, {}, {
        "is_classifier": "the network names no classes", "label_accuracy": "the images are made without labels",
        "fd_classifier_over_floor": "the test images are no further from the reference than rounding"}),
    ({"train": 2, "test": 1}, {"level": lambda k: 50 * k}, {
        "is_classifier": "the network names no classes", "label_accuracy": "the images are made without labels",
        "fd_classifier_over_floor": "it needs as many test images as samples: 20, and there is 1"}),
    ({"train": 9}, {"size": (1, 1), "level": lambda k: 9 * k, "classes": 3}, {
        "is_classifier": "it needs 100 images, and there are 20",
        "label_accuracy": "the images are made without labels",
        "fd_classifier_over_floor": "no test images are held out of the reference"}),
    ({"train": 30, "test": 30}, {"classes": 1, "level": lambda k: 5 * k}, {
        "is_classifier": "it needs 100 images, and there are 20",
        "label_accuracy": "the images are made without labels"}),
])
def test_training_scores_are_numbers_or_have_a_reason(numbers, options, reasons, tmp_path, caplog):
    data = Flat(numbers=numbers, **options)
    data.setup()
    callback = Scores(network="classifier", every_images=10, batch_size=16, num_samples=20, kd_subsets=2,
                      kd_subset_size=1000)
    found = callback.score(alone(data, tmp_path), Same(size=data.size))
    assert said(found, callback) == reasons and set(found) | set(reasons) == NAMES
    subset = min(20, numbers["train"])
    assert f"kernel distance over subsets of {subset} images, not 1,000: one side has no more" in callback.notes
    assert any(note.startswith("singular covariance: 20 samples and") for note in callback.notes)


def test_one_training_image_is_refused_and_one_class_is_always_right(tmp_path):
    few = {"network": "classifier", "every_images": 10, "batch_size": 16, "num_samples": 120, "kd_subsets": 2}
    one = Flat(numbers={"train": 1, "test": 5})
    one.setup()
    with pytest.raises(UserError, match="has one image in train, and distances need at least two: add images, or"):
        Scores(**few).score(alone(one, tmp_path), Same())
    single = Flat(numbers={"train": 30, "test": 130}, classes=1, level=lambda k: k)
    single.setup()
    callback = Scores(**few)
    found = callback.score(alone(single, tmp_path), Same(condition="label", classes=1))
    assert said(found, callback) == {} and set(found) == NAMES
    assert (found["label_accuracy"], found["is_classifier"]) == (1, pytest.approx(1))


def test_a_loss_that_is_no_number_has_a_reason_until_it_is_one(tmp_path, caplog):
    data = Flat(numbers={"train": 4, "validation": 4})
    data.setup()
    callback = Scores(network=None, every_images=10, batch_size=4, validation_images=4, monitor="val/loss")
    model = Same(loss=math.nan)
    trainer = alone(data, tmp_path)
    for value, found, best in ((math.nan, {}, None), (2.0, {"val/loss": 2.0}, 2.0), (math.inf, {}, 2.0)):
        model.hparams.loss = value
        assert callback.score(trainer, model) == {**found, "val/rows": 1}
        assert callback.missing == ({} if found else {"val/loss": f"it was {value} after 0 images"})
        assert callback.best == best and callback.is_best == bool(found)
    assert trainer.loggers[0].lines[0] == (0, {"val/rows": 1})
    assert "no val/loss: it was nan after 0 images" in caplog.text
    assert callback.history[2] == {"images": 0, "seconds": 0, "val/rows": 1}


@pytest.mark.parametrize("constant", [False, True])
def test_translations_are_numbers_or_have_a_reason(constant, tmp_path):
    data = (Still if constant else TwoSides)(counts=(2, 2), size=(8, 10))
    data.setup()
    found, callback = scored(data, tmp_path, Inverted(), final=True)
    missing = said(found, callback)
    assert missing == {"ssim": "images of 8 x 10 pixels are too small for its window"}
    assert {f"{prefix}{direction}/{name}" for prefix in ("", "test/") for direction in ("a2b", "b2a")
            for name in ("fd_classifier", "kd_classifier", "psnr", "similarity_classifier", "cycle_l1")} <= set(found)


def test_a_way_back_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    data, model = TwoSides(), Inverted()
    data.setup()
    original = Inverted.translate

    def translate(self, images, **options):
        made = original(self, images, **options)
        return made * torch.nan if options["direction"] == "b2a" and len(self.asked) > 1 else made

    monkeypatch.setattr(Inverted, "translate", translate)
    with pytest.raises(RunError, match="samples became infinite or NaN"):
        scored(data, tmp_path, model)


@pytest.mark.parametrize(("first", "second", "constant", "missing"), [
    ((2, 8, 8), (2, 8, 8), True, {*MORE, "is_classifier", "floor"}),
    ((2, 1, 1), (3, 1, 1), False, {*MORE, "is_classifier", "floor"}),
    ((120, 3, 3), (2, 3, 3), False, {*MORE, "is_classifier", "floor"}),
    ((6, 8, 8), (130, 8, 8), True, {"is_classifier", "floor", "memorised_classifier"}),
])
def test_evaluated_folders_have_numbers_or_reasons(first, second, constant, missing, tmp_path, capsys):
    draw = np.random.default_rng(0)
    folders = [write(tmp_path / name, np.full(shape, 7, np.uint8) if constant else
                     draw.integers(0, 255, shape, dtype=np.uint8)) for name, shape in (("a", first), ("b", second))]
    record = evaluated(run=folders[0], against=folders[1], resamples=10, out=tmp_path / "x.json")
    found, reasons = record["scores"], record["scores_missing"]
    for score in found.values():
        assert all(math.isfinite(score[key]) for key in ("value", "low", "high")), score
    assert set(reasons) == missing and set(found) | set(reasons) == {*MORE, "fd_classifier", "kd_classifier",
                                                                     "is_classifier", "floor"}
    least = min(first[0], second[0])
    assert f"kernel distance over subsets of {least} images, not 1,000: one side has no more" in record["scores_notes"]
    if "precision_classifier" in missing:
        assert reasons["precision_classifier"] == f"it needs more than 5 images on either side, and there are {least}"
    if "memorised_classifier" in missing:
        said = "its limit needs 100 real images that are no copies, and there are fewer"
        assert reasons["memorised_classifier"] == said
    printed = capsys.readouterr().out
    assert ("no precision_classifier, recall_classifier," in printed) == ("precision_classifier" in missing)
    assert "no is_classifier" not in printed            # data without labels: nothing that anybody misses


def test_what_was_not_wanted_is_in_the_record_and_not_said(tmp_path, capsys):
    folders = [write(tmp_path / name, np.random.default_rng(0).integers(0, 255, (8, 8, 8), dtype=np.uint8))
               for name in ("a", "b")]
    record = evaluated(run=folders[0], against=folders[1], resamples=0, neighbours=0, memorisation="false",
                       out=tmp_path / "x.json")
    assert record["scores_missing"] == {
        **dict.fromkeys(MORE - {"memorised_classifier"}, "neighbours=0 leaves it out"),
        "memorised_classifier": "memorisation=false leaves it out", "is_classifier": "the network names no classes",
        "floor": "no test images are held out of the reference"}
    assert "\nno " not in capsys.readouterr().out
