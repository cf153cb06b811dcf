"""Which columns of a table hold images, classes and captions, by their types and usual names."""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from aigc.data.captions import TEXT_NAMES, first_text

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values", "jpg", "png", "webp")
LABEL_TYPES = ("int", "uint", "string", "large_string", "bool", "float", "double")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "class_label", "category", "target", "cls")


def usual_first(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """`names` with the usual ones first, in the order of `usual`."""
    rank = {name: k for k, name in enumerate(usual)}
    return sorted(names, key=lambda name: rank.get(name.lower(), len(usual)))


def image_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold images, the likeliest first."""
    typed = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    raw = [name for name, feature in features.items() if name.lower() in IMAGE_NAMES and (
        (isinstance(feature, Mapping) and {"bytes", "path"} & set(feature))
        or getattr(feature, "dtype", None) in ("binary", "large_binary"))]
    return usual_first(typed, IMAGE_NAMES) + usual_first(raw, IMAGE_NAMES)


def label_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold classes, the likeliest first."""
    typed = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    plain = [name for name, feature in features.items() if name.lower() in LABEL_NAMES and name not in typed
             and str(getattr(feature, "dtype", "")).startswith(LABEL_TYPES)]
    return usual_first(typed, LABEL_NAMES) + usual_first(plain, LABEL_NAMES)


def text_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold captions, the likeliest first."""
    def is_text(feature: Any) -> bool:
        inner = getattr(feature, "feature", feature)
        return getattr(inner, "dtype", None) in ("string", "large_string")

    return usual_first([name for name, f in features.items() if name.lower() in TEXT_NAMES and is_text(f)], TEXT_NAMES)


class Several(list[Any]):
    """Several texts in a template: the first, or with a separator behind a colon, `{keywords:, }`, all of them."""

    def __format__(self, separator: str) -> str:
        return separator.join(map(first_text, self)) if separator else first_text(self)


def captions(table: Any, text: str) -> list[str]:
    """Captions of all rows: from a column (the first where a row has several), or a template filled from columns."""
    if "{" not in text:
        return [first_text(value) for value in table[text]]
    names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    columns = {name: list(table[name]) for name in names}
    for name, values in columns.items():                   # a ClassLabel's number is not what it says
        known = getattr(table.features[name], "names", None)
        columns[name] = [known[value] for value in values] if known and -1 not in values else values
    return [text.format(**{name: Several(values[i]) if isinstance(values[i], list | tuple) else first_text(values[i])
                           for name, values in columns.items()}) for i in range(len(table))]
