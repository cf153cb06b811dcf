"""A trained family and the pictures that it looks at: what `search` and `describe` open."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.values import Ranges, parse_range, recorded
from aigc.errors import RunError, UserError
from aigc.images.embedding import embedded
from aigc.images.pictures import Picture, find_pictures, ranges_of
from aigc.models.checkpoints import find_checkpoint, load_family, run_of
from aigc.networks.fingerprint import state_sha256
from aigc.runs.summary import read_summary
from aigc.wording import Report, silent

TEXTS = 256                         # read at once


@dataclass
class Opened:
    """A trained family, where it came from, and the SHA-256 of its weights."""

    family: Any
    checkpoint: Path
    sha256: str

    @classmethod
    def of(cls, run: str, which: str, device: torch.device) -> "Opened":
        """The family of a run folder or checkpoint.

        Raises:
            UserError: there is none.
        """
        checkpoint = find_checkpoint(run, which)
        family = load_family(checkpoint, device=device)
        return cls(family, checkpoint, state_sha256(family.state_dict()))

    @property
    def run(self) -> Path:
        """Its run folder."""
        return run_of(self.checkpoint)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, embedding)` of texts, on the CPU, where it scores texts."""
        with torch.no_grad():
            parts = [self.family.embed_texts(texts[k : k + TEXTS]).float().cpu() for k in range(0, len(texts), TEXTS)]
        return torch.cat(parts)

    def facts(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"run": str(self.run), "checkpoint": str(self.checkpoint.resolve()), "weights_sha256": self.sha256}


@dataclass
class Album:
    """Pictures that were looked at: those that could be read, and their unit vectors `(n, embedding)`."""

    pictures: list[Picture]
    vectors: Tensor
    ranges: Ranges
    failures: dict[Path, str]
    left_out: dict[str, list[str]]


def pictures_meant(
    opened: Opened, images: str, out: Path, cfg: Any, *, option: str = "images", left_out: dict[str, list[str]]
) -> tuple[list[Picture], Ranges]:
    """The pictures that an option means, and what is black and white in them.

    Raises:
        UserError: there are none.
    """
    try:
        pictures = find_pictures(images, out, "png", left_out=left_out)
    except UserError as error:
        raise UserError(str(error).replace("images=", f"{option}=", 1)) from error
    asked, known = parse_range(cfg.range, "range"), recorded(read_summary(opened.run).get("data"))
    return pictures, ranges_of(pictures, asked, known)[0]


def check_readable(failures: dict[Path, str], others: str) -> None:
    """Ends a command that has done its work, where some pictures could not be read; `others` tells of the rest.

    Raises:
        RunError: names each with its reason.
    """
    if failures:
        named = "; ".join(f"{path} ({reason})" for path, reason in sorted(failures.items()))
        raise RunError(f"{len(failures)} of the pictures could not be read, the others {others}: {named}")


def none_readable(images: str, failures: dict[Path, str], *, option: str = "images") -> UserError:
    """What is said where none of the pictures can be read."""
    path, reason = next(iter(failures.items()))
    return UserError(f"{option}='{images}' holds no picture that can be read ('{path.name}': {reason}): name others")


def open_album(
    opened: Opened, images: str, out: Path, cfg: Any, *, option: str = "images", progress: Report = silent
) -> Album:
    """The pictures that an option means, seen by a family that scores texts, or known from the cache.

    Raises:
        UserError: there are none, or none can be read.
    """
    left_out: dict[str, list[str]] = {}
    failures: dict[Path, str] = {}
    pictures, ranges = pictures_meant(opened, images, out, cfg, option=option, left_out=left_out)
    readable, vectors = embedded(pictures, opened.family, opened.sha256, named=images, batch_size=cfg.batch_size,
                                 ranges=ranges, failures=failures, progress=progress)
    if not readable:
        raise none_readable(images, failures, option=option)
    return Album(readable, vectors, ranges, failures, left_out)
