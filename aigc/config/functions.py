"""Functions that an option names: those registered here by a short name, and a user's own by their dotted name.

The options of such a function are its keyword parameters, read from its signature: nothing lists them a second time.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from aigc.config.targets import ALLOW_VARIABLE, imported, own_packages, within
from aigc.errors import UserError, choices


def function_named(name: Any, what: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function that `name` stands for: one of `known`, or a user's own by its dotted name.

    Args:
        name: as given in a configuration.
        what: `sampler`, `guide`: what such a function is, for messages.
        known: the registered functions.

    Raises:
        UserError: there is no such function, or it is not in a package that the user allows.
    """
    if isinstance(name, str) and name in known:
        return known[name]
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise UserError(f"There is no {what} '{name}': {choices(name, known)}")
    if any(part.startswith("_") for part in name.split(".")):
        raise UserError(f"The {what} '{name}' is private: name a public function")
    own = own_packages()
    if not within(name, own):
        raise UserError(f"The {what} '{name}' is in no package that you trust: name its package in the environment "
                        f"variable {ALLOW_VARIABLE}, or {choices(name, known)}")
    found = imported(name, f"the {what}")
    if not inspect.isfunction(found) or not within(found.__module__, own):
        raise UserError(f"The {what} '{name}' is not a function of that package: name one that is defined there")
    return found


def options_of(function: Callable[..., Any], *, given: Collection[str] = ()) -> dict[str, inspect.Parameter]:
    """The options of a function by name: its keyword parameters, without those that are `given` by the program."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(function).parameters.items()
    return {name: parameter for name, parameter in parameters if parameter.kind is keyword and name not in given}


def check_known(options: Iterable[str], known: Iterable[str], owner: str) -> None:
    """Refuses an option that is not among `known`.

    Raises:
        UserError: names the nearest known options of `owner`.
    """
    known = list(known)
    for option in options:
        if option not in known:
            raise UserError(f"{owner} has no option '{option}': {choices(option, known)}")


def chosen(function: Callable[..., Any], settings: Mapping[str, Any], owner: str, **given: Any) -> dict[str, Any]:
    """The keywords to call a function with: those of `settings` that are its options, and what it takes of `given`.

    Raises:
        UserError: an option without a default has no value.
    """
    parameters = inspect.signature(function).parameters
    result = {name: value for name, value in given.items() if name in parameters}
    for name, parameter in options_of(function, given=given).items():
        if name in settings:
            result[name] = settings[name]
        elif parameter.default is parameter.empty:
            raise UserError(f"{owner} needs the option '{name}': give it a value")
    return result
