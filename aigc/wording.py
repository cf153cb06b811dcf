"""How messages show names and numbers, and how long work tells its progress."""

from collections.abc import Callable, Collection, Iterable, Sequence
from io import StringIO

Report = Callable[[int, int, str], object]          # told how much of how much of a long work is done, and its name
SHOWN = 3                                           # names in a sentence; the rest are counted
WIDE = 100_000                                      # columns of a table that is printed whole


def shown(name: str) -> str:
    """A name on one line, safe for any terminal."""
    clean = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in clean)


def a(name: str) -> str:
    """A class with its article: "a GAN", "an Imagen"."""
    return f"a{'n' * (name[:1] in 'AEIO')} {name}"


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Names in a sentence: "a.png, b.png, c.png and 6 more"."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def cut(names: Sequence[str], room: int) -> str:
    """As many names as fit into `room` characters, two at least: "a, b, ... 33 more"; `listed` if there is no end."""
    said = [shown(name) for name in names]
    for most in range(len(said), 1, -1):
        text = ", ".join(said[:most]) + (f", ... {len(said) - most:,} more" if most < len(said) else "")
        if len(text) <= room or most == 2:
            return text
    return ", ".join(said)


def counted(n: int, thing: str, one: str = "", many: str = "") -> str:
    """"1 file", "2,431 files", "3 classes"; with verbs "1 file was" or "2 files were" (`one` or `many`)."""
    word = thing if n == 1 else f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{n:,} {word} {one if n == 1 else many}".rstrip()


def told(left_out: dict[str, list[str]]) -> list[str]:
    """What was left out, by reason: "hidden files: 3 (._a.png, ._b.png, ._c.png)"."""
    return [f"{reason}: {len(names):,} ({listed(sorted(names))})" for reason, names in left_out.items() if names]


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Aligned columns, a line a row below the head's; those of the numbers in `right` are aligned at their ends."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for k, name in enumerate(head):
        table.add_column(name, justify="right" if k in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out = StringIO()
    Console(file=out, width=WIDE, color_system=None, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def silent(done: int, total: int, name: str) -> None:
    """The `Report` that tells nobody."""
