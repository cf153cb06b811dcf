"""Recognizes pictures that this program wrote, which must not be read as data.

- A folder written by `generate` or `edit` holds a record, `aigc.jsonl`: a first line of facts (verb, version, options,
  run, checkpoint's sha256, seed), a line per file (size, sha256, and what reproduces a picture: its number, label or
  text), and a last line that says how it ended. Files that are listed there and have the same size are ours.
- A run folder is recognized by its summary or configuration; `samples/`, `evaluations/` and `wandb/` in it are ours.
- A grid is marked by a PNG text chunk right after the header, wherever it is copied to (`MARK`).
"""

import json
import os
import re
import stat
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from aigc.files.names import is_hidden, zip_name

RECORD = "aigc.jsonl"                                      # in each folder written by generate or edit
KEY = "aigc"                                               # of the text chunk in our PNGs: JSON
DRAWN = '{"drawn": '                                       # beginning of that JSON in a grid
MARK = b"tEXt" + f"{KEY}\0{DRAWN}".encode()                # its bytes in the file, after the header
DRAWINGS = re.compile(r"grid\.png|comparison\.png|.+_neighbours_\w+\.png|\d{9}(_\w+)?\.png")   # names of grids
IN_RUNS = {                                                # folder in a run folder: our files in it, and what they are
    "samples": (re.compile(r"\d{9}(_\w+)?\.png"), "samples"),
    "evaluations": (re.compile(r".+_neighbours_\w+\.png"), "pictures of evaluations"),
    "wandb": (re.compile(r".+"), "pictures logged to W&B"),
    "generated": (re.compile(r".+"), "images generated"),  # by versions that wrote no record
    "edited": (re.compile(r".+"), "pictures edited"),
}
MADE = ("generated", "edited")
VERBS = {"generate": "images generated", "edit": "pictures edited"}


@dataclass(frozen=True)
class Written:
    """The content of a folder's record.

    Attributes:
        facts: the first line: `program`, `version`, `verb`, `options`, `run`, `sha256`, `seed`, ...
        files: facts of each file by name, relative to the folder, with forward slashes: `kind` (image, grid, ...),
            `size` and `sha256`; a file without these was never finished.
        complete: whether the writing was completed.
    """

    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    complete: bool


def parse_record(text: str) -> Written | None:
    """The record in a file's text, up to the first truncated line; None if it is not one of ours.

    Names that lead out of the folder or to hidden files are ignored: this program writes none.
    """
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    if not all(isinstance(line, dict) for line in lines) or not lines or lines[0].get("program") != "aigc":
        return None
    files = {str(line["name"]): line for line in lines[1:] if "name" in line and _inside(str(line["name"]))}
    return Written(lines[0], files, any(line.get("status") == "complete" for line in lines[1:]))


def _inside(name: str) -> bool:
    """Whether a name leads to a visible file in the folder; `..` and a root count as hidden."""
    return not any(part == "" or part.startswith(".") for part in name.split("/")) and "\0" not in name


def read_record(folder: Path) -> Written | None:
    """The record of a folder written by generate or edit, or None."""
    try:
        return parse_record((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def ours(root: Path, names: Sequence[str], *, only_drawings: bool = False) -> dict[str, str]:
    """The image files that this program wrote and that are not data, each with the reason in a few words.

    If `root` itself is a folder (or zip of one) written by generate or edit, its images count as data, its grid does
    not.

    Args:
        root: a folder or a zip.
        names: of image files in it, relative, with forward slashes.
        only_drawings: count generated and edited images as data everywhere; report only grids and the like.
    """
    with ExitStack() as stack:
        place = _Zip(root, stack) if zipfile.is_zipfile(root) else _Folder(root)
        return _Search(place, only_drawings).reasons(names)


class _Folder:
    """A folder of files, read by name."""

    def __init__(self, root: Path):
        self.root = root
        self.top = ""                                      # common parent of all files, see `_Zip`

    def start(self, name: str, size: int = -1) -> bytes:
        """The first bytes of a file, by default all; empty if it cannot be read."""
        path = self.root / name
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):    # a pipe would block forever
                return b""
            with open(path, "rb") as file:
                return file.read(size)
        except OSError:
            return b""

    def size(self, name: str) -> int:
        try:
            return os.stat(self.root / name).st_size
        except OSError:
            return -1

    def shown(self, folder: str) -> str:
        """The name of a folder in it, for messages."""
        return str(self.root / folder)

    @cached_property
    def above(self) -> tuple[str, list[str]] | None:
        """The run folder that contains this one, as shown, and the folders in between; None if there is none."""
        whole = self.root.resolve()
        for parent in (whole, *whole.parents):
            if _is_run(_Folder(parent), ""):
                here = Path.cwd()
                shown = parent.relative_to(here) if parent.is_relative_to(here) else parent
                return str(shown), list(whole.relative_to(parent).parts)
        return None


class _Zip:
    """A zip of files, read by name."""

    above = None

    def __init__(self, root: Path, stack: ExitStack):
        self.root = root
        self.archive = stack.enter_context(zipfile.ZipFile(root))
        self.entries = {zip_name(entry.filename): entry for entry in self.archive.infolist() if not entry.is_dir()}
        folders = [name.split("/")[:-1] for name in self.entries if not is_hidden(name.split("/")[0])]
        shared = takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False))
        self.top = "/".join(level[0] for level in shared)

    def start(self, name: str, size: int = -1) -> bytes:
        if name not in self.entries:
            return b""
        try:
            with self.archive.open(self.entries[name]) as file:
                return file.read(size)
        except Exception:                                  # zipfile and its decoders raise any exception
            return b""

    def size(self, name: str) -> int:
        return self.entries[name].file_size if name in self.entries else -1

    def shown(self, folder: str) -> str:
        return folder or str(self.root)


class _Search:
    """What is known about the folders of one place while its files are checked."""

    def __init__(self, place: _Folder | _Zip, only_drawings: bool):
        self.place = place
        self.only_drawings = only_drawings
        self.records: dict[str, Written | None] = {}
        self.runs: dict[str, bool] = {}

    def reasons(self, names: Sequence[str]) -> dict[str, str]:
        found = ((name, self.reason(name)) for name in names)
        return {name: reason for name, reason in found if reason is not None}

    def reason(self, name: str) -> str | None:
        """Why a file is ours, or None."""
        parts = name.split("/")
        folders = ["/".join(parts[:k]) for k in range(len(parts))]
        for depth, folder in enumerate(folders):
            listed = self.listed(folder, "/".join(parts[depth:]))
            if listed is not None:
                facts, record = listed
                if facts.get("kind") not in (None, "image"):
                    return f"{facts['kind']}s that {record.facts.get('verb')} drew"
                if self.only_drawings or folder == self.place.top:
                    return None
                run = record.facts.get("run")
                return f"{VERBS.get(str(record.facts.get('verb')), 'images made')} with {run}"
        if any(self.records[folder] is not None for folder in folders):
            return None                                    # added or changed by the user
        for depth, folder in enumerate(folders):
            if self.is_run(folder) and (found := self.in_run(self.place.shown(folder), parts[depth:], named=[])):
                return found
        if self.place.above is not None:
            run, way = self.place.above
            if way and (found := self.in_run(run, [*way, *parts], named=way)):
                return found
        if DRAWINGS.fullmatch(parts[-1]) and (self.marked(name) or self.beside_evaluation(name)):
            return "grids that aigc drew"
        return None

    def in_run(self, run: str, parts: list[str], named: list[str]) -> str | None:
        """Why a file at `parts` in a run folder is ours; `named` is the part of the path that the user named."""
        known = IN_RUNS.get(parts[0]) if len(parts) > 1 else None
        if known is None or not known[0].fullmatch(parts[-1]):
            return None
        if parts[0] in MADE and (self.only_drawings or named):
            return f"grids drawn with the run {run}" if parts[-1] in ("grid.png", "comparison.png") else None
        return f"{known[1]} {'with' if parts[0] in MADE else 'of'} the run {run}"

    def listed(self, folder: str, name: str) -> tuple[dict[str, Any], Written] | None:
        """The record's facts about a file of a folder, if the file is unchanged; and the record."""
        if folder not in self.records:
            text = self.place.start(_join(folder, RECORD))
            self.records[folder] = parse_record(text.decode("utf-8", "replace")) if text else None
        record = self.records[folder]
        facts = record.files.get(name) if record is not None else None
        if record is None or facts is None or facts.get("size") != self.place.size(_join(folder, name)):
            return None
        return facts, record

    def is_run(self, folder: str) -> bool:
        if folder not in self.runs:
            self.runs[folder] = _is_run(self.place, folder)
        return self.runs[folder]

    def marked(self, name: str) -> bool:
        """Whether a picture is marked as a grid."""
        return self.place.start(name, 33 + 4 + len(MARK))[33 + 4 :] == MARK    # signature and IHDR, length of the next

    def beside_evaluation(self, name: str) -> bool:
        """Whether a picture of neighbours lies beside the evaluation record that it is named after."""
        stem, found, _ = name.rpartition("_neighbours_")
        return bool(found) and is_evaluation(self.place.start(f"{stem}.json"))


def is_evaluation(content: bytes) -> bool:
    """Whether a file's content is a record written by evaluate."""
    try:
        record = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"target", "scores", "protocol"} <= set(record)


def is_drawing(path: Path) -> bool:
    """Whether a PNG is marked as a grid that this program drew."""
    return _Search(_Folder(path.parent), only_drawings=True).marked(path.name)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder of `aigc.train`."""
    return _is_run(_Folder(folder), "")


def _is_run(place: _Folder | _Zip, folder: str) -> bool:
    try:
        summary = json.loads(place.start(_join(folder, "summary.json")) or b"{}")
    except (ValueError, RecursionError):
        summary = {}
    if isinstance(summary, dict) and {"study", "signature"} <= set(summary):
        return True
    config = place.start(_join(folder, ".hydra/config.yaml")).decode("utf-8", "replace")
    return all(re.search(rf"^{key}:", config, re.MULTILINE) for key in ("study", "budget", "model"))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
