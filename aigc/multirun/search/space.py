"""What a search tries: ranges in Hydra's own words, as Optuna's distributions, and back as overrides."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer

from aigc.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = dict[str, "BaseDistribution"]


def read_space(words: list[str], loader: Any) -> tuple[Space, list[str]]:
    """The distributions of overrides that leave a choice, by option, and the overrides that do not.

    `x=interval(1,8)` is any number between (whole ones between whole ones), `x=tag(log,interval(1e-4,1e-2))` the same
    on a logarithmic scale, `x=range(16,129,16)` a grid of numbers, `x=a,b` or `x=choice(a,b)` one of a list.

    Args:
        words: overrides; of two on one option the later counts.
        loader: Hydra's, which knows the choices of a glob.

    Raises:
        UserError: a range is empty.
    """
    last = {one.get_key_element(): one for one in OverridesParser.create(config_loader=loader).parse_overrides(words)}
    space = {key: distribution(one) for key, one in last.items() if one.is_sweep_override()}
    return space, [str(one.input_line) for one in last.values() if not one.is_sweep_override()]


def check_listed(words: Sequence[str]) -> None:
    """Refuses an interval where every value is to be tried.

    Raises:
        UserError: names it.
    """
    for one in OverridesParser.create().parse_overrides(list(words)):
        if one.is_interval_sweep():
            raise UserError(
                f"'{one.input_line}' has no finite set of values: list them (a,b or range(low,high,step)), or let "
                "hparams_search=tpe choose"
            )


def distribution(override: Override) -> "BaseDistribution":
    """The distribution of an override that leaves a choice.

    Raises:
        UserError: there is nothing in its range.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    try:
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = IntDistribution if whole else FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags)  # type: ignore[arg-type]
        values: list[Any] = list(override.sweep_iterator())
        if not override.is_range_sweep():
            return CategoricalDistribution([v if plain(v) else Transformer.str(v) for v in values])
        low, high, step = min(values), max(values), abs(value.step)
        whole = all(isinstance(number, int) for number in values)
        return (IntDistribution if whole else FloatDistribution)(low, high, step=step)
    except ValueError as error:
        raise UserError(f"'{override.input_line}' leaves nothing to choose from: {error}") from error


def plain(value: Any) -> bool:
    """Whether Optuna stores such a value as it is; others are stored as Hydra writes them."""
    return value is None or isinstance(value, bool | int | float)


def words_of(params: dict[str, Any]) -> list[str]:
    """The overrides of chosen values."""
    return [f"{key}={value if isinstance(value, str) else Transformer.str(value)}" for key, value in params.items()]


def sampled(space: Space) -> list[dict[str, Any]]:
    """The first or lowest value of every option, and that with each further value of a list."""
    listed = {key: list(getattr(one, "choices", ())) or [one.low] for key, one in space.items()}  # type: ignore[attr-defined]
    first = {key: values[0] for key, values in listed.items()}
    return [first, *({**first, key: value} for key, values in listed.items() for value in values[1:])]


def grid_of(space: Space) -> dict[str, list[Any]]:
    """Every value of every option, for a search through all combinations.

    Raises:
        UserError: an option has infinitely many.
    """
    from optuna.distributions import CategoricalDistribution

    grid = {}
    for key, one in space.items():
        if isinstance(one, CategoricalDistribution):
            grid[key] = list(one.choices)
        elif getattr(one, "step", None) is None:
            raise UserError(f"a grid needs lists or steps, '{key}' is an interval: give range(low,high,step) or a,b")
        else:
            count = math.floor((one.high - one.low) / one.step + 1e-9) + 1  # type: ignore[attr-defined]
            grid[key] = [one.low + k * one.step for k in range(count)]  # type: ignore[attr-defined]
    return grid
