"""Recipes: how a picture was made, kept in the picture itself, and read back from strangers' pictures too.

A PNG holds its recipe as a text chunk of JSON, a file of another kind has it beside it, as `<name>.json`:

    program, version    aigc's
    verb                generate or edit; for edit also `task`
    run, checkpoint     the last two folders of the run, and which of its checkpoints; `sha256` is that of its file
    seed, number        the picture's own seed is mix(seed, number); a whole array of pictures has no number
    label or text       what it shows, where that was asked for
    options             those of the verb that are not its defaults, as typed
    batch               the pictures that it was made with: sums come out the same to the last bit in equal batches
    parents             name and SHA-256 of the files that it was made from; `range`: what was black and white in them
    pixels              SHA-256 of the picture's values, whatever the file

A recipe names no file that is read because of it alone: a checkpoint or a parent counts only if its SHA-256 is the
recipe's, a text is never read as a file, and another run that an option names must be here already, so that a
stranger's picture makes nothing be downloaded. Options are what a user might type, and are checked as such.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import numpy as np

from aigc import __version__
from aigc.config.schema import CONFIG_DIR, SCHEMAS
from aigc.errors import UserError, choices
from aigc.files.written import KEY

LARGEST = 2**20                                            # bytes of a recipe that is read
VERBS = ("generate", "edit")
APART = (                                                  # options that say where or how fast, or stand elsewhere
    "run", "checkpoint", "out", "overwrite", "n", "seed", "label", "text", "images", "format", "batch_size",
    "megapixels", "device", "recipe", "latents", "range", "video", "animation",
)


@dataclass(frozen=True)
class Batch:
    """The pictures that one was made with, in the order in which they were made.

    Attributes:
        start: number of the first.
        size: how many; an edit is made again among `size` copies.
        at_once: batch_size= of that call.
        label: classes that the pictures have in turn; None without labels. So `text`.
    """

    start: int
    size: int
    at_once: int
    label: list[str] | None = None
    text: list[str] | None = None


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and whose parts have the right kinds; `source` is where it was read."""

    source: Path
    verb: str
    run: str
    checkpoint: str
    sha256: str
    seed: int
    number: int | None
    options: dict[str, Any]
    batch: Batch
    said: dict[str, str]                                   # label or text of the picture
    task: str | None
    parents: list[dict[str, str]]
    range: dict[str, tuple[float, float]]
    pixels: str | None


# ---- writing ----


def recipe_of(
    verb: str, typed: Mapping[str, Any], *, run: Path, checkpoint: Path, sha256: str, **more: Any
) -> dict[str, Any]:
    """What the recipes of all pictures of a call share.

    Args:
        verb: generate or edit.
        typed: all of its options.
        run: the run folder.
        checkpoint: the file in it.
        sha256: of that file.
        **more: further entries.
    """
    defaults = defaults_of(verb)
    options = {name: pruned for name, value in typed.items()
               if name not in APART and (pruned := _pruned(value)) not in (None, {}, []) and pruned != defaults[name]}
    return {"program": "aigc", "version": __version__, "verb": verb, "run": "/".join(run.resolve().parts[-2:]),
            "checkpoint": checkpoint.stem, "sha256": sha256, "seed": typed["seed"],
            **({"options": options} if options else {}), **more}


def defaults_of(verb: str) -> dict[str, Any]:
    """The options of a verb at their defaults."""
    return {f.name: f.default_factory() if f.default_factory is not MISSING else f.default
            for f in fields(SCHEMAS[verb])}


def _pruned(value: Any) -> Any:
    """An option without what is left to the recipe of the run: entries that are None."""
    if isinstance(value, Mapping):
        return {str(key): kept for key, one in value.items() if (kept := _pruned(one)) is not None}
    return value


def in_turn(words: Sequence[str]) -> list[str]:
    """The shortest list that gives `words` when its entries are taken in turn."""
    return next(list(words[:k]) for k in range(1, len(words) + 1) if all(
        word == words[i % k] for i, word in enumerate(words)))


def pixels_of(image: np.ndarray) -> str:
    """SHA-256 of a picture's values `(h, w, c)`, its shape and their kind."""
    facts = f"{image.dtype.str} {image.shape} ".encode()
    return hashlib.sha256(facts + np.ascontiguousarray(image).tobytes()).hexdigest()


def png(image: np.ndarray, recipe: Mapping[str, Any]) -> bytes:
    """An image `(h, w, c)` uint8 as a PNG that contains its recipe; `read_recipe` reads it back."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told, file = PngInfo(), io.BytesIO()
    told.add_text(KEY, json.dumps(recipe))
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG", pnginfo=told)
    return file.getvalue()


def as_json(recipe: Mapping[str, Any]) -> bytes:
    """The content of the file beside a picture that is no PNG."""
    return json.dumps(recipe, indent=1).encode() + b"\n"


def beside(name: str) -> str:
    """The name of the file with the recipe of a picture that is no PNG."""
    return f"{name}.json"


# ---- reading ----


def read_recipe(path: str | Path) -> dict[str, Any] | None:
    """The recipe in a PNG, or in the `.json` beside or named, as it was written; None: there is none.

    Raises:
        OSError: there is no such file, or it is no picture.
    """
    path = Path(path)
    text: Any = None
    if path.suffix.lower() == ".json":
        text = _start_of(path)
    elif _start_of(path, 8) == b"\x89PNG\r\n\x1a\n":
        text = _text_chunk(path)
    elif (other := path.with_name(beside(path.name))).is_file():
        text = _start_of(other)
    try:
        recipe = json.loads(text) if text and len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def _start_of(path: Path, most: int = LARGEST + 1) -> bytes:
    """The first bytes of a regular file.

    Raises:
        OSError: it is none, or cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is no file")
    with path.open("rb") as file:
        return file.read(most)


def _text_chunk(path: Path) -> str | None:
    """The text of a PNG under our key, before or after its pixels.

    Raises:
        OSError: it is broken.
    """
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"tEXt" and size <= LARGEST + len(KEY) + 1:
                content = file.read(size)
                file.seek(4, 1)                            # its checksum
                if content.startswith(KEY.encode() + b"\0"):
                    return content[len(KEY) + 1 :].decode("latin-1")
            elif kind == b"IEND":
                break
            else:
                file.seek(size + 4, 1)
    return None


def task_of(path: str | None) -> str | None:
    """The task in a recipe, if it is one of conf/task; whatever else is wrong is for `open_recipe` to say."""
    if not path:
        return None
    try:
        found = read_recipe(Path(path).expanduser())
    except OSError:
        return None
    task = None if found is None else found.get("task")
    return task if task in {file.stem for file in (CONFIG_DIR / "task").glob("*.yaml")} else None


def open_recipe(path: str | Path, verb: str) -> Recipe:
    """The recipe of a picture that `verb` made, checked.

    Raises:
        UserError: there is none, it is not a recipe, or another verb's.
    """
    source = Path(path).expanduser()
    try:
        found = read_recipe(source)
    except OSError as error:
        raise UserError(f"recipe='{source}' cannot be read ({error.strerror or error}): give a picture that aigc "
                        "made") from error
    if found is None or "drawn" in found:
        raise UserError(f"recipe='{source}' holds no recipe: give a picture that aigc made, or the .json beside it")
    try:
        return _checked(found, source, verb)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        missing = isinstance(error, KeyError)
        why = f"it lacks {error}" if missing else str(error).splitlines()[0][:200]
        earlier = ", and may be of an earlier version" if missing else ""
        raise UserError(f"recipe='{source}' is not a recipe that can be followed ({why}{earlier}): give another "
                        "picture") from error


def _checked(found: Mapping[str, Any], source: Path, verb: str) -> Recipe:
    made_by = _one(found, "verb", str)
    if made_by in VERBS and made_by != verb:
        raise UserError(f"recipe='{source}' was made by aigc.{made_by}: give it to python -m aigc.{made_by}")
    if made_by != verb:
        raise ValueError("its verb is unknown")
    batch = _one(found, "batch", dict)
    label, text = (None if batch.get(name) is None else _texts(batch[name], name) for name in ("label", "text"))
    number = found.get("number")
    whole = Batch(_count(batch, "start"), _count(batch, "size"), _count(batch, "at_once"), label, text)
    if number is not None:                                 # an edit's start is its place among those edited with it
        place = _count(found, "number") - whole.start if verb == "generate" else whole.start
        if not 0 <= place < whole.size:
            raise ValueError("its number lies outside its batch")
    if not 1 <= whole.size <= 10**7 or whole.at_once < 1 or (number is not None and whole.size > 2**16):
        raise ValueError("its batch is impossible")
    options = _options(found.get("options", {}), verb)
    task = found.get("task")
    return Recipe(
        source=source, verb=verb, run=_one(found, "run", str), checkpoint=_one(found, "checkpoint", str),
        sha256=_one(found, "sha256", str), seed=_whole(found, "seed"), number=number, options=options, batch=whole,
        said={name: _one(found, name, str) for name in ("label", "text") if name in found},
        task=None if task is None else _one(found, "task", str), parents=_parents(found.get("parents", [])),
        range=_ranges(found.get("range", {})), pixels=found.get("pixels"),
    )


def _one(found: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(found[name], kind):
        raise ValueError(f"its {name} is {type(found[name]).__name__}")
    return found[name]


def _whole(found: Mapping[str, Any], name: str) -> int:
    if type(found[name]) is not int or abs(found[name]) >= 2**63:
        raise ValueError(f"its {name} is no whole number")
    return found[name]


def _count(found: Mapping[str, Any], name: str) -> int:
    if _whole(found, name) < 0:
        raise ValueError(f"its {name} is below 0")
    return found[name]


def _texts(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise ValueError(f"its {name} is no list of texts")
    return value


def _parents(value: Any) -> list[dict[str, str]]:
    kept = [{key: one[key] for key in ("name", "sha256", "role") if isinstance(one.get(key), str)} for one in value]
    if not all({"name", "sha256"} <= set(one) for one in kept):
        raise ValueError("a parent has no name or hash")
    return kept


def _ranges(value: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    from aigc.data.values import recorded

    return recorded({"range": value})


def _options(value: Any, verb: str) -> dict[str, Any]:
    """Options of a verb, each of the kind that its schema says; no interpolation is ever resolved in them."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if not isinstance(value, dict):
        raise ValueError("its options are no mapping")
    hints = get_type_hints(SCHEMAS[verb])
    known = [name for name in hints if name not in APART]
    for name, one in value.items():
        if name not in known:
            raise ValueError(f"it has an option '{name}', which this version lacks: {choices(name, known)}")
        try:
            strict = TypeAdapter(hints[name], config=ConfigDict(strict=True))
            strict.validate_python(float(one) if _is_float(hints[name]) and type(one) is int else one)
        except ValidationError as error:
            raise ValueError(f"its option '{name}' is of the wrong kind") from error
    return value


def _is_float(hint: Any) -> bool:
    return float in (get_args(hint) if isinstance(hint, UnionType) else (hint,))
