"""The embedded feature network where it is trained here: once, cached, deterministic, for any images."""

import logging
import struct
import time

import pytest
import torch

from aigc.data.datamodule import ImageData
from aigc.data.digits import Digits
from aigc.data.split import Split
from aigc.networks.fingerprint import state_sha256
from aigc.scoring.networks import classifier
from aigc.scoring.networks.classifier import Classifier, trained_classifier, working_size
from aigc.scoring.networks.stored import encode, read


class Made(ImageData):
    """Images of any shape; the label is the brightest half (or there are no labels)."""

    def __init__(self, *, shape, labelled, numbers=None):
        super().__init__(batch_size=16)
        self.numbers = numbers or {"train": 192, "validation": 16, "test": 64}
        self.shape, self.labelled, self.classes = shape, labelled, 2 if labelled else None

    def load(self):
        splits = {}
        for k, (name, n) in enumerate(self.numbers.items()):
            generator = torch.Generator().manual_seed(k)
            labels = torch.randint(2, (n,), generator=generator)
            images = torch.randint(0, 100, (n, *self.shape), generator=generator)
            half = self.shape[2] // 2
            images[labels == 0, :, :, :half] += 120
            images[labels == 1, :, :, half:] += 120
            splits[name] = Split(images.to(torch.uint8), labels if self.labelled else None)
        return splits


def made(**options):
    data = Made(**options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def digits():
    data = Digits(batch_size=16)
    data.setup()
    return data


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path))
    return tmp_path


def test_digits_are_learned(digits):
    network = trained_classifier(digits)
    assert network.accuracy > 0.97
    assert network.task == "10 classes" and network.classes == 10
    assert network.resizer == "8 x 8, bilinear, antialiased"
    features, logits = network(digits.images("test"))
    assert features.shape[1] == network.num_features == 256 and features.dtype == logits.dtype == torch.float32
    right = (logits.argmax(1) == digits.labels("test")).float().mean().item()
    assert right == pytest.approx(network.accuracy, abs=1e-6)


def test_second_time_comes_from_the_cache(digits, caplog):
    first = trained_classifier(digits)
    with caplog.at_level(logging.INFO):
        started = time.perf_counter()
        again = trained_classifier(digits)
    assert time.perf_counter() - started < 1 and not caplog.records
    assert again.sha256 == first.sha256 and again.accuracy == first.accuracy
    pixels = digits.images("test", limit=5)
    assert torch.equal(first(pixels)[0], again(pixels)[0])


def test_training_is_deterministic_and_leaves_what_is_around_it(tmp_path, monkeypatch):
    data, found = made(shape=(1, 12, 12), labelled=True), []
    for name in "ab":
        monkeypatch.setenv("AIGC_CACHE", str(tmp_path / name))
        torch.manual_seed(len(found))
        state = torch.get_rng_state()
        # callbacks score inside such contexts; weights cast once and for all would not learn
        with torch.autocast("cpu", enabled=name == "a"), torch.no_grad():
            found.append(trained_classifier(data))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0].sha256 == found[1].sha256 and found[0].accuracy > 0.9


@pytest.mark.parametrize("shape", [(3, 20, 36), (1, 7, 9), (4, 33, 16)])
def test_any_size_and_channels(shape, empty_cache):
    network = trained_classifier(made(shape=shape, labelled=True))
    assert network.accuracy > 0.9
    assert network(torch.zeros(2, *shape, dtype=torch.uint8))[0].shape == (2, 256)
    assert len(list(empty_cache.iterdir())) == 1


def test_data_without_labels_are_told_apart_by_rotation(empty_cache):
    data = made(shape=(1, 12, 16), labelled=False)
    network = trained_classifier(data)
    assert network.classes is None and not network.classifies and "four rotations" in network.task
    assert network.head.out_features == 4 and 0.2 < network.accuracy <= 1


def test_rotations_are_quarter_turns_of_the_central_square():
    x = torch.arange(2 * 1 * 4 * 6).reshape(2, 1, 4, 6).float()
    turned = classifier._rotated(x, torch.tensor([0, 3]))
    assert torch.equal(turned[0], x[0, :, :, 1:5])
    assert torch.equal(turned[1], x[1, :, :, 1:5].rot90(3, (1, 2)))


def test_large_images_are_shrunk_and_keep_their_shape():
    assert working_size((28, 28)) == (28, 28) and working_size((64, 8)) == (64, 8)
    assert working_size((256, 128)) == (64, 32) and working_size((2000, 10)) == (64, 8)
    network = Classifier(3, (256, 128), classes=5).freeze()
    assert network.resizer == "64 x 32, bilinear, antialiased"
    flat = network.shrink(torch.full((1, 3, 256, 128), 77, dtype=torch.uint8))
    assert flat.shape == (1, 3, 64, 32) and flat.unique().tolist() == [77.0]


def test_what_is_not_the_classifier_of_the_data_is_said_and_trained_anew(empty_cache, caplog, monkeypatch):
    data = made(shape=(1, 8, 8), labelled=True)
    right = trained_classifier(data)
    monkeypatch.setattr(classifier, "train_classifier", lambda *_: (right, right.accuracy))
    (file,) = empty_cache.iterdir()
    whole, found = file.read_bytes(), read(file)
    cut = {**found.weights, "head.bias": found.weights["head.bias"][:1]}
    nan = {**found.weights, "head.bias": found.weights["head.bias"] * torch.nan}
    facts = {name: fact for name, fact in found.facts.items() if name != "sha256"}

    def stated(weights):
        return encode(weights, {**facts, "sha256": state_sha256(weights)})

    for content, sentence in (
        (struct.pack("q", 1), "cannot be read as a feature network (it is damaged, or not a network that aigc trai"),
        (whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "is damaged (its weights do not have the sha256 that"),
        (encode(found.weights, facts), "was kept without the sha256 of its weights"),
        (encode(found.weights, {**found.facts, "fingerprint": "x"}), "for other data (its fingerprint differs)"),
        (encode(found.weights, {**found.facts, "classes": 7}), "for other data (its classes differs)"),
        (stated(cut), "does not hold the weights of a Classifier of this version"),
        (stated(nan), "holds NaN or infinite weights"),
    ):
        file.write_bytes(content)
        caplog.clear()
        with caplog.at_level("INFO"):
            assert trained_classifier(data).sha256 == right.sha256
        (said,) = (record.message for record in caplog.records if record.levelname == "WARNING")
        assert sentence in said and said.endswith(": training another in its place"), said
        assert file.read_bytes() == whole


@pytest.mark.parametrize(("n", "shape"), [(1, (1, 1, 1)), (2, (3, 1, 40)), (1, (1, 3, 3))])
def test_a_single_image_and_a_single_pixel_have_features_that_are_numbers(n, shape, empty_cache):
    data = made(shape=shape, labelled=False, numbers={"train": n})
    network = trained_classifier(data)
    features, logits = network(torch.zeros(3, *shape, dtype=torch.uint8))
    assert features.shape == (3, 256) and torch.isfinite(features).all() and torch.isfinite(logits).all()
    assert network.resizer.startswith(f"{max(2, shape[1])} x {max(2, shape[2])},")


@pytest.mark.slow
def test_half_an_epoch_of_mnist_is_enough_for_97_in_a_hundred(shared, empty_cache, monkeypatch):
    from aigc.data.vision import Vision

    monkeypatch.setattr("aigc.scoring.networks.classifier.IMAGES", 25_600)
    monkeypatch.setattr("aigc.scoring.networks.classifier.EPOCHS", 1)
    data = Vision("mnist", batch_size=64, root=str(shared), download=False)
    data.setup()
    assert trained_classifier(data).accuracy >= 0.97
