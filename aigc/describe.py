"""Says what pictures show: `python -m aigc.describe run=<run> images=<folder>`."""

import sys
from pathlib import Path
from typing import Any

from aigc import cli
from aigc.errors import check_least

SHOWN = 20                          # pictures whose descriptions are printed; the file has all


def main() -> None:
    """The command line."""
    cli.run(describe, "describe")


def describe(cfg: Any) -> None:
    """Describes the pictures that `images` means, in the way that the run's family can, and writes a CSV."""
    check_least(cfg, {"n": 1, "batch_size": 1})
    from aigc.config.schema import to_plain
    from aigc.images.describing import way_of
    from aigc.images.finding import as_csv
    from aigc.images.looking import Opened, check_readable
    from aigc.images.output import by_time, claim
    from aigc.models.checkpoints import choose_device
    from aigc.wording import told

    opened = Opened.of(cfg.run, cfg.checkpoint, choose_device(cfg.device))
    way = way_of(opened.family, cfg.run)
    out = Path(cfg.out).expanduser() if cfg.out else by_time(opened.run / "described")
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output, cli.bars(" pictures") as progress:
        said = way(opened, cfg, out, progress=progress)
        for note in said.notes:
            print(f"aigc: {note}", file=sys.stderr)
        output.facts = {"verb": "describe", **opened.facts(), "options": to_plain(cfg)}
        output.write("described.csv", as_csv(said.head, said.rows), kind="table")
    lines = said.lines[:SHOWN]
    more = [f"... and {len(said.lines) - SHOWN:,} more"] if len(said.lines) > SHOWN else []
    print("\n".join([*lines, *more, f"described {output.folder / 'described.csv'}",
                     *(f"left out  {line}" for line in told(said.left_out))]))
    check_readable(said.failures, "are described")


if __name__ == "__main__":
    main()
