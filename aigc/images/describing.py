"""What pictures show, in words: in whichever way a family can say it. `WAYS` has a function for each capability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from aigc.config.schema import to_plain
from aigc.errors import UserError
from aigc.images.finding import best_texts
from aigc.images.looking import Opened, none_readable, open_album, pictures_meant
from aigc.images.reading import in_batches
from aigc.models.capabilities import models_that_can
from aigc.models.family import Family
from aigc.models.requests import prompts_listed, text_encoder
from aigc.noise import mix
from aigc.wording import Report, a, silent

WRITING = ("question", "temperature", "top_k", "top_p")    # options of a family's `describe`

@dataclass
class Described:
    """Descriptions of pictures: a table, a line for each picture, remarks, and which pictures could not be read."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    lines: list[str]
    notes: list[str]
    failures: dict[Path, str]
    left_out: dict[str, list[str]]


def written(opened: Opened, cfg: Any, out: Path, *, progress: Report = silent) -> Described:
    """A text of each picture, by a family that writes some; with `question` the sentence that begins with it.

    Raises:
        UserError: there are no pictures, or an option does not fit.
    """
    family = opened.family
    if cfg.candidates is not None:
        raise UserError(f"a {type(family).__name__} describes pictures in words of its own: leave candidates out")
    options = {name: cfg[name] for name in WRITING if cfg[name] is not None}
    left_out: dict[str, list[str]] = {}
    failures: dict[Path, str] = {}
    pictures, ranges = pictures_meant(opened, cfg.images, out, cfg, left_out=left_out)
    rows: list[tuple[Path, str]] = []
    progress(0, len(pictures), "")
    for batch in in_batches(pictures, family, batch_size=cfg.batch_size, ranges=ranges, failures=failures):
        images = torch.stack([image for _, image in batch]).float() / 127.5 - 1
        texts = family.describe(images, seeds=[mix(cfg.seed, picture.number) for picture, _ in batch], **options)
        rows += [(picture.source, text) for (picture, _), text in zip(batch, texts, strict=True)]
        progress(len(rows) + len(failures), len(pictures), "")
    if not rows:
        raise none_readable(cfg.images, failures)
    notes = text_encoder(family).warnings([cfg.question]) if cfg.question else []
    return Described(("picture", "text"), rows, [f"{path}: {text}" for path, text in rows], notes, failures, left_out)


def ranked(opened: Opened, cfg: Any, out: Path, *, progress: Report = silent) -> Described:
    """The candidates that fit each picture best, by a family that scores texts.

    Raises:
        UserError: there are no candidates, or no pictures, or an option does not fit.
    """
    if unfit := [name for name in WRITING if cfg[name] is not None]:
        raise UserError(f"a {type(opened.family).__name__} chooses among candidates, and writes nothing: leave "
                        f"{' and '.join(unfit)} out")
    if cfg.candidates is None:
        raise UserError(f"a {type(opened.family).__name__} tells which of several texts fits a picture: give them as "
                        """candidates='["a cat","a dog"]' or candidates=@<file with one per line>""")
    candidates = list(dict.fromkeys(prompts_listed(to_plain(cfg)["candidates"], option="candidates")))
    album = open_album(opened, cfg.images, out, cfg, progress=progress)
    found = best_texts(album.pictures, album.vectors, candidates, opened.read(candidates), cfg.n)
    rows = [(match.picture.source, match.rank, match.query, f"{match.fit:.4f}") for match in found]
    lines = [f"{picture.source}: {', '.join(f'{match.query} ({match.fit:.3f})' for match in matches)}"
             for picture, matches in groupby(found, key=lambda match: match.picture)]
    notes = text_encoder(opened.family).warnings(candidates)
    return Described(("picture", "rank", "text", "fit"), rows, lines, notes, album.failures, album.left_out)


WAYS: dict[str, Callable[..., Described]] = {"describe": written, "score_text": ranked}    # by capability


def way_of(family: Family, run: object) -> Callable[..., Described]:
    """The way in which a family describes pictures.

    Raises:
        UserError: it has none; names the families that have one.
    """
    for capability, way in WAYS.items():
        if family.can(capability):
            return way
    known = sorted(name for capability in WAYS for name in models_that_can(capability))
    raise UserError(f"'{run}' holds {a(type(family).__name__)}, which {family.does()}: describe needs a run of "
                    f"{' or '.join(known)}")
