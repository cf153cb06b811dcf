"""Works on pictures with a trained model: `python -m aigc.edit task=translate run=<run> images=<folder> out=<out>`."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from aigc import cli
from aigc.errors import RunError, UserError, check_least, choices

FORMATS = ("keep", "png")


def main() -> None:
    """The command line."""
    cli.run(edit, "edit")


def edit(cfg: Any) -> None:
    """Reads the pictures that `images` means, does the task on each, and writes them by the same names and sizes."""
    if cfg.format not in FORMATS:
        raise UserError(f"unsupported format '{cfg.format}': {choices(cfg.format, FORMATS)}")
    check_least(cfg, {"batch_size": 1, "side": 1})
    if not cfg.megapixels > 0:
        raise UserError(f"megapixels={cfg.megapixels} must be above 0")
    from aigc.config.schema import to_plain
    from aigc.data.values import parse_range, recorded
    from aigc.editing.tasks import open_task
    from aigc.images.output import by_time, claim, sha256_of
    from aigc.images.pictures import find_pictures, ranges_of, write_edited
    from aigc.models.checkpoints import choose_device, find_checkpoint, load_family, run_of
    from aigc.runs.summary import read_summary
    from aigc.wording import counted, told

    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    name = str(chosen.get("task", cfg.task.get("function")))
    asked = parse_range(cfg.range, "range")
    device = choose_device(cfg.device)
    checkpoint = find_checkpoint(cfg.run, cfg.checkpoint)
    run = run_of(checkpoint)
    out = Path(cfg.out).expanduser() if cfg.out else by_time(run / "edited")
    left_out: dict[str, list[str]] = {}
    failures: dict[Path, str] = {}
    pictures = find_pictures(cfg.images, out, cfg.format, left_out=left_out)
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output:
        family = load_family(checkpoint, device=device)
        typed = to_plain(cfg)
        task = open_task(typed["task"], family, name=name, run=cfg.run, seed=cfg.seed, side=cfg.side)
        ranges, values = ranges_of(pictures, asked, recorded(read_summary(run).get("data")))
        for line in values:
            print(f"values    {line}")
        output.facts = {"verb": "edit", "task": name, "run": str(run), "checkpoint": str(checkpoint.resolve()),
                        "sha256": sha256_of(checkpoint), "seed": cfg.seed, "options": typed, "range": ranges}
        with cli.bars(" pictures") as progress:
            write_edited(pictures, task, output, channels=family.hparams.channels, batch_size=cfg.batch_size,
                         pixels=int(cfg.megapixels * 1e6), failures=failures, ranges=ranges, progress=progress)
        output.ending = {"failed": {str(path): reason for path, reason in sorted(failures.items())}}
    done = len(pictures) - len(failures)
    if failures:
        named = "; ".join(f"{path} ({reason})" for path, reason in sorted(failures.items()))
        others = "the other one is" if done == 1 else f"the other {done} are"
        rest = f"{others} in '{output.folder}'" if done else "nothing was written"
        raise RunError(f"{len(failures)} of {counted(len(pictures), 'picture')} failed, {rest}: {named}")
    print("\n".join([f"{counted(done, 'picture')} in {output.folder}",
                     *(f"left out  {line}" for line in told(left_out))]))


if __name__ == "__main__":
    main()
