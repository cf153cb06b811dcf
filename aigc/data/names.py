"""What the names of files and folders mean, and how messages show them."""

import re
from collections.abc import Sequence

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}
SYSTEM = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
SHOWN = 3                                           # names in a sentence; the rest are counted
_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?:[ _-]?(?:set|images?|imgs?|data|split))?[ _-]?\d*")
_NUMBER = re.compile("([0-9]+)")


def is_image(name: str) -> bool:
    """Whether a file has the suffix of an image."""
    return name.lower().endswith(ENDINGS)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was left behind by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM


def zip_name(entry: str) -> str:
    """The name of a zip's entry with forward slashes and no leading ones."""
    return entry.replace("\\", "/").removeprefix("./").lstrip("/")


def split_of(folder: str) -> str | None:
    """The split that a folder's name denotes (`train`, `Val`, `test2017`, `training_set`), or None."""
    found = _SPLIT.fullmatch(folder.lower())
    return SPLIT_NAMES[found[1]] if found else None


def natural(name: str) -> tuple:
    """Sort key of names in natural order: "2" before "10", upper beside lower case; different names stay different."""
    words = _NUMBER.split(name.casefold())
    digits = [word.lstrip("0") for word in words]
    return [(0, len(d), d) if k % 2 else (1, 0, w) for k, (w, d) in enumerate(zip(words, digits, strict=True))], name


def shown(name: str) -> str:
    """A name on one line, safe for any terminal."""
    clean = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Names in a sentence: "a.png, b.png, c.png and 6 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def cut(names: Sequence[str], room: int) -> str:
    """As many names as fit into `room` characters, two at least: "a, b, ... 33 more"; `listed` if there is no end."""
    said = [shown(name) for name in names]
    for most in range(len(said), 1, -1):
        text = ", ".join(said[:most]) + (f", ... {len(said) - most:,} more" if most < len(said) else "")
        if len(text) <= room or most == 2:
            return text
    return ", ".join(said)


def counted(n: int, thing: str, one: str = "", many: str = "") -> str:
    """"1 file", "2,431 files", "3 classes"; with verbs "1 file was" or "2 files were" (`one` or `many`)."""
    word = thing if n == 1 else f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{n:,} {word} {one if n == 1 else many}".rstrip()


def told(left_out: dict[str, list[str]]) -> list[str]:
    """What was left out, by reason: "hidden files: 3 (._a.png, ._b.png, ._c.png)"."""
    return [f"{reason}: {len(names):,} ({listed(sorted(names))})" for reason, names in left_out.items() if names]
