"""Captions beside pictures: `a.txt` or `a.caption` beside `a.png`, or a folder's `metadata.jsonl` or `.csv`."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aigc.errors import UserError
from aigc.wording import listed, shown

WORDS = (".txt", ".caption")
METADATA = ("metadata.jsonl", "metadata.csv")
TEXT_NAMES = ("text", "caption", "captions", "prompt", "sentence", "sentences", "description", "title", "txt")
LONGEST = 2**16     # most bytes of a file that is read as one caption


def first_text(value: Any) -> str:
    """One caption: the first where there are several."""
    if isinstance(value, list | tuple):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def metadata_rows(name: str, data: bytes, where: str) -> list[dict[str, Any]]:
    """The rows of a metadata file, each with a `file_name`.

    Raises:
        UserError: it is damaged, or has no such column.
    """
    try:
        text = data.decode("utf-8-sig")
        if name.lower().endswith(".csv"):
            rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{shown(name)} in {where} cannot be read ({str(error).splitlines()[0]}): repair or remove "
                        "it") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise UserError(f"row {number} of {shown(name)} in {where} has no file_name: every row names its picture")
    return rows


def captions_beside(
    names: Sequence[str], beside: Iterable[str], read: Callable[[str], bytes], where: str
) -> dict[str, str]:
    """Captions by image name, for the images that have one.

    Args:
        names: of the images, relative, with forward slashes.
        beside: names of files that may hold captions.
        read: returns the content of such a file.
        where: the folder's name in error messages.

    Raises:
        UserError: a metadata file is damaged, or a caption is not text.
    """
    found: dict[str, str] = {}
    sidecars = set()
    known = set(names)
    for name in sorted(beside):
        folder, _, base = name.rpartition("/")
        if base.lower() not in METADATA:
            sidecars.add(name)
            continue
        for row in metadata_rows(name, _read(read, name, where), where):
            column = next((key for want in TEXT_NAMES for key in row if str(key).lower() == want), None)
            image = f"{folder}/{row['file_name']}" if folder else row["file_name"]
            if column is not None and image in known:
                found.setdefault(image, first_text(row[column]).strip())
    for image in names:
        stem = image.rpartition(".")[0]
        mine = [stem + ending for ending in WORDS if stem + ending in sidecars]
        if not mine or image in found:
            continue
        name = mine[0]
        data = _read(read, name, where)
        try:
            found[image] = " ".join(data[:LONGEST].decode("utf-8-sig").split())
        except UnicodeDecodeError as error:
            raise UserError(f"{shown(name)} in {where} is beside a picture but is not UTF-8 text: save it as UTF-8, "
                            "move it, or set data.captions=false") from error
    return found


def _read(read: Callable[[str], bytes], name: str, where: str) -> bytes:
    try:
        return read(name)
    except Exception as error:  # a pipe, no permission, a damaged zip
        raise UserError(f"{shown(name)} in {where} cannot be read ({error}): move it, or set data.captions=false"
                        ) from error


def complete(names: Sequence[str], captions: dict[str, str]) -> tuple[list[str], str]:
    """A caption for every image, empty where there is none, and a remark about the images without one."""
    without = [name for name in names if not captions.get(name)]
    remark = f"{len(without):,} without a caption, taken as empty: {listed(without)}" if without else ""
    return [captions.get(name, "") for name in names], remark
