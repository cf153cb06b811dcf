"""Makes images with a trained generator: `python -m aigc.generate run=<run folder> n=64 out=images seed=0`."""

import sys
from pathlib import Path
from typing import Any

from aigc import cli
from aigc.errors import UserError, check_least, choices

FORMATS = ("png", "npy")


def main() -> None:
    """The command line."""
    cli.run(generate, "generate")


def generate(cfg: Any) -> None:
    """Samples `n` images and writes them to `out`."""
    from aigc.config.schema import to_plain
    from aigc.images.generating import sample_uint8, write
    from aigc.images.output import by_time, claim, sha256_of
    from aigc.models.checkpoints import choose_device, find_checkpoint, load_family, run_of
    from aigc.models.requests import images_asked
    from aigc.wording import counted

    if cfg.format not in FORMATS:
        raise UserError(f"unsupported format '{cfg.format}': {choices(cfg.format, FORMATS)}")
    check_least(cfg, {"n": 1, "batch_size": 1})
    device = choose_device(cfg.device)
    checkpoint = find_checkpoint(cfg.run, cfg.checkpoint)
    run = run_of(checkpoint)
    out = Path(cfg.out).expanduser() if cfg.out else by_time(run / "generated")
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output:
        family = load_family(checkpoint, device=device)
        typed = to_plain(cfg)
        asked = images_asked(family, typed, cfg.n, run=cfg.run)
        for note in asked.notes:
            print(f"aigc: {note}", file=sys.stderr)
        sha256 = sha256_of(checkpoint)
        output.facts = {
            "verb": "generate", "run": str(run), "checkpoint": str(checkpoint.resolve()), "sha256": sha256,
            "seed": cfg.seed, "options": typed,
        }
        recipe = {"program": "aigc", "run": "/".join(run.resolve().parts[-2:]), "checkpoint": checkpoint.stem,
                  "sha256": sha256, "seed": cfg.seed, **({"options": asked.options} if asked.options else {})}
        with cli.bars(" images") as progress:
            images = sample_uint8(family, cfg.n, seed=cfg.seed, condition=asked.condition, batch_size=cfg.batch_size,
                                  progress=progress, **asked.options)
            write(images, output, cfg.format, cfg.n, recipe=recipe, asked=asked.words)
    print(f"{counted(cfg.n, 'image')} in {output.folder}")


if __name__ == "__main__":
    main()
