"""Errors for people: one sentence that says what is wrong, where, and what to do.

Whatever a user can get wrong raises `UserError`; the entry points print its sentence and exit with code 2,
without a traceback. Every other exception is a bug of ours and keeps its traceback.
"""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any


class UserError(Exception):
    """A mistake of the user's, in one sentence: what, where, what to do."""


def choices(word: object, known: Iterable[object]) -> str:
    """The end of an error sentence: "did you mean 'heun'?" if something known is near, else all that is known."""
    names = [str(k) for k in known]
    near = get_close_matches(str(word), names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "choose from " + ", ".join(sorted(names))


def check_choices(options: Iterable[tuple[str, Any, Collection[Any]]]) -> None:
    """Refuses a value that an option of `model` does not know; each is (option, value, known values).

    Raises:
        UserError: names the nearest known values.
    """
    for name, value, known in options:
        if value not in known:
            raise UserError(f"model.{name}={value} is unknown: {choices(value, known)}")


def check_count(name: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    """Refuses a number of things that is none.

    Raises:
        UserError: `value` is no whole number of at least `least`, nor null where that is allowed.
    """
    if not (value is None and optional) and (type(value) is not int or value < least):
        given = "null" if value is None else value
        raise UserError(
            f"{name} must be a whole number of at least {least}{' or null' if optional else ''}, not {given}"
        )


class RunError(UserError):
    """A run that had started cannot go on (NaN, full disk): one sentence; what it had saved stays whole."""
