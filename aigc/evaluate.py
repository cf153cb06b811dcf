"""Scores a generator or a folder of images: `python -m aigc.evaluate run=<run> metrics=classifier,inception`."""

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc import cli
from aigc.errors import RunError, UserError, check_least
from aigc.runs import card

if TYPE_CHECKING:
    from aigc.scoring.target import Target

LEAST = {"num_samples": 2, "num_reals": 2, "second_images": 2, "resamples": 0, "neighbours": 0, "kd_subsets": 1,
         "kd_subset_size": 2, "attribute_samples": 0, "batch_size": 1}


def main() -> None:
    """The command line."""
    sys.argv[1:] = [spelled_out(argument) for argument in sys.argv[1:]]
    cli.run(evaluate, "evaluate")


def spelled_out(argument: str) -> str:
    """Rewrites `metrics=a,b` as `networks=[a,b]`, and `data.key=value` so that it can apply to the run's data."""
    key, equals, value = argument.partition("=")
    if key == "metrics" and equals:
        return "networks=null" if value == "null" else f"networks=[{value.strip('[]')}]"
    return f"++{argument}" if key.startswith("data.") else argument


def evaluate(cfg: Any) -> None:
    """Scores the target that `run` names, prints a table, and writes the record."""
    check_least(cfg, LEAST)
    if cfg.resamples == 1:
        raise UserError("resamples=1 has no spread: give 0 for no intervals, or 100")
    if cfg.megapixels <= 0:
        raise UserError(f"megapixels={cfg.megapixels} must be above 0")
    from aigc.models.checkpoints import choose_device
    from aigc.scoring.evaluations import reserve, table
    from aigc.scoring.job import measure
    from aigc.scoring.networks.registry import check_networks
    from aigc.scoring.target import open_target

    if isinstance(cfg.networks, str):
        cfg.networks = [cfg.networks]
    check_networks(cfg.networks)
    device = choose_device(cfg.device)
    target = open_target(cfg.run, cfg.checkpoint, device, batch_size=cfg.batch_size, seed=cfg.seed)
    out = Path(cfg.out).expanduser() if cfg.out else default_out(target)
    with (reserve(out, overwrite=cfg.overwrite, numbered=not cfg.out) as path, cli.bars(" images") as progress,
          cli.bars() as fetched):
        found, notes = measure(cfg, target, device, path, progress=progress, fetched=fetched)
    print(f"\n{table(found.scores)}\n")
    if target.pictures is None:
        with contextlib.suppress(OSError):  # the record is written; a card can be rewritten
            card.write(target.run)
    print("\n".join([*notes, f"record    {path}"]))
    if target.pictures is not None and (broken := target.pictures.failures):
        from aigc.wording import counted

        named = "; ".join(f"{name} ({reason})" for name, reason in sorted(broken.items()))
        raise RunError(f"left out {counted(len(broken), 'picture')} in '{target.path}' that could not be read: "
                       f"{named}")


def default_out(target: "Target") -> Path:
    """`<run>/evaluations/<time>.json`; for images, `<folder>_evaluation.json` beside the folder."""
    if target.pictures is not None:
        folder = target.path.resolve()
        return folder.with_name(f"{folder.name}_evaluation.json")
    return target.run / "evaluations" / f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S}.json"


if __name__ == "__main__":
    main()
