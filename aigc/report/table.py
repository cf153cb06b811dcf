"""The comparison as text: an aligned table, sorted by score, with the protocols under it."""

from io import StringIO
from typing import Any

from aigc.report.comparison import Comparison, common, facts, own_settings
from aigc.report.protocol import Score, monitored

WIDE = 10_000       # columns where the output is no terminal: nothing is wrapped or cut


def text(comparison: Comparison, width: int | None = None) -> str:
    """The table, its protocols, and what is to be said about the runs.

    Args:
        comparison: of the runs.
        width: of the terminal; None: no limit.
    """
    from rich.console import Console
    from rich.table import Table

    runs, column = comparison.runs, comparison.columns[0] if comparison.columns else None
    told = [facts(run) for run in runs]
    settings = own_settings(runs)
    lettered = column is not None and len(column.protocols) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("family", "data"):
        table.add_column(name, no_wrap=True)
    table.add_column("status", max_width=40)
    if column is not None:
        table.add_column(column.name, justify="right", no_wrap=True)
    if lettered:
        table.add_column("", no_wrap=True)
    for name in ("minutes", "images", "images/s", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    if any(settings):
        table.add_column("settings")
    for k in comparison.order():
        fact = told[k]
        row = [comparison.labels[k], fact["family"], fact["data"], fact["status"]]
        row += [shown(column.scores[k])] if column is not None else []
        row += [column.letters[k]] if column is not None and lettered else []
        row += [number(fact["minutes"], ".1f"), number(fact["images"], ",.0f")]
        row += [number(fact["images_per_second"], ",.1f"), number(fact["parameters"], ",.0f")]
        table.add_row(*row, *([settings[k]] if any(settings) else []))
    out = StringIO()
    console = Console(file=out, width=width or WIDE, color_system=None, markup=False, highlight=False)
    console.print(f"{len(runs)} runs in {common(runs)}\n" if len(runs) > 1 else f"{runs[0].folder}\n")
    console.print(table)
    for line in notes(comparison):
        console.print(line)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def notes(comparison: Comparison) -> list[str]:
    """What stands under the table: protocols, warnings, and runs that have other scores."""
    lines = [""]
    if comparison.columns:
        column = comparison.columns[0]
        lines.append(f"{column.name}: {'more' if column.higher else 'less'} is better")
        lines += [f"  {letter}  {words}" for letter, words in column.protocols.items()]
        lines += [f"warning: {sentence}" for sentence in column.warnings]
        without = [run for run, score in zip(comparison.runs, column.scores, strict=True) if score is None]
        others = sorted({name for run in without if (name := monitored(run))})
        if without:
            instead = f": theirs is {', '.join(others)} (score=<name>)" if others else ""
            lines.append(f"{len(without)} of {len(comparison.runs)} runs have no {column.name}{instead}")
    else:
        lines.append("no run has a score yet")
    for run, label in zip(comparison.runs, comparison.labels, strict=True):
        lines += [f"warning: {label}: {sentence}" for sentence in run.warnings]
    return lines


def shown(score: Score | None) -> str:
    """A score with its interval, four digits that count."""
    if score is None:
        return ""
    if score.low is None or score.high is None:
        return f"{score.value:.4g}"
    return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"


def number(value: Any, form: str) -> str:
    """A formatted number, or nothing."""
    return format(value, form) if isinstance(value, int | float) else ""
