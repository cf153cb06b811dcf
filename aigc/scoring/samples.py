"""Scores samples of a family, or the pictures in a folder, against real images: all networks in one pass.

`show` is what training and evaluation share; the rest adds what only an evaluation has: protocols for each score,
captions by CLIP, and pictures of nearest neighbours.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc.conditions.rewording import caption_numbers
from aigc.data.datamodule import ImageData
from aigc.errors import UserError
from aigc.files.cache import keep_cached, load_cached
from aigc.images.streams import counting, samples
from aigc.models.family import Family
from aigc.models.guidance import Guidance
from aigc.scoring.bootstrap import Estimate, bounded, draws, standard_error
from aigc.scoring.devices import ALONE, Devices
from aigc.scoring.networks.features import real_key
from aigc.scoring.networks.oracle import oracle_of
from aigc.scoring.panel import Panel
from aigc.scoring.scores.attributes import shares_of, tables
from aigc.scoring.scores.clip_score import Judge
from aigc.scoring.scores.memorisation import SHOWN, save_neighbours
from aigc.scoring.scores.similarity import likeness
from aigc.scoring.sources import DataSource, Source
from aigc.wording import Report, silent

PICTURED = 64 * 2**20      # bytes of images kept, to be shown beside their neighbours

# numbers, images, labels, captions, and what else is known of each image
Stream = Iterator[tuple[list[int], Tensor, Tensor | None, list[str] | None, dict[str, Tensor]]]


@dataclass
class Found:
    """The results of an evaluation."""

    scores: dict[str, Estimate] = field(default_factory=dict)
    protocol: dict[str, dict[str, Any]] = field(default_factory=dict)
    sampling: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)             # remarks on the scores
    missing: dict[str, str] = field(default_factory=dict)      # why a score could not be computed, by its name
    ruled_out: dict[str, str] = field(default_factory=dict)    # the same where what was asked for leaves none

    def note(self, note: str | None) -> None:
        """Keeps a remark, once."""
        if note and note not in self.notes:
            self.notes.append(note)

    def add(self, scores: dict[str, Estimate], protocol: dict[str, Any]) -> None:
        """Adds scores that share a protocol; those that are not finite are missing."""
        numbers = {name: score for name, score in scores.items() if math.isfinite(score.value)}
        self.scores |= numbers
        self.protocol |= {name: {"metric": name, **protocol} for name in numbers}
        self.missing |= {name: f"it came to {score.value}" for name, score in scores.items() if name not in numbers}


@dataclass(frozen=True)
class Sampling:
    """How images are sampled from a family."""

    n: int
    batch_size: int
    seed: int
    split: str                      # that gives the conditions
    balanced: bool                  # labels: equally many per class
    options: dict[str, Any]         # of the family's `sample`; empty: those of its recipe
    guidance: Guidance | None = None  # by other runs

    @property
    def labelled(self) -> bool:
        """Whether the guidance is to labels, which the samples then have."""
        return self.guidance is not None and self.guidance.labels is not None


class Samples:
    """The stream of a family's samples; measures their cost."""

    def __init__(self, family: Family, data: ImageData, how: Sampling, devices: Devices = ALONE):
        self.family, self.data, self.how, self.devices = family, data, how, devices
        self.made, self.rows, self.seconds = 0, 0, 0.0

    def __iter__(self) -> Stream:
        h = self.how
        asked = self.family.condition
        making = samples(self.family, self.data, h.split, h.n, batch_size=h.batch_size, seed=h.seed,
                         balanced=h.balanced, options=h.options, guidance=h.guidance, **self.devices.share)
        with counting(self.family, self):
            while True:
                started = time.perf_counter()
                found = next(making, None)
                if found is None:
                    return
                self.seconds += time.perf_counter() - started
                numbers, batch, images = found
                self.made += len(images)
                known, labelled = {}, asked == "label" or h.labelled
                if self.family.reconstructs:
                    known = likeness(images.cpu(), batch["image"], None)
                    labelled = "label" in batch
                yield numbers, images, batch["label"] if labelled else None, \
                    batch["text"] if asked == "text" else None, known

    def cost(self) -> dict[str, Any]:
        """Network evaluations and seconds per image."""
        n = max(1, self.made)
        return {
            "evaluations": round(self.rows / n, 3) or 1.0,
            "seconds_per_image": self.seconds / n,
            "options": self.how.options,
            **({"guided": {**self.how.guidance.facts, **self.how.guidance.options}} if self.how.guidance else {}),
            "batch_size": self.how.batch_size,
        }


def pictures_of(source: Source, n: int, batch_size: int) -> Stream:
    """The stream of the pictures in a folder."""
    start = 0
    for batch in source.batches(n, batch_size):
        yield [*range(start, start + len(batch["image"]))], batch["image"], None, None, {}
        start += len(batch["image"])


def show(stream: Stream, n: int, panels: Sequence[Panel]) -> Stream:
    """Shows this device's share of n images to every panel, and passes them on.

    What is known of them besides is for the first panel alone: it has nothing to do with any network.
    """
    for panel in panels:
        panel.begin(n)
    for numbers, images, labels, texts, known in stream:
        for panel in panels:
            panel.look(images, labels, numbers=numbers, **(known if panel is panels[0] else {}))
        yield numbers, images, labels, texts, known


def score_images(
    stream: Stream, n: int, panels: list[Panel], found: Found, *, clip: Judge | None = None, facts: dict[str, Any],
    progress: Report = silent, prefix: str = "",
) -> list[Tensor]:
    """Shows the n images of a stream to every panel, and adds the scores to `found`.

    Args:
        stream: of images; each is shown once to all networks.
        n: number of images.
        panels: with their reference and floors.
        found: receives scores and protocols.
        clip: scores captions, if the stream has any.
        facts: added to the protocols: how the images were sampled.
        progress: told how many images were seen.
        prefix: what stands before the scores' names.

    Returns:
        The first images, uint8 `(c, h, w)` each, up to `PICTURED` bytes.

    Raises:
        UserError: fewer than two of the images could be read.
    """
    shown: list[Tensor] = []
    agreement: list[Tensor] = []
    captions: list[str] = []
    count = 0
    progress(count, n, "")
    for _, images, _, texts, _ in show(stream, n, panels):
        if clip is not None and texts is not None:
            agreement.append(clip(images, texts))
            captions += texts
        if sum(part.nbytes for part in shown) < PICTURED:
            shown.append(images.cpu())
        count += len(images)
        progress(count, n, "")
    if panels[0].suite.generated < 2:
        raise UserError("fewer than two images could be read: distances need at least two")
    for panel in panels:
        found.add({prefix + name: score for name, score in panel.scores().items()}, {**panel.protocol(), **facts})
    if clip is not None and agreement:
        score = panels[0].mean("clip_score", torch.cat(agreement))
        judged = caption_numbers(captions)
        found.add({"clip_score": score}, {**panels[0].compared(), **clip.facts(judged), **facts})
        found.note(clip.remark(judged))
    return [image for part in shown for image in part]


def clip_floor(clip: Judge, source: DataSource, n: int, batch_size: int) -> float | None:
    """The score of n real images with their own captions; None without captions, or with fewer images."""
    if n > source.count or source.data.texts(source.split) is None:
        return None
    key = real_key(clip, source.sequence, source.split, "captions", n)  # type: ignore[arg-type]
    kept = load_cached(key)
    if kept is None:
        kept = torch.cat([clip(b["image"], b["text"]) for b in source.batches(n, batch_size)]).mean().item()
        keep_cached(key, kept)
    return kept


def show_neighbours(panel: Panel, images: list[Tensor], path: Path) -> str:
    """Draws the images (uint8) that are closest to real ones, each beside its nearest real images.

    Returns:
        A line to print: where the picture is, or why there is none.
    """
    assert panel.near is not None and panel.limit is not None
    apart, places = panel.near
    rows = apart[: len(images), 0].argsort()[:SHOWN]
    size = images[0].shape[1:]

    def fitted(image: Tensor) -> Tensor:
        if image.shape[1:] == size:
            return image
        return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)

    samples = torch.stack([fitted(images[row]) for row in rows.tolist()])
    beside = torch.stack([torch.stack([fitted(x) for x in panel.source.pictures(places[row])]) for row in rows])
    try:
        save_neighbours(samples, beside, apart[rows, 0], panel.limit, path)
    except OSError as error:
        return f"no picture  {path} could not be written ({error.strerror})"
    return f"pictures  {path}"


def score_attributes(
    family: Family, data: Any, found: Found, how: Sampling, *, resamples: int, n: int
) -> None:
    """Adds how often attributes match the captions, for combinations seen and not seen in training.

    Without a condition: how often a sample shows one clear known shape.
    """
    found_tables = tables(family, data, n, batch_size=how.batch_size, seed=how.seed, options=how.options)
    for prefix, split, table in found_tables if n else ():
        values, again, m = shares_of(table), [], len(next(iter(table.values())))
        for drawn in draws(m, resamples, how.seed):
            rows = torch.arange(m).repeat_interleave(drawn.long())
            again.append(shares_of({key: value[rows] for key, value in table.items()}))
        scores = {}
        for key, value in values.items():
            several = torch.tensor([one[key] for one in again if key in one])
            error = standard_error(several, kept=1, n=1) if len(several) > 1 else None
            scores[prefix + key] = Estimate(value, *bounded(prefix + key, value, error))
        found.add(scores, {"network": "shapes oracle", "network_sha256": oracle_of(data).sha256, "resizer": "none",
                           "num_samples": m, "data": data.name, "data_fingerprint": data.fingerprint,
                           "split": split, "seed": how.seed})
