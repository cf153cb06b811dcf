"""The built-in feature network: a small classifier per data set.

- 256 features, averaged over the positions of the last layer, so any image size works.
- For data without labels it learns to predict rotations instead (Gidaris, Singh and Komodakis 2018, "Unsupervised
  representation learning by predicting image rotations"): the same network, four classes.
- Shapes, digits and MNIST have a canonical one in the package (canonical.py). For other data it is trained once
  on their labels, about a minute on two cores, and cached. Rounding differs between machines, and so do the networks:
  every protocol holds the sha256, and the file can be passed on (`metrics.weights=`).
- It trains and evaluates in float32, so the same images have the same features on every processor, up to rounding.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.data.datamodule import IMAGE_KEYS, ImageData
from aigc.errors import UserError
from aigc.files.cache import cache_folder
from aigc.scoring.networks.features import FeatureNetwork, exact
from aigc.scoring.networks.stored import Stored, canonical_of, keep, load_into, read, read_canonical
from aigc.wording import counted

VERSION = 3                 # of architecture and training: a change makes new cache entries
FEATURES = 256
LONGEST = 64                # pixels; longer sides are shrunk to this
SHORTEST = 2                # pixels a side that the convolutions need
IMAGES = 120_000            # seen in training at least as often as ...
EPOCHS = 25                 # ... this many epochs of a small data set allow
KEPT = 60_000               # most training images used
BATCH = 128
RATE, DECAY = 5e-3, 0.05    # AdamW, one-cycle schedule
TURN, ZOOM, SHIFT = 12.0, 0.1, 0.07   # augmentation: degrees, factor, share of the side; no flips: 2 is not S
SEED = 20180321             # the date of the RotNet paper

log = logging.getLogger(__name__)


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - stride + 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size that images `(h, w)` are shrunk to, at the same aspect ratio; small ones keep theirs (at least 2)."""
    longest = max(size)
    if longest <= LONGEST:
        return max(SHORTEST, size[0]), max(SHORTEST, size[1])
    h, w = (max(8, round(side * LONGEST / longest)) for side in size)
    return h, w


class Classifier(FeatureNetwork):
    """Five convolutions to 256 maps, their means over all positions, and one linear layer.

    Args:
        channels: of the images.
        size: of the images, `(h, w)`.
        classes: of the data; None: it predicts four rotations.
        width: channels of the first layer.
    """

    name = "classifier"
    num_features = FEATURES

    def __init__(self, channels: int, size: tuple[int, int], *, classes: int | None, width: int = 24):
        super().__init__()
        self.size = working_size(size)
        self.resizer = f"{self.size[0]} x {self.size[1]}, bilinear, antialiased"
        self.classes = classes
        self.classifies = classes is not None
        self.task = counted(classes, "class") if classes else "four rotations (RotNet: the data have no labels)"
        stride = 2 ** max(0, round(math.log2(math.sqrt(self.size[0] * self.size[1]) / 16)))  # to about 16 per side
        self.body = nn.Sequential(
            _layer(channels, width, 2 * stride if stride > 1 else 3, stride),
            _layer(width, 2 * width, 3),
            _layer(2 * width, 4 * width, 4, 2),
            _layer(4 * width, 4 * width, 3),
            _layer(4 * width, FEATURES, 1),
        )
        self.head = nn.Linear(FEATURES, classes or 4)

    def shrink(self, images: Tensor) -> Tensor:
        """uint8 images as float32 at the working size, in 0..255, rounded."""
        x = images.float()
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", antialias=True).round().clamp(0, 255)

    def features(self, x: Tensor) -> Tensor:
        """Features `(n, 256)` of float images in [-1, 1] of any size."""
        return self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3), dtype=torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 256)` and logits `(n, classes or 4)` of uint8 images, float32."""
        with exact(images.device):
            features = self.features(self.shrink(images) / 127.5 - 1)
            return features, self.head(features)


def classifier_of(
    data: ImageData, device: torch.device | str = "cpu", *, weights: str | None = None
) -> Classifier:
    """The classifier that scores a data set, frozen, on `device`.

    It is read from the file `weights`, if given; else it is the canonical one of the package, if these data have one;
    else it comes from this machine's cache, or is trained now.

    Raises:
        UserError: the file is missing, damaged, or belongs to other data.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        found, origin = read(path), "given"
        _check_given(found, data, path)
        if found.facts.get("fingerprint") != data.fingerprint:
            log.warning("metrics.weights=%s was trained on %s with other images or cuts than these: its scores "
                        "compare only with those of the same file", path, found.facts.get("data"))
    elif (name := canonical_of(data)) is not None:
        found, origin, path = read_canonical(name), f"canonical {name}", Path(name)
    else:
        return trained_classifier(data, device)
    return _restored(found, data, torch.device(device), origin, path)


def trained_classifier(data: ImageData, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of a data set, frozen, on `device`: from the cache, or trained now and cached."""
    device = torch.device(device)
    key = f"classifier-v{VERSION}-{data.name}-{data.fingerprint}-{data.classes or 'rotations'}"
    path = cache_folder() / f"{key}.safetensors"
    if path.is_file():
        try:
            return _restored(_checked(read(path), data, path), data, device, "trained here", path)
        except UserError as error:
            log.warning("%s: training another in its place", str(error).rpartition(":")[0])
    log.info("training the classifier that scores %s: once, about a minute on two cores", data.name)
    started = time.perf_counter()
    network, accuracy = train_classifier(data, device)
    path = keep(key, network.state_dict(), described(data, accuracy))
    log.info("it classifies %.2f%% of the test images correctly (%.0f s); others score by it with metrics.weights=%s",
             100 * accuracy, time.perf_counter() - started, path)
    return _restored(read(path), data, device, "trained here", path)


def train_classifier(
    data: ImageData, device: torch.device | str = "cpu", *, images: int = 0, halves: bool = False
) -> tuple[Classifier, float]:
    """A new classifier of a data set and its accuracy on the test images; keeps the global random state.

    Args:
        data: the data module, set up.
        device: where it trains; always in float32, to depend on the processor as little as possible.
        images: seen in training; 0: chosen by the size of the data set.
        halves: round kernels and matrices to half precision before the test.
    """
    device = torch.device(device)
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, torch.autocast(device.type, enabled=False):
        torch.manual_seed(SEED)
        network = Classifier(data.channels, data.size, classes=data.classes)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        _train(network, data, device, images)
        if halves:
            with torch.no_grad():
                for value in network.parameters():
                    value.copy_(value.half() if value.ndim > 1 else value)
        return network, _accuracy(network, data, device)


def described(data: ImageData, accuracy: float) -> dict[str, Any]:
    """The facts stored in the file of a data set's classifier."""
    return {"network": "classifier", "version": VERSION, "data": data.name, "channels": data.channels,
            "size": list(data.size), "classes": data.classes, "class_names": data.class_names,
            "fingerprint": data.fingerprint, "accuracy": accuracy}


def _restored(found: Stored, data: ImageData, device: torch.device, origin: str, path: Path) -> Classifier:
    with torch.random.fork_rng(devices=[]):     # initial weights are drawn, then replaced
        network = Classifier(data.channels, data.size, classes=data.classes)
    load_into(network, found, path)
    network.accuracy = found.facts.get("accuracy")
    network.sha256, network.origin = found.sha256, origin
    network.to(device, memory_format=torch.channels_last).freeze()  # type: ignore[call-overload]
    return network


def _checked(found: Stored, data: ImageData, path: Path) -> Stored:
    """A network that was kept in the cache, if it is the one for the data.

    Raises:
        UserError: it is another's, or does not say which weights it should have.
    """
    wanted = described(data, 0.0)
    if "sha256" not in found.facts:
        raise UserError(f"{path} was kept without the sha256 of its weights: give another file")
    if other := [key for key in wanted if key != "accuracy" and found.facts.get(key) != wanted[key]]:
        raise UserError(f"{path} was trained for other data (its {other[0]} differs): give another file")
    return found


def _check_given(found: Stored, data: ImageData, path: Path) -> None:
    """Refuses weights that do not fit the data.

    Raises:
        UserError: says what differs.
    """
    facts = found.facts
    if facts.get("network") != "classifier":
        raise UserError(f"metrics.weights={path} holds the network {facts.get('network')}, not a classifier: give a "
                        "file that metrics.network=classifier kept")
    for key, own in (("version", VERSION), ("channels", data.channels), ("size", list(data.size)),
                     ("classes", data.classes), ("class_names", data.class_names)):
        if facts.get(key) != own:
            raise UserError(f"metrics.weights={path} was trained for {facts.get('data')} with {key.replace('_', ' ')} "
                            f"{facts.get(key)}, and {data.name} has {own}: give the file for this data, or none")


def _examples(network: Classifier, data: ImageData, split: str) -> tuple[Tensor, Tensor | None]:
    """Images of a split (of both sides of pairs), uint8 at the working size; their labels if it learns labels."""
    images, labels = [], []
    for batch in data.eval_dataloader(split, limit=KEPT, batch_size=1000):
        images += [network.shrink(batch[key]).to(torch.uint8) for key in IMAGE_KEYS if key in batch]
        if network.classes:
            labels.append(batch["label"])
    return torch.cat(images), torch.cat(labels) if labels else None


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """The central squares of images, each rotated by its own number of quarter turns."""
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    choices = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])
    return choices[turns, torch.arange(len(x), device=x.device)]


def _moved(x: Tensor) -> Tensor:
    """Images slightly rotated, zoomed and shifted, each at random; border pixels are repeated outwards."""
    n = len(x)
    angle, zoom, down, right = torch.rand(4, n, device=x.device).mul_(2).sub_(1)
    angle, zoom = angle * math.radians(TURN), 1 + zoom * ZOOM
    h, w = x.shape[2:]
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = [
        torch.stack([cos, -sin * h / w, right * 2 * SHIFT], 1),
        torch.stack([sin * w / h, cos, down * 2 * SHIFT], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


@torch.enable_grad()
def _train(network: Classifier, data: ImageData, device: torch.device, seen: int = 0) -> None:
    images, labels = _examples(network, data, "train")
    n = len(images)
    batch = max(2, min(BATCH, n))          # of a single image, batch norm would see a single value
    steps = max(1, (seen or min(IMAGES, EPOCHS * n)) // batch)
    optimizer = torch.optim.AdamW(network.train().parameters(), RATE, betas=(0.9, 0.99), weight_decay=DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(n)])
        index, order = order[:batch], order[batch:]
        x = images[index].to(device).float() / 127.5 - 1
        if labels is None:
            target = torch.randint(4, (batch,), device=device)
            x = _rotated(x, target)
        else:
            target = labels[index].to(device)
        loss = F.cross_entropy(network.head(network.features(_moved(x))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: Classifier, data: ImageData, device: torch.device) -> float:
    """Share of test images whose class (or rotation, over all four) it predicts correctly."""
    split = next(split for split in ("test", "validation", "train") if split in data.splits)
    images, labels = _examples(network, data, split)
    right: list[Tensor] = []
    for k, part in enumerate(images.split(500)):
        x = part.to(device).float() / 127.5 - 1
        if labels is None:
            for turn in range(4):
                turns = torch.full((len(x),), turn, device=device)
                right.append(network.head(network.features(_rotated(x, turns))).argmax(1) == turn)
        else:
            right.append(network.head(network.features(x)).argmax(1).cpu() == labels[500 * k : 500 * k + len(x)])
    return torch.cat(right).float().mean().item()
