"""torchvision's data sets: read from a root, downloaded only when allowed, a sentence when neither is possible."""

import gzip
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from aigc.data.vision import Vision
from aigc.errors import UserError


def write_mnist(root: Path, folder: str = "MNIST", train: int = 60, test: int = 12) -> Path:
    """A tiny data set in MNIST's own format; image i is all i."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", train), ("t10k", test)):
        images = np.arange(n, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, n, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n)))
    return root


def load(source: str, root: Path, **options: object) -> Vision:
    data = Vision(source, **{"root": str(root), "batch_size": 8, "download": False, **options})  # type: ignore
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(("source", "folder", "names"), [
    ("mnist", "MNIST", ["0", "1", "2"]), ("fashion_mnist", "FashionMNIST", ["T-shirt/top", "Trouser", "Pullover"])])
def test_a_validation_split_is_held_out_of_train(tmp_path: Path, source: str, folder: str, names: list[str]) -> None:
    data = load(source, write_mnist(tmp_path, folder), validation=10)
    parts = {s: data.images(s)[:, 0, 0, 0].tolist() for s in ("train", "validation", "test")}
    assert [len(p) for p in parts.values()] == [50, 10, 12]
    assert sorted(parts["train"] + parts["validation"]) == list(range(60)) and parts["test"] == list(range(12))
    assert data.labels("train").tolist() == [level % 10 for level in parts["train"]]
    assert (data.name, data.size, data.channels, data.classes) == (source, (28, 28), 1, 10)
    assert data.class_names[:3] == names


def test_size_and_channels_can_be_chosen(tmp_path: Path) -> None:
    data = load("mnist", write_mnist(tmp_path), validation=10, size=32, channels=3)
    assert data.images("train").shape == (50, 3, 32, 32)
    assert torch.equal(data.images("test")[7], torch.full((3, 32, 32), 7, dtype=torch.uint8))


def test_the_real_mnist(shared: Path) -> None:
    data = load("mnist", shared, validation=5000)
    assert [data.count(s) for s in ("train", "validation", "test")] == [55000, 5000, 10000]
    pixels = torch.cat([data.images("train"), data.images("validation")]).float() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)      # the constants that everybody uses
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert data.labels("test").bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_missing_data_without_permission_to_download(tmp_path: Path) -> None:
    for source, title in (("mnist", "MNIST"), ("cifar10", "CIFAR-10"), ("fashion_mnist", "Fashion-MNIST")):
        with pytest.raises(UserError, match=f"^{title} is not at .* and data.download=false: put it there"):
            load(source, tmp_path)


@pytest.mark.parametrize("error", [urllib.error.URLError("no route"), RuntimeError("Error downloading x:\nTried a\n"),
                                   OSError(28, "No space left on device")])
@pytest.mark.parametrize("source", ["mnist", "cifar10"])
def test_missing_data_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: Exception
) -> None:
    import torchvision.datasets as sets

    def fail(*_: object, **__: object) -> None:
        raise error

    for module in (sets.mnist, sets.cifar):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*(no route|Error downloading|No space)") as caught:
        load(source, tmp_path, download=True)
    assert "\n" not in str(caught.value) and "data=digits" in str(caught.value)


def test_what_is_there_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets as sets

    monkeypatch.setattr(sets.mnist, "download_and_extract_archive", None)  # calling it would raise
    assert load("mnist", write_mnist(tmp_path), validation=10, download=True).count("train") == 50


def test_torn_files_are_one_sentence(tmp_path: Path) -> None:
    raw = write_mnist(tmp_path) / "MNIST" / "raw"
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    for torn in (whole[:1000], b"", gzip.compress(whole)):
        (raw / "train-images-idx3-ubyte").write_bytes(torn)
        with pytest.raises(UserError, match=r"^MNIST at .* cannot be read .*: delete that folder and"):
            load("mnist", tmp_path, validation=10)


def test_an_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'fashion_mnist'"):
        load("fashon_mnist", tmp_path)
