"""Curves of a run, thinned to what a chart can show and packed for the page."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

AXES = {"images": ("images", 1.0), "minutes": ("seconds", 1 / 60), "steps": ("step", 1.0)}  # name: key, factor
LEAST = 100         # points of a curve, however many runs share a page

Line = dict[str, Any]


def packed(history: Sequence[Line], limit: int) -> list[dict[str, dict[str, str]]]:
    """Every logged scalar against images, minutes and steps, in groups of curves that have the same points.

    Args:
        history: the lines of metrics.jsonl.
        limit: points of a curve, at most.

    Returns:
        Groups of `{"x": {axis: numbers}, "y": {name: numbers}}`, numbers as base64 of little-endian float32; an axis
        that the run does not log is absent.
    """
    axes = {name: _numbers([line.get(key) for line in history]) * factor for name, (key, factor) in AXES.items()}
    axes = {name: values for name, values in axes.items() if np.isfinite(values).any()}
    groups = []
    for names, rows, values in _tables(history):
        ends, thin = thinned(values, limit)
        x = {name: _base64(numbers[rows][ends]) for name, numbers in axes.items()}
        groups.append({"x": x, "y": {name: _base64(thin[:, k]) for k, name in enumerate(names)}})
    return groups


def minutes_at(history: Sequence[Line], images: Sequence[int]) -> list[float | None]:
    """Minutes of training when so many images had been seen, between the logged lines; None: they are not logged."""
    seen = _numbers([line.get("images", line.get("step")) for line in history])
    minutes = _numbers([line.get("seconds") for line in history]) / 60
    both = np.isfinite(seen) & np.isfinite(minutes)
    if not both.any():
        return [None] * len(images)
    found: list[float | None] = np.interp(images, [0, *seen[both]], [0, *minutes[both]]).tolist()
    return found


def thinned(values: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` of the rows of `values` `(n, k)` so that no peak is lost.

    Where there are too many, each of limit / 2 stretches becomes two points at its first and last row: its least and
    its greatest value, in the order in which the stretch rises or falls.

    Returns:
        Which rows `(m,)` and the values there `(m, k)`.
    """
    n = len(values)
    if n <= limit:
        return np.arange(n), values
    starts = np.linspace(0, n, limit // 2, endpoint=False).astype(int)
    ends = np.append(starts[1:], n) - 1
    low, high = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
    rising = values[starts] <= values[ends]
    thin = np.stack([np.where(rising, low, high), np.where(rising, high, low)], axis=1)
    return np.stack([starts, ends], axis=1).ravel(), thin.reshape(-1, values.shape[1])


def _tables(history: Sequence[Line]) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, rows `(n,)` and values `(n, k)` of the scalars that are logged in the same lines."""
    kinds: dict[tuple[str, ...], list[int]] = {}           # lines by the names in them
    for row, line in enumerate(history):
        kinds.setdefault(tuple(line), []).append(row)
    places: dict[str, list[tuple[str, ...]]] = {}
    for kind in kinds:
        for name in kind:
            places.setdefault(name, []).append(kind)
    together: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for name, found in places.items():
        if name not in [key for key, _ in AXES.values()]:
            together.setdefault(tuple(found), []).append(name)
    tables = []
    for those, names in together.items():
        rows = np.sort(np.concatenate([kinds[kind] for kind in those]))
        values = np.stack([_numbers([history[row][name] for row in rows]) for name in names], axis=1)
        kept = np.isfinite(values).any(axis=0)
        if kept.any():
            tables.append(([name for name, keep in zip(names, kept, strict=True) if keep], rows, values[:, kept]))
    return tables


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """Float64 `(n,)`; what is no number is NaN."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return np.array([v if isinstance(v, int | float) else np.nan for v in values], dtype=float)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
