"""Reads the attributes of rendered shapes back from an image, to measure composition.

A small network is trained on fresh renders of all combinations, including those held out of the data's training, and
learns every attribute of all objects at once. For 32 px it is in the package (canonical.py); for another size it is
trained once and cached. Richer captions (`data.language=rich`) are checked by one that reads up to three objects.

On 5,000 fresh renders of 32 px it reads everything a caption says correctly for 100.0% of single objects and 99.9% of
pairs, and for as many of the combinations held out of the data's training.
"""

import logging
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc.data.scenes import BACKGROUNDS, COLOURS, COLUMNS, RELATIONS, SHAPES, SIZES, Scenes
from aigc.data.scenes import VERSION as DRAWING
from aigc.data.shape_language import COLUMNS3, RichScenes
from aigc.files.cache import keep_cached, load_cached
from aigc.networks.fingerprint import state_sha256
from aigc.scoring.networks.stored import canonical_list, read_canonical

VERSION = 2                     # of architecture and training: a change makes new cache entries
CANONICAL = (32, 32)            # the size of the oracle in the package
SIDE = 32                       # larger images are shrunk to this
WHOLE = ("count", "relation", "background")           # attributes of the image
OBJECT = ("size", "colour", "shape")                  # attributes of an object
KINDS = {"plain": (Scenes, 2), "rich": (RichScenes, 3)}   # what a language's pictures are, and the most objects in one
CHOICES = {"relation": len(RELATIONS), "background": len(BACKGROUNDS), "size": len(SIZES),
           "colour": len(COLOURS), "shape": len(SHAPES)}
SEED = 7001                     # of its renders: differs from any data set's
TRAINING = {"plain": (16_000, 3), "rich": (24_000, 4)}    # renders it is trained on, and epochs
SECONDS = {"plain": 20, "rich": 60}                       # that this takes on two cores
BATCH = 128
RATE, DECAY = 4e-3, 0.02        # AdamW, one-cycle schedule
NOISE = 8.0                     # grey levels: generated images are not as clean as renders

_KNOWN: WeakKeyDictionary[Any, "ShapesOracle"] = WeakKeyDictionary()     # by data module

log = logging.getLogger(__name__)


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class ShapesOracle(nn.Module):
    """Convolutions to a map of features, which is read at two or three positions, one per object.

    The positions are predicted from the whole map (which object is the first one?) and supervised by the renders'
    centres; one head, shared by both objects and all positions, reads the attributes there, so few renders suffice.
    """

    sha256 = ""                                     # of the weights, once trained

    def __init__(self, size: tuple[int, int] = (32, 32), *, width: int = 16, language: str = "plain"):
        super().__init__()
        scenes, self.objects = KINDS[language]
        self.columns, self.suffixes = scenes.columns, scenes.suffixes
        self.choices = {"count": self.objects, **CHOICES}
        self.size = (min(size[0], SIDE), min(size[1], SIDE))
        self.grid = (-(-self.size[0] // 4), -(-self.size[1] // 4))
        positions = self.grid[0] * self.grid[1]
        self.body = nn.Sequential(
            _layer(3, width, 1), _layer(width, 2 * width, 2), _layer(2 * width, 2 * width, 1),
            _layer(2 * width, 4 * width, 2), _layer(4 * width, 4 * width, 1),
        )
        self.summary = nn.Conv2d(4 * width, 8, 1)
        self.overview = nn.Sequential(nn.Linear(8 * positions, 128), nn.ReLU())
        self.where = nn.Linear(128, self.objects * positions)
        whole = sum(self.choices[name] for name in WHOLE)
        self.whole = nn.Linear(128 + 4 * width, whole)
        self.what = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.ReLU(),
                                  nn.Linear(4 * width, sum(CHOICES[name] for name in OBJECT)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits `(n, choices)` by attribute, `where` `(n, places, objects)`, of images uint8 or float in 0..255."""
        x = images.float()
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        x = (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        features = self.body(x)
        overview = self.overview(self.summary(features).flatten(1))
        features = features.flatten(2)                                            # (n, c, positions)
        where = self.where(overview).unflatten(1, (self.objects, -1)).float()     # (n, objects, positions)
        seen = self.what(torch.einsum("nkp,ncp->nkc", where.softmax(2).to(features.dtype), features)).float()
        whole = self.whole(torch.cat([overview, features.mean(2)], dim=1)).float()
        logits = {"where": where.transpose(1, 2)}
        logits |= dict(zip(WHOLE, whole.split([self.choices[name] for name in WHOLE], dim=1), strict=True))
        for k, suffix in enumerate(self.suffixes):
            parts = seen[:, k].split([CHOICES[name] for name in OBJECT], dim=1)
            logits |= {name + suffix: part for name, part in zip(OBJECT, parts, strict=True)}
        return logits

    @torch.no_grad()
    def read(self, images: Tensor, *, batch_size: int = 500) -> Tensor:
        """Attributes of images uint8 `(n, 3, h, w)`: int64 `(n, 9)` as in COLUMNS; if rich `(n, 12)`, COLUMNS3."""
        parts = []
        for part in images.split(batch_size):
            logits = self(part)
            found = {name: logits[name].argmax(1) for name in self.columns}
            found["count"] = count = found["count"] + 1                  # counts start at 1
            found["relation"] = torch.where(count == 2, found["relation"], -1)
            for k, suffix in enumerate(self.suffixes):
                found |= {name + suffix: torch.where(count > k, found[name + suffix], -1) for name in OBJECT}
            parts.append(torch.stack([found[name] for name in self.columns], dim=1))
        return torch.cat(parts)


def oracle_of(data: Any) -> ShapesOracle:
    """The oracle that reads images of the size of `data`: in memory after the first call, cached, or trained now."""
    if data not in _KNOWN:
        _KNOWN[data] = shapes_oracle(data.wanted_size, language=data.language)
    return _KNOWN[data]


def read_back(data: Any, images: Tensor) -> Tensor:
    """What the oracle sees in images uint8 `(n, 3, h, w)` of such data: attributes int64, see `ShapesOracle.read`."""
    return oracle_of(data).to(images.device).read(images)


def clear(oracle: ShapesOracle, images: Tensor, *, confidence: float = 0.9) -> Tensor:
    """Which of images uint8 `(n, 3, h, w)` show one clear known shape: bool `(n,)`.

    The oracle's probability of a single object, and of its most likely shape, is at least `confidence`. Of 4,000
    renders 99.9% are clear; with noise of 16 grey levels 99.6%, blurred over 3 pixels 87%, over 5 pixels 42%; with two
    objects, none.
    """
    logits = oracle(images)
    single, shape = (logits[name].softmax(1) for name in ("count", "shape"))
    return (single[:, 0] >= confidence) & (shape.amax(1) >= confidence)


def agreement(found: Tensor, asked: Tensor) -> dict[str, float]:
    """Shares of images with correct attributes `(n, 9)`: for each attribute, and `all`: everything a caption says.

    An attribute asked for as -1 is not in the caption: it counts as correct in `all`, and is ignored elsewhere. That
    there is one object is part of the count.
    """
    right = (found == asked) | (asked < 0)
    scores = {}
    for k, name in enumerate(COLUMNS):
        where = asked[:, k] >= 0
        if where.any():
            scores[name] = right[where, k].float().mean().item()
    scores["all"] = right.all(1).float().mean().item()
    return scores


def shapes_oracle(
    size: tuple[int, int] = (32, 32), device: torch.device | str = "cpu", *, language: str = "plain"
) -> ShapesOracle:
    """The oracle for images of this size and captions in this language, frozen, on `device`.

    For 32 px it is the canonical one in the package; for other sizes it is cached, or trained now.
    """
    name = "oracle" if language == "plain" else f"oracle_{language}"
    key = f"{name}-v{VERSION}-{DRAWING}-{size[0]}x{size[1]}"
    kept: Any = None
    if size == CANONICAL and canonical_list().get(name, {}).get("drawing") == DRAWING:
        kept = read_canonical(name).weights
    with torch.random.fork_rng(devices=[]):     # first weights are drawn, and replaced
        oracle = ShapesOracle(size, language=language)
    kept = load_cached(key) if kept is None else kept
    if not _fits(oracle, kept):
        if kept is not None:
            log.warning("the oracle in the cache folder (%s.pt) is another's: training one in its place", key)
        log.info("training the oracle that reads shapes: once, about %d s on two cores", SECONDS[language])
        started = time.perf_counter()
        trained = train_oracle(size, device=device, language=language)
        kept = {name: value.cpu() for name, value in trained.state_dict().items()}
        keep_cached(key, kept)
        log.info("the oracle is trained (%.0f s)", time.perf_counter() - started)
    oracle.load_state_dict(kept)
    oracle.sha256 = state_sha256(kept)
    return oracle.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def _fits(oracle: ShapesOracle, kept: Any) -> bool:
    """Whether what was kept are weights for this oracle, and numbers."""
    wanted = {name: value.shape for name, value in oracle.state_dict().items()}
    return (isinstance(kept, dict) and {name: getattr(value, "shape", None) for name, value in kept.items()} == wanted
            and all(value.isfinite().all() for value in kept.values()))


@torch.enable_grad()
def train_oracle(
    size: tuple[int, int], *, objects: str = "mixed", language: str = "plain", pool: int | None = None,
    epochs: int | None = None, width: int = 16, device: torch.device | str = "cpu", seed: int = SEED,
) -> ShapesOracle:
    """A new oracle, trained on `pool` renders of all combinations, including those that the data hold out.

    Keeps the global random state. `pool` and `epochs` are by default those of TRAINING.
    """
    device = torch.device(device)
    pool, epochs = pool or TRAINING[language][0], epochs or TRAINING[language][1]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        oracle = ShapesOracle(size, width=width, language=language)
        oracle.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(oracle.parameters(), lr=RATE, weight_decay=DECAY)
        steps = epochs * (pool // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
        for images, attributes, centres in _batches(KINDS[language][0], size, objects, pool, epochs, seed):
            images = images.to(device).float()
            images = images + NOISE * torch.rand(len(images), 1, 1, 1, device=device) * torch.randn_like(images)
            logits = oracle(images)
            loss = _loss(logits, attributes.to(device), _cells(centres, oracle.grid).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return oracle.eval().requires_grad_(False)


def _batches(
    kind: type[Scenes], size: tuple[int, int], objects: str, pool: int, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of uint8 renders with their attributes and centres; drops the last, smaller batch of an epoch."""
    shares = {"train": pool - pool // 7, "heldout": pool // 7}   # 10 of 70 combinations are held out: all as often
    scenes = [(kind(seed, split, objects=objects, size=size), torch.arange(n)) for split, n in shares.items()]
    images = torch.cat([one.images(index) for one, index in scenes])
    attributes = torch.cat([one.attributes(index) for one, index in scenes])
    centres = torch.cat([one.centres(index) for one, index in scenes])
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: pool // BATCH * BATCH].split(BATCH):
            yield images[rows], attributes[rows], centres[rows]


def _cells(centres: Tensor, grid: tuple[int, int]) -> Tensor:
    """Indices `(n, k)` of the map's positions that contain the centres `(n, k, 2)`; -1 for none."""
    x, y = (centres[..., k].mul(grid[1 - k]).floor().clamp(0, grid[1 - k] - 1) for k in (0, 1))
    return (y * grid[1] + x).nan_to_num(-1).long()


def _loss(logits: dict[str, Tensor], attributes: Tensor, cells: Tensor) -> Tensor:
    """Sum of the cross-entropies of positions and attributes, each over the images that have them."""
    total = F.cross_entropy(logits["where"], cells, ignore_index=-1)
    for k, name in enumerate(COLUMNS if attributes.shape[1] == len(COLUMNS) else COLUMNS3):
        target = attributes[:, k] - int(name == "count")        # counts start at 1
        if (target >= 0).any():
            total = total + F.cross_entropy(logits[name], target, ignore_index=-1)
    return total
