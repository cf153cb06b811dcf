"""Generated Markdown: tables, blocks of commands, and the part of a README that is made from runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from aigc.errors import UserError
from aigc.files import atomic

START, END = "<!-- table: written by study.py -->", "<!-- end of table -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a cell may hold anything but is shown on one line."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def number(value: float, digits: int = 4) -> str:
    """A number with `digits` digits and no powers of ten: 0.2641, 53,761."""
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def commands(lines: Iterable[str]) -> str:
    """A block of shell commands."""
    return "\n".join(["```sh", *lines, "```"])


def fill(path: Path, text: str) -> None:
    """Replaces the text between the two marks of a README by `text`; the rest stays as it is.

    Raises:
        UserError: the marks are missing.
    """
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise UserError(f"{path} has no lines '{START}' and '{END}': put them where the table should go")
    atomic.write(path, f"{before}{START}\n{text.strip()}\n{END}{after}")
