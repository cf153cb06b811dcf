"""Scores translations of held-out images against the other side and true pairs, beside the untranslated images."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from aigc.data.pairs import PairData
from aigc.editing.classical import check_method, solve
from aigc.errors import UserError
from aigc.files.cache import keep_cached, load_cached
from aigc.images.grids import to_uint8
from aigc.images.streams import items
from aigc.models.family import Translator
from aigc.scoring.devices import ALONE, Devices
from aigc.scoring.enough import no_floor
from aigc.scoring.networks.features import FeatureNetwork, real_key
from aigc.scoring.panel import Panel
from aigc.scoring.samples import Found
from aigc.scoring.scores.similarity import LPIPS, likeness
from aigc.scoring.sources import SideSource
from aigc.scoring.translations import translations
from aigc.wording import Report, silent

Translations = Iterator[tuple[list[int], Tensor, Tensor, Tensor, dict[str, Tensor]]]

log = logging.getLogger(__name__)


def score_translations(
    family: Translator, data: PairData, panels: list[Panel], found: Found, *, split: str, limit: int | None,
    batch_size: int, seed: int, lpips: LPIPS | None, methods: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Report = silent,
) -> None:
    """Adds `<direction>/<score>` and `<direction>/identity/<score>` for every direction, all networks in one pass.

    The reference is the whole target side of `split`; the floor uses as many of that side's training images.

    Args:
        family: the translator.
        data: the two-sided data.
        panels: the networks; they process every direction's reference in turn.
        found: receives scores and protocols.
        split: the images to translate.
        limit: most rows used; None: all.
        batch_size: images at a time.
        seed: of random draws in a translation.
        lpips: if its weights are available.
        methods: classical ones with their options, scored on the same pairs as `<direction>/<method>/<score>`.
        progress: told how many images were seen, for each direction and for the same images as they are.

    Raises:
        UserError: fewer than two images on a side, or a method does not exist, is not installed, or has no pairs.
    """
    rows = min(limit or data.count(split), data.count(split))
    pairs = data.has_pairs(split)
    for name, options in (methods or {}).items():
        check_method(name, options, option="methods")
        if not pairs:
            raise UserError(f"methods={name} is compared with true pairs, and {data.name} has none: leave it out")
    for direction in family.directions:
        reference = SideSource(data, split, direction)
        n = min(rows, data.counts(split)[int(direction == "b2a")])
        if min(n, reference.count) < 2:
            raise UserError(f"{data.name} has fewer than two images of {split} on a side: distances need at least two")
        for panel in panels:
            held = SideSource(data, "train", direction, mixed=True)
            panel.learn(reference)
            panel.paired = pairs
            panel.measure_floor(held, n)
            for note in panel.notes(n):
                found.note(note)
            reasons = panel.missing(n) | {"floor": no_floor(n, held.count, split="training")}
            if pairs and not panel.knows_all:
                reasons[panel.called("similarity")] = (
                    f"features of {len(panel.real):,} of the {reference.count:,} true pairs are kept")
            found.missing |= {f"{direction}/{name}": reason for name, reason in reasons.items() if reason}
            found.ruled_out |= {f"{direction}/{name}": reason for name, reason in panel.ruled_out().items()}
        for prefix, identity in ((f"{direction}/", False), (f"{direction}/identity/", True)):
            stream = translations(family, data, split, direction, rows, batch_size=batch_size, seed=seed,
                                  identity=identity)
            measured = show(stream, panels, n, rows, lpips=lpips, pairs=pairs,
                            progress=progress, name=prefix.rstrip("/"))
            for panel in panels:
                own = panel.scores()
                found.add({prefix + name: score for name, score in own.items()}, panel.protocol())
            errors = bool(panels[0].how.resamples)
            for name, values in measured.items():
                seen = {"lpips": lpips.net, "lpips_sha256": lpips.sha256} if lpips and name == "lpips" else {}
                score = panels[0].mean(name, values, errors=errors)
                found.add({prefix + name: score}, {**panels[0].compared(), **seen})

    for name, options in (methods or {}).items():
        stream = translations(family, data, split, family.directions[0], rows, batch_size=batch_size, seed=seed,
                              by=partial(restored, name, options))
        prefix = f"{family.directions[0]}/{name}"
        measured = show(stream, [], rows, rows, lpips=lpips, pairs=True, progress=progress, name=prefix)
        found.add({f"{prefix}/{score}": panels[0].mean(score, values, errors=bool(panels[0].how.resamples))
                   for score, values in measured.items()},
                  {**panels[0].compared(), "method": name, "options": dict(options)})


def restored(name: str, options: Mapping[str, Any], images: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Images `(n, c, h, w)` in [-1, 1] by a classical method, which is told their batch's noise levels and masks."""
    made = solve(name, (images + 1) / 2, options, sigmas=batch.get("level"), masks=batch.get("mask"))
    return made * 2 - 1


def show(
    stream: Translations, panels: Sequence[Panel], n: int, rows: int, *, lpips: LPIPS | None, pairs: bool,
    devices: Devices = ALONE, features: Sequence[Tensor] | None = None, progress: Report = silent, name: str = "",
) -> dict[str, Tensor]:
    """Shows this device's share of translations to every panel; training and evaluation share it.

    Args:
        stream: as from `translations`.
        panels: with the target side as their reference.
        n: number of images.
        rows: number of rows that hold them, among repeats of the shorter side.
        lpips: if its weights are available.
        progress: told how many images were seen, for each direction and for the same images as they are.
        pairs: whether the images are compared with true ones.
        devices: that have the other shares.
        features: of all images of the source side by each panel's network, where the images are those; None: the
            networks look.
        progress: told how many of the n images were seen, of `name`.
        name: what they are, for `progress`.

    Returns:
        What is measured of each image without a feature network `(m,)` float64, by name, on all devices.
    """
    numbers: list[int] = []
    parts = []
    progress(0, n, name)
    for panel in panels:
        panel.begin(n)
    for mine, index, made, targets, measured in stream:
        images = to_uint8(made)
        if pairs:
            measured |= likeness(images, to_uint8(targets), lpips)
        for k, panel in enumerate(panels):
            known = {"features": features[k][index]} if features is not None else {}
            known |= {"pairs": index} if panel.paired and panel.knows_all else {}
            panel.look(images, numbers=mine, **known)
        parts.append({name: value.double() for name, value in measured.items()})
        numbers += mine
        progress(len(numbers), n, name)
    return devices.collect(numbers, parts, rows)


def side_features(
    family: Translator, data: PairData, split: str, network: FeatureNetwork, devices: Devices, *, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Features `(n, d)` of all images of either side, in their own order: from the cache, or computed now."""
    counts = data.counts(split)
    key = real_key(network, data.fingerprint, split, "sides", *counts)
    kept = devices.broadcast(load_cached(key) if devices.first else None)
    if kept is not None:
        return kept["a"], kept["b"]
    started = time.perf_counter()
    sides = []
    for side in (0, 1):
        parts = []
        numbers: list[int] = []
        for _, batch in items(data, split, data.count(split), batch_size=batch_size, **devices.share):
            fresh = batch["index"] < counts[side]
            if fresh.any():
                images = family.sides(batch)[side][fresh].to(family.device)
                parts.append({"features": network(images)[0].cpu()})
                numbers += batch["index"][fresh].tolist()
        sides.append(devices.collect(numbers, parts, counts[side])["features"])
    if devices.first:
        keep_cached(key, {"a": sides[0], "b": sides[1]})
        log.info("%s looked at %s real images of %s (%.0f s)", network.name, f"{sum(counts):,}", split,
                 time.perf_counter() - started)
    return sides[0], sides[1]
