"""What pictures show, in words: in whichever way a family can say it. `WAYS` has a function for each capability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from aigc.config.schema import to_plain
from aigc.errors import UserError
from aigc.images.finding import best_texts
from aigc.images.looking import Opened, open_album
from aigc.models.capabilities import require
from aigc.models.family import Family
from aigc.models.requests import prompts_listed, text_encoder
from aigc.wording import Report, silent


@dataclass
class Described:
    """Descriptions of pictures: a table, a line for each picture, remarks, and which pictures could not be read."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    lines: list[str]
    notes: list[str]
    failures: dict[Path, str]
    left_out: dict[str, list[str]]


def ranked(opened: Opened, cfg: Any, out: Path, *, progress: Report = silent) -> Described:
    """The candidates that fit each picture best, by a family that scores texts.

    Raises:
        UserError: there are no candidates, or no pictures.
    """
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


WAYS: dict[str, Callable[..., Described]] = {"score_text": ranked}     # by capability, the most telling first


def way_of(family: Family, run: object) -> Callable[..., Described]:
    """The way in which a family describes pictures.

    Raises:
        UserError: it has none; names the families that have one.
    """
    for capability, way in WAYS.items():
        if family.can(capability):
            return way
    require(family, next(iter(WAYS)), run=run, wanted="describe")
    raise AssertionError("require refuses")
