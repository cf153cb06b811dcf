"""Errors for users: one sentence that says what is wrong, where, and what to do.

A user's mistake raises `UserError`; the entry points print its sentence and exit with code 2, without a traceback.
Every other exception is a bug and keeps its traceback.
"""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class UserError(Exception):
    """A user's mistake, in one sentence: what, where, what to do."""


def choices(word: object, known: Iterable[object]) -> str:
    """The end of an error message: "did you mean 'heun'?" if a known word is similar, else all known words."""
    names = [str(k) for k in known]
    near = get_close_matches(str(word), names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "choose from " + ", ".join(sorted(names))


def check_choices(options: Iterable[tuple[str, Any, Collection[Any]]]) -> None:
    """Refuses unknown values of options of `model`, given as (option, value, known values).

    Raises:
        UserError: names the nearest known values.
    """
    for name, value, known in options:
        if value not in known:
            raise UserError(f"model.{name}={value} is unknown: {choices(value, known)}")


def check_count(name: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    """Refuses an invalid count.

    Raises:
        UserError: `value` is not a whole number of at least `least`, nor null where that is allowed.
    """
    if not (value is None and optional) and (type(value) is not int or value < least):
        given = "null" if value is None else value
        raise UserError(
            f"{name} must be a whole number of at least {least}{' or null' if optional else ''}, not {given}"
        )


def check_least(options: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Refuses options that are too small, or not a number; None passes.

    Raises:
        UserError: names the first one.
    """
    for name, smallest in least.items():
        if options[name] is not None and not options[name] >= smallest:
            raise UserError(f"{name}={options[name]} must be at least {smallest}")


class RunError(UserError):
    """A started run cannot continue (NaN, full disk), in one sentence; what it has saved stays intact."""
