"""Shows which picture of a folder was made of which: `python -m aigc.lineage images=<folder>`."""

from pathlib import Path
from typing import Any

from aigc import cli
from aigc.errors import UserError


def main() -> None:
    """The command line."""
    cli.run(lineage, "lineage")


def lineage(cfg: Any) -> None:
    """Prints the family tree of a folder's pictures, and draws it as a page."""
    from aigc.files import atomic
    from aigc.images.lineage import family_of, lines_of, page_of
    from aigc.wording import counted

    folder = Path(cfg.images).expanduser()
    roots = family_of(folder)
    print("\n".join(lines_of(roots)))
    if cfg.out is None:
        return
    out = Path(cfg.out).expanduser()
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out='{out}' is no page: give a name that ends in .html")
    if out.exists() and not cfg.overwrite:
        raise UserError(f"out='{out}' exists: choose another name, or give overwrite=true")
    try:
        atomic.write(out, lambda file: file.write(page_of(roots, f"Lineage of {folder.name}").encode()))
    except OSError as error:
        raise UserError(f"out='{out}' cannot be written ({error.strerror}): choose another place") from error
    print(f"\n{counted(len(roots), 'family') if len(roots) == 1 else f'{len(roots):,} families'} in {out}")


if __name__ == "__main__":
    main()
