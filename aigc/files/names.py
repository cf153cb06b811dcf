"""What the names of files and folders mean, and how messages show them."""

import re

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif", ".jp2")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "dev": "validation", "test": "test", "testing": "test"}
SYSTEM = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
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

