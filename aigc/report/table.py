"""The comparison as text: an aligned table, sorted by score, with the protocols under it."""

import re
from collections.abc import Sequence
from io import StringIO
from itertools import takewhile
from typing import Any

from aigc.report.comparison import Comparison, common, facts, own_settings, remarks, told_point
from aigc.runs.protocol import Score, monitored
from aigc.wording import counted

WIDE = 10_000       # columns where the output is no terminal: nothing is wrapped or cut
LEAST = {"run": 24, "status": 8, "settings": 16}        # columns of the terminal for what can be shortened or wrapped
SPARED = ("settings", "parameters", "images/s", "data")     # what a narrow terminal does without, in this order


def text(comparison: Comparison, width: int | None = None) -> str:
    """The table, its protocols, and remarks about the runs.

    Args:
        comparison: of the runs.
        width: of the terminal; None: no limit.
    """
    from rich.console import Console
    from rich.table import Table

    runs, column = comparison.runs, comparison.columns[0] if comparison.columns else None
    told = [facts(run) for run in runs]
    settings = own_settings(runs)
    columns = {name: [fact[name] for fact in told] for name in ("family", "data", "status")}
    columns = {"run": comparison.labels, **columns}
    if column is not None:
        columns[column.name] = [shown(score) for score in column.scores]
        columns |= {"": column.letters} if len(column.protocols) > 1 else {}
    for name, key, form in (("minutes", "minutes", ".1f"), ("images", "images", ",.0f"),
                            ("images/s", "images_per_second", ",.1f"), ("parameters", "parameters", ",.0f")):
        columns[name] = [number(fact[key], form) for fact in told]
    columns |= {"settings": settings} if any(settings) else {}
    fit(columns, width or WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        words = name in ("run", "family", "data", "status", "", "settings")
        table.add_column(name, justify="left" if words else "right", no_wrap=name not in ("status", "settings"),
                         max_width=40 if name == "status" else None)
    for k in comparison.order():
        table.add_row(*(cells[k] for cells in columns.values()))
    out = StringIO()
    console = Console(file=out, width=width or WIDE, color_system=None, markup=False, highlight=False)
    where = f"{len(runs)} runs in {common(runs)}" if len(runs) > 1 else str(runs[0].folder)
    console.print(f"{where}{told_point(comparison.at)}\n", soft_wrap=True)
    console.print(table)
    for line in notes(comparison):
        console.print(line)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def fit(columns: dict[str, list[str]], width: int) -> None:
    """Leaves columns out and shortens the names of the runs until all fits into `width`, or nothing more helps."""

    def needed() -> int:
        widths = {name: max(len(cell) for cell in [name, *cells]) for name, cells in columns.items()}
        return sum(min(wide, LEAST.get(name, wide)) + 2 for name, wide in widths.items()) - 2

    for name in SPARED:
        if needed() > width:
            columns.pop(name, None)
    room = max(LEAST["run"], LEAST["run"] + width - needed())
    columns["run"] = shortened(columns["run"], room)


def shortened(names: Sequence[str], room: int) -> list[str]:
    """Names of at most `room` characters: without the words that all begin with, then without their middle."""
    if max(map(len, names)) <= room:
        return list(names)
    words = zip(*(re.findall(r".*?[/_-]", name) for name in names), strict=False)
    same = "".join(word for word, *others in takewhile(lambda place: len({*place}) == 1, words) if others)
    rests = [f"…{name.removeprefix(same)}" if same else name for name in names]
    return [rest if len(rest) <= room else f"{rest[: (room - 1) // 2]}…{rest[-(room // 2):]}" for rest in rests]


def notes(comparison: Comparison) -> list[str]:
    """The lines under the table: protocols, warnings, and runs that have other scores."""
    lines = [""]
    if comparison.columns:
        column = comparison.columns[0]
        lines.append(f"{column.name}: {'more' if column.higher else 'less'} is better")
        lines += [f"  {letter}  {words}" for letter, words in column.protocols.items()]
        lines += [f"warning: {sentence}" for sentence in column.warnings]
        without = [run for run, score in zip(comparison.runs, column.scores, strict=True) if score is None]
        others = sorted({name for run in without if (name := monitored(run))} - {column.name})
        if without:
            instead = f", but {', '.join(others)} (score=<name>)" if others else ""
            have = "has" if len(without) == 1 else "have"
            lines.append(f"{len(without)} of {counted(len(comparison.runs), 'run')} {have} no {column.name}{instead}")
        lines += [f"note: {sentence}" for sentence in remarks(comparison, [column])]
    else:
        lines.append("no run has a score yet")
    for run, label in zip(comparison.runs, comparison.labels, strict=True):
        lines += [f"warning: {label}: {sentence}" for sentence in run.warnings]
    return lines


def shown(score: Score | None) -> str:
    """A score with its interval, four significant digits."""
    if score is None:
        return ""
    if score.low is None or score.high is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"


def number(value: Any, form: str) -> str:
    """A formatted number, or nothing."""
    return format(value, form) if isinstance(value, int | float) else ""
