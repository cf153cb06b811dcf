"""Scores translations of held-out images against the other side and true pairs, beside the untranslated images."""

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from aigc.data.pairs import PairData
from aigc.errors import UserError
from aigc.images.grids import to_uint8
from aigc.models.family import Translator
from aigc.scoring.bootstrap import Estimate
from aigc.scoring.enough import no_floor
from aigc.scoring.images import Found
from aigc.scoring.panel import Panel
from aigc.scoring.scores.similarity import LPIPS, likeness
from aigc.scoring.sources import SideSource
from aigc.scoring.translations import translations


def score_translations(
    family: Translator, data: PairData, panels: list[Panel], found: Found, *, split: str, limit: int | None,
    batch_size: int, seed: int, lpips: LPIPS | None,
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

    Raises:
        UserError: fewer than two images on a side.
    """
    rows = min(limit or data.count(split), data.count(split))
    pairs = data.has_pairs(split)
    for direction in family.directions:
        reference = SideSource(data, split, direction)
        n = min(rows, data.counts(split)[int(direction == "b2a")])
        if min(n, reference.count) < 2:
            raise UserError(f"{data.name} has fewer than two images of {split} on a side: distances need at least two")
        for panel in panels:
            held = SideSource(data, "train", direction, mixed=True)
            panel.learn(reference)
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
            scores, measured = _scores(
                translations(family, data, split, direction, rows, batch_size=batch_size, seed=seed,
                             identity=identity),
                panels, n, lpips=lpips, pairs=pairs, what=prefix.rstrip("/"),
            )
            for own, panel in zip(scores, panels, strict=True):
                found.add({prefix + name: score for name, score in own.items()}, panel.protocol())
            for name, score in measured.items():
                seen = {"lpips": lpips.net, "lpips_sha256": lpips.sha256} if lpips and name == "lpips" else {}
                found.add({prefix + name: score}, {**panels[0].compared(), **seen})


def _scores(
    stream: Iterator[tuple[list[int], Tensor, Tensor, Tensor, dict[str, Tensor]]], panels: list[Panel], n: int, *,
    lpips: LPIPS | None, pairs: bool, what: str,
) -> tuple[list[dict[str, Estimate]], dict[str, Estimate]]:
    """Every panel's scores of a stream of translations, and the values measured without a network."""
    values: dict[str, list[Tensor]] = {}
    for panel in panels:
        panel.begin(n)
    with tqdm(total=n, desc=what, unit=" images", disable=None) as bar:
        for _, index, made, targets, measured in stream:
            images = to_uint8(made)
            if pairs:
                measured |= likeness(images, to_uint8(targets), lpips)
            for panel in panels:
                panel.look(images, pairs=index if pairs and panel.knows_all else None)
            for name, part in measured.items():
                values.setdefault(name, []).append(part.double().cpu())
            bar.update(len(images))
    errors = bool(panels[0].how.resamples)
    means = {name: panels[0].mean(name, torch.cat(parts), errors=errors) for name, parts in values.items()}
    return [panel.scores() for panel in panels], means
