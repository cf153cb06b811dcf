"""Small local stand-ins for every data set of conf/data, in the real layout of what is downloaded."""

import gzip
import hashlib
import io
import json
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from aigc.config.schema import CONFIG_DIR

SIDE = 16
DATA = sorted(path.stem for path in (CONFIG_DIR / "data").glob("*.yaml"))
CONDITIONS = {  # what images can be conditioned on; the others: nothing
    "cifar10": ("label",), "digits": ("label",), "fashion_mnist": ("label",), "mnist": ("label",),
    "image_folder": ("label",), "huggingface": ("label", "text"), "shapes": ("label", "text"),
}
SPLITS = {"facades": ("train", "val", "test"), "night2day": ("train", "val", "test")}  # of the pix2pix archives
_draw = np.random.default_rng(0)


def kind_of(name: str) -> str:
    """images, unpaired or paired, by the class that conf/data names."""
    target = OmegaConf.load(CONFIG_DIR / "data" / f"{name.partition(':')[0]}.yaml")["_target_"]
    return "unpaired" if "Unpaired" in target else "paired" if re.search("Paired|Degraded", target) else "images"


def picture(width: int = SIDE, ending: str = "JPEG") -> bytes:
    """A random picture."""
    buffer = io.BytesIO()
    Image.fromarray(_draw.integers(0, 256, (SIDE, width, 3), dtype=np.uint8)).save(buffer, ending)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Files in a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def archive(path: Path, files: dict[str, bytes]) -> list[str]:
    """A zip or tar.gz of these files, and the overrides that have it downloaded and its checksum checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in files.items():
                packed.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as packed:
            for name, content in files.items():
                _add(packed, name, content)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return [f"data.archive.url={path.as_uri()}", f"++data.archive.bytes={path.stat().st_size}",
            f"++data.archive.sha256='{digest}'"]


def _add(packed: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    packed.addfile(member, io.BytesIO(content))


def serve(patch: pytest.MonkeyPatch) -> None:
    """Has torchvision copy what a file:// address names; its own reader wants an HTTP answer's length."""
    from torchvision.datasets import utils

    def fetch(url: str, path: str, **_: object) -> None:
        Path(path).write_bytes(Path(url.removeprefix("file://")).read_bytes())

    patch.setattr(utils, "_urlretrieve", fetch)
    patch.setattr(utils, "_get_redirect_url", lambda url, **_: url)


def mnist(served: Path, name: str, patch: pytest.MonkeyPatch) -> None:
    """torchvision's four gzipped files, at a mirror of our own."""
    from torchvision import datasets

    serve(patch)
    resources = []
    for part, n in (("train", 20), ("t10k", 8)):
        images = struct.pack(">IIII", 0x803, n, 28, 28) + _draw.integers(0, 256, n * 784, dtype=np.uint8).tobytes()
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            file = f"{part}-{kind}-ubyte.gz"
            write(served / name, {file: gzip.compress(content)})
            resources.append((file, hashlib.md5((served / name / file).read_bytes()).hexdigest()))
    patch.setattr(getattr(datasets, name), "mirrors", [(served / name).as_uri() + "/"])
    patch.setattr(getattr(datasets, name), "resources", resources)


def cifar10(served: Path, patch: pytest.MonkeyPatch) -> None:
    """The Python version: five batches, a test batch and the names, pickled, in a tar.gz."""
    from torchvision import datasets

    serve(patch)
    files, top = {}, "cifar-10-batches-py"
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        files[name] = pickle.dumps({"data": _draw.integers(0, 256, (8, 3072), dtype=np.uint8),
                                    "labels": [k % 10 for k in range(8)]})
    files["batches.meta"] = pickle.dumps({"label_names": [f"thing {k}" for k in range(10)]})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    served.mkdir(parents=True, exist_ok=True)
    path = served / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for name, content in files.items():
            _add(packed, f"{top}/{name}", content)
    for name, value in {
        "url": path.as_uri(), "tgz_md5": hashlib.md5(path.read_bytes()).hexdigest(),
        "train_list": [[name, sums[name]] for name in files if name.startswith("data_batch")],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]},
    }.items():
        patch.setattr(datasets.CIFAR10, name, value)


def parquet(path: Path, n: int) -> Path:
    """A table with the images in it, classes and captions."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]),
                                  "text": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(ending="PNG"), "path": None} for _ in range(n)],
            "label": [k % 2 for k in range(n)], "text": [f"picture {k % 3}" for k in range(n)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def stand_in(name: str, served: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Makes the stand-in of a data set, `<name>` or `<name>:<layout>`; the overrides that choose it."""
    name, _, layout = name.partition(":")
    words = [f"data={name}"]
    held = ["data.validation=4", "data.test=4"]
    square = f"data.size={SIDE}"
    if name in ("mnist", "fashion_mnist"):
        mnist(served, {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name], patch)
        return [*words, "data.validation=4", square]
    if name == "cifar10":
        cifar10(served, patch)
        return [*words, "data.validation=4", square]
    if name == "digits":
        return words
    if name == "degraded":
        small = [word.replace("data.", "data.source.") for word in stand_in("shapes", served, patch)[1:]]
        return [*words, *small, "data.degradations=[blur,strokes,noise]"]
    if name.startswith("shapes"):
        small = ["data.train=16", "data.validation=8", "data.test=8", square]
        return [*words, *small, *(["data.heldout=4"] if name == "shapes" else [])]
    if name == "image_folder":
        files = {f"{kind}/{k}.png": picture(ending="PNG") for kind in ("cat", "dog") for k in range(12)}
        root = write(served / name, files)
        return [*words, f"data.path={root}", *held, square]
    if layout == "parquet":
        return [*words, f"data.path={parquet(served / 'table.parquet', 24)}", *held, square]
    if name == "huggingface":
        files = {f"{k}.png": picture(ending="PNG") for k in range(24)}
        rows = [{"file_name": f"{k}.png", "label": ["cat", "dog"][k % 2], "text": f"picture {k % 3}"}
                for k in range(24)]
        files["metadata.jsonl"] = "\n".join(map(json.dumps, rows)).encode()
        return [*words, f"data.path={write(served / name, files)}", *held, square]
    held = ["data.validation=4", "data.test=4", f"data.crop_size={SIDE}"]
    sides = {f"{name}/{part}/{k}.jpg": picture() for part, n in
             (("trainA", 12), ("trainB", 14), ("testA", 4), ("testB", 5)) for k in range(n)}
    if name == "unpaired_folder":
        return [*words, f"data.root={write(served, sides) / name}", *held]
    if name == "paired_folder":
        files = {
            "": {f"{k}_{side}.png": picture(ending="PNG") for k in range(16) for side in "AB"},
            "names": {f"{side}/{k}.png": picture(ending="PNG") for k in range(16) for side in ("photos", "sketches")},
            "beside": {f"{k}.png": picture(2 * SIDE, "PNG") for k in range(16)},
        }[layout]
        return [*words, f"data.root={write(served / f'{name}_{layout}', files)}", *held]
    if kind_of(name) == "unpaired":
        return [*words, *archive(served / f"{name}.zip", sides), *held, f"data.load_size={SIDE + 2}"]
    halves = {f"{name}/{part}/{k}.jpg": picture(2 * SIDE)
              for part in SPLITS.get(name, ("train", "val")) for k in range(14 if part == "train" else 4)}
    return [*words, *archive(served / f"{name}.tar.gz", halves), *held, f"data.load_size={SIDE + 2}"]
