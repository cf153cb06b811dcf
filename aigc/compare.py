"""Compares runs: `python -m aigc.compare runs=runs` prints a table, `... out=report.html` writes a page."""

import shutil
import sys
from pathlib import Path
from typing import Any

from aigc import cli
from aigc.errors import UserError, check_least
from aigc.wording import counted

LEAST = {"refresh_seconds": 0.1, "shown": 1, "grids": 0, "thumbnail": 16, "points": 2, "at_images": 1, "at_minutes": 0}


def main() -> None:
    """The command line."""
    cli.run(compare, "compare")


def compare(cfg: Any) -> None:
    """Prints the table of the runs, writes their page, or serves it while they continue.

    Raises:
        UserError: there is no run, no run has the score, or an option is invalid.
    """
    from omegaconf import OmegaConf

    from aigc.report.comparison import Comparison
    from aigc.runs.reading import read_runs

    check_least(cfg, LEAST)
    if cfg.at_images is not None and cfg.at_minutes is not None:
        raise UserError("at_images= and at_minutes= name two points: give one of them")
    at = ("images", cfg.at_images) if cfg.at_images is not None else None
    at = ("seconds", 60 * cfg.at_minutes) if cfg.at_minutes is not None else at
    spec: Any = OmegaConf.to_container(cfg.runs) if OmegaConf.is_config(cfg.runs) else cfg.runs
    out = Path(cfg.out).expanduser() if cfg.out else None
    if out is not None and out.suffix != ".html":
        raise UserError(f"out='{out}' is not an .html file: give e.g. out=report.html")
    if out is not None and cfg.serve:
        raise UserError("serve=true shows the page without writing it: drop out= or serve=true")
    options = {name: cfg[name] for name in ("title", "grids", "thumbnail", "points", "shown")}
    if cfg.serve:
        from aigc.report.live import serve

        serve(spec, score=cfg.score, at=at, port=cfg.port, seconds=cfg.refresh_seconds, **options)
        return
    if out is not None:
        from aigc.report.page import check_libraries, check_place, write

        check_libraries()
        check_place(out)
    comparison = Comparison(read_runs(spec), cfg.score, at)
    if out is not None:
        print(f"{counted(len(comparison.runs), 'run')} in {write(comparison, out, **options)}")
    else:
        from aigc.report.table import text

        print(text(comparison, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


if __name__ == "__main__":
    main()
