"""The embedded feature network: a small classifier, trained once for each data set on its own labels and cached.

- 256 features, averaged over the last layer's positions, so that any image size works.
- Data without labels are told apart by rotation instead (Gidaris, Singh and Komodakis 2018, "Unsupervised
  representation learning by predicting image rotations"): the same network, four classes.
- Training is deterministic on one machine and takes about a minute on two cores; the weights' sha256 goes into every
  protocol, because another machine's rounding trains another network.
"""

import logging
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.data.datamodule import IMAGE_KEYS, ImageData
from aigc.metrics.cache import keep_cached, load_cached
from aigc.metrics.features import FeatureNetwork, state_sha256
from aigc.precision import choose_precision

VERSION = 2                 # of architecture and training: a change makes new cache entries
FEATURES = 256
LONGEST = 64                # longer sides are shrunk to this
IMAGES = 120_000            # seen in training at least as often as ...
EPOCHS = 25                 # ... this many epochs of a small data set allow
KEPT = 60_000               # training images looked at, at most
BATCH = 128
RATE, DECAY = 5e-3, 0.05    # AdamW, one cycle
TURN, ZOOM, SHIFT = 12.0, 0.1, 0.07   # augmentation: degrees, factor, share of the side; no flips: 2 is not S
SEED = 20180321             # the date of the RotNet paper

log = logging.getLogger(__name__)


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - stride + 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """What images `(h, w)` are shrunk to, keeping their shape; small ones stay."""
    longest = max(size)
    if longest <= LONGEST:
        return size
    h, w = (max(8, round(side * LONGEST / longest)) for side in size)
    return h, w


class Classifier(FeatureNetwork):
    """Five convolutions to 256 maps, their means over all positions, and one linear layer.

    Args:
        channels: of the images.
        size: of the images, `(h, w)`.
        classes: of the data; None: it tells four rotations apart.
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
        self.task = f"{classes} classes" if classes else "four rotations (RotNet: the data have no labels)"
        stride = 2 ** max(0, round(math.log2(math.sqrt(self.size[0] * self.size[1]) / 16)))  # to about 16 a side
        self.body = nn.Sequential(
            _layer(channels, width, 2 * stride if stride > 1 else 3, stride),
            _layer(width, 2 * width, 3),
            _layer(2 * width, 4 * width, 4, 2),
            _layer(4 * width, 4 * width, 3),
            _layer(4 * width, FEATURES, 1),
        )
        self.head = nn.Linear(FEATURES, classes or 4)

    def shrink(self, images: Tensor) -> Tensor:
        """uint8 images as float32 of the working size, in 0..255, rounded."""
        x = images.float()
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", antialias=True).round().clamp(0, 255)

    def features(self, x: Tensor) -> Tensor:
        """Features `(n, 256)` of float images in [-1, 1] of any size."""
        return self.body(x.contiguous(memory_format=torch.channels_last)).mean((2, 3), dtype=torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(n, 256)` and logits `(n, classes or 4)` of uint8 images, float32."""
        features = self.features(self.shrink(images) / 127.5 - 1)
        return features, self.head(features)


def trained_classifier(data: ImageData, device: torch.device | str = "cpu") -> Classifier:
    """The classifier of a data set, frozen, on `device`: from the cache, or trained now and kept there."""
    device = torch.device(device)
    key = f"classifier-v{VERSION}-{data.fingerprint}-{data.classes or 'rotations'}"
    kept = load_cached(key)
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, torch.autocast(device.type, enabled=False):
        torch.manual_seed(SEED)
        network = Classifier(data.channels, data.size, classes=data.classes)
        if kept is None:
            log.info("training the classifier that scores %s: once, about a minute on two cores", data.name)
            started = time.perf_counter()
            network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            _train(network, data, device)
            accuracy = _accuracy(network, data, device)
            kept = {"weights": {k: v.cpu() for k, v in network.state_dict().items()}, "accuracy": accuracy}
            keep_cached(key, kept)
            log.info("it knows %.2f%% of the test images (%.0f s)", 100 * accuracy, time.perf_counter() - started)
    network.load_state_dict(kept["weights"])
    network.accuracy = kept["accuracy"]
    network.sha256 = state_sha256(kept["weights"])
    network.to(device, memory_format=torch.channels_last).freeze()  # type: ignore[call-overload]
    return network


def _examples(network: Classifier, data: ImageData, split: str) -> tuple[Tensor, Tensor | None]:
    """Images of a split (of both sides of pairs), uint8 of the working size; their labels where it learns labels."""
    images, labels = [], []
    for batch in data.eval_dataloader(split, limit=KEPT, batch_size=1000):
        images += [network.shrink(batch[key]).to(torch.uint8) for key in IMAGE_KEYS if key in batch]
        if network.classes:
            labels.append(batch["label"])
    return torch.cat(images), torch.cat(labels) if labels else None


def _rotated(x: Tensor, turns: Tensor) -> Tensor:
    """The central squares of images, each turned by its own number of quarter turns."""
    side = min(x.shape[2:])
    top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    choices = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])
    return choices[turns, torch.arange(len(x), device=x.device)]


def _moved(x: Tensor) -> Tensor:
    """Images turned, zoomed and shifted a little, each in its own way; edges continue outwards."""
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
def _train(network: Classifier, data: ImageData, device: torch.device) -> None:
    images, labels = _examples(network, data, "train")
    n = len(images)
    batch = min(BATCH, n)
    steps = max(1, min(IMAGES, EPOCHS * n) // batch)
    precision = choose_precision("auto", device.type)
    optimizer = torch.optim.AdamW(network.train().parameters(), RATE, betas=(0.9, 0.99), weight_decay=DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(n)])
        index, order = order[:batch], order[batch:]
        x = images[index].to(device).float() / 127.5 - 1
        if labels is None:
            target = torch.randint(4, (batch,), device=device)
            x = _rotated(x, target)
        else:
            target = labels[index].to(device)
        x = _moved(x)
        # no cache of cast weights: inside an outer autocast context, even a disabled one, they would outlive the step
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
            features = network.features(x)
        loss = F.cross_entropy(network.head(features), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    network.eval()


@torch.no_grad()
def _accuracy(network: Classifier, data: ImageData, device: torch.device) -> float:
    """Share of the test images whose class (or whose quarter turn, each of the four tried) it names."""
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
