"""The words of a command line: paths and free text are taken as typed, whatever Hydra's grammar would do with them.

Hydra reads `data.path=my pictures (1)` as a function call and `text=a, b` as two jobs. Options declared here as paths
or texts are quoted before Hydra sees them, and so is anything that Hydra cannot read: it can only be text.
"""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from aigc.config.schema import CONFIG_DIR
from aigc.errors import UserError

PATHS = (  # options whose value is a file, folder, URL or hub name; tests/test_words.py finds forgotten ones
    "run", "runs", "resume", "images", "image", "out", "recipe", "against", "clip", "rerank", "lpips_weights",
    "weights.*", "mask.path", "classifier", "secondary", "init",
    "data.path", "data.root", "data.archive.url", "metrics.weights", "metrics.lpips_weights",
    "metrics.clip", "callbacks.scores.clip", "callbacks.scores.weights", "callbacks.scores.lpips_weights",
    "model.text.name", "model.first_stage", "model.teacher", "model.tokenizer", "model.pretrained.weights",
    "hydra.run.dir", "hydra.sweep.dir",
)
TEXTS = (                              # free text; columns in braces
    "text", "candidates", "question", "title", "label", "study", "task.text", "task.label", "data.text",
    "data.caption", "data.licence",
)
OPEN = ("options",)                    # whose names only the run knows: `options.eta=1` needs no `++`
LISTS = ("runs", "text", "candidates", "label")      # options whose value in brackets is a list
QUOTED = re.compile(r"""(['"])(.*)\1""", re.DOTALL)
PLAIN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_][\w./-]*", re.IGNORECASE | re.ASCII)   # needs no quotes
SWEEP = re.compile(r"(choice|range|interval|glob|tag|sort|shuffle|extend_list)\(.*\)", re.DOTALL)


def named(key: str) -> str:
    """The name of an option without `+`; an option of data inside other data (`data.source.path`) as of the data."""
    return re.sub(r"^data\.(source\.)+(?=.)", "data.", key.lstrip("+"))


def is_path(key: str) -> bool:
    """Whether the value of the option `key` is a path."""
    return any(fnmatchcase(named(key), pattern) for pattern in PATHS)


def literal(value: str, *, keep: bool = False) -> str:
    """`value` in quotes, so that Hydra reads it literally; with `keep`, except interpolations (`${...}`)."""
    if not keep:  # OmegaConf halves the backslashes before an interpolation
        value = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    value = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{value}'"


def override(key: str, value: str | None) -> str:
    """`key=value` that Hydra reads back exactly, whatever the value contains."""
    return f"{key}=" + ("null" if value is None else literal(value))


def plain(value: str) -> str:
    """A value without the quotes that Hydra would remove: the inverse of `literal`."""
    found = QUOTED.fullmatch(value)
    if not found:
        return value
    return re.sub(rf"(\\+)({found[1]}|\Z)", lambda slashes: slashes[1][: len(slashes[1]) // 2] + slashes[2], found[2])


def path_of(value: str) -> str:
    """The path that an option's value means: an existing one of exactly this name, else without quotes and `~`."""
    if os.path.lexists(value):
        return f"./{value}" if value.startswith("~") else value     # no longer read as the home folder
    return os.path.expanduser(plain(value))


def read(words: Sequence[str], *, multirun: bool = False, optional: Sequence[str] = ()) -> list[str]:
    """The words of a command line, rewritten for Hydra.

    Args:
        words: as typed.
        multirun: whether commas separate jobs.
        optional: groups that may be empty, for which Hydra cannot read `<group>=null`.

    Raises:
        UserError: a path is empty.
    """
    kept: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key in optional and value == "null":
            kept = [other for other in kept if other.partition("=")[0] != key]
        else:
            kept.append(quoted(word, multirun=multirun))
    return kept


def quoted(word: str, *, multirun: bool = False) -> str:
    """A word, rewritten for Hydra.

    An existing path of exactly this name is taken literally; otherwise lists (where allowed), null and quoted values
    stay as they are. In a multirun, commas separate jobs, except in an existing path.

    Raises:
        UserError: a path is empty.
    """
    key, equals, value = word.partition("=")
    name = named(key)
    if equals and key.split(".")[0] in OPEN:
        word, key = f"++{word}", f"++{key}"
    if not equals or word.startswith(("-", "~")) or PLAIN.fullmatch(value):
        return word
    if is_path(name):
        return _path(key, name, value, multirun=multirun)
    if name in TEXTS:
        return _text(key, name, value, multirun=multirun)
    if (CONFIG_DIR / name).is_dir() and re.fullmatch(r"null|[\d.eE+-]+", value):
        return f"{key}='{value}'"       # Hydra does not accept a number as a choice
    return word if readable(word) or not readable(f"{key}=0") else f"{key}={literal(value, keep=True)}"


def readable(word: str) -> bool:
    """Whether Hydra's grammar accepts a word."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _path(key: str, name: str, value: str, *, multirun: bool) -> str:
    if not value:
        raise UserError(f"{key}= is empty: give a path, or leave it out")
    if os.path.lexists(os.path.expanduser(value)):
        return f"{key}={literal(path_of(value))}"
    if value in ("null", "???"):
        return f"{key}={value}"
    if multirun and (parts := _jobs(key, value)):
        return f"{key}={','.join(literal(path_of(part), keep=True) for part in parts)}"
    if multirun and SWEEP.fullmatch(value) and readable(f"{key}={value}"):
        return f"{key}={value}"
    if name in LISTS and value.startswith("[") and value.endswith("]"):
        return f"{key}={_listed(key, value)}"
    return f"{key}={literal(path_of(value), keep=True)}"


def _text(key: str, name: str, value: str, *, multirun: bool) -> str:
    listed = name in LISTS and value.startswith("[") and value.endswith("]")
    if listed:
        return f"{key}={_listed(key, value)}"
    if not value or value == "null" or QUOTED.fullmatch(value) or (name == "label" and re.fullmatch(r"-?\d+", value)):
        return f"{key}={value}"
    if multirun and SWEEP.fullmatch(value) and readable(f"{key}={value}"):
        return f"{key}={value}"
    parts = _jobs(key, value) if multirun else []
    return f"{key}={','.join(literal(part) for part in parts or [value])}"


def _jobs(key: str, value: str) -> list[str]:
    """The comma-separated values of a multirun, without quotes."""
    if SWEEP.fullmatch(value) or value.startswith("["):
        return []
    parts = re.findall(r"""\s*('(?:\\'|[^'])*'|"(?:\\"|[^"])*"|[^,]+)\s*(?:,|$)""", value)
    return [plain(part.strip()) for part in parts] if len(parts) > 1 else []


def _listed(key: str, value: str) -> str:
    """A list whose entries are quoted where Hydra could not read them."""
    if readable(f"{key}={value}"):
        return value
    return f"[{','.join(literal(path_of(plain(part.strip())), keep=True) for part in value[1:-1].split(','))}]"


def as_typed(word: str) -> str:
    """An override written by Hydra, ready for the command line of another process."""
    key, _, value = word.partition("=")
    if PLAIN.fullmatch(value) or not (is_path(key) or named(key) in TEXTS):
        return word
    parsed = OverridesParser.create().parse_override(word).value()
    return f"{key}={literal(parsed)}" if isinstance(parsed, str) and "${" not in value else word


def shown(word: str) -> str:
    """An override as a user would type it: without the quotes added for Hydra."""
    key, _, value = word.partition("=")
    if not QUOTED.fullmatch(value):
        return word
    parsed = OverridesParser.create().parse_override(word).value()
    typed = f"{key}={parsed}"
    return typed if quoted(typed) == word else word


def at_home(path: Path) -> Path:
    """A path for messages: relative to the current folder if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
