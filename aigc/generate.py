"""Makes images with a trained generator: `python -m aigc.generate run=<run folder> n=64 out=images seed=0`."""

import sys
from pathlib import Path
from typing import Any

from aigc import cli
from aigc.errors import UserError, choices

FORMATS = ("png", "npy")


def main() -> None:
    """The command line."""
    cli.run(generate, "generate")


def generate(cfg: Any) -> None:
    """Samples `n` images and writes them to `out`."""
    from aigc.config.schema import to_plain
    from aigc.images.generating import sample_uint8, write
    from aigc.images.output import by_time, claim, sha256_of
    from aigc.models.asked import labels_of, named
    from aigc.models.checkpoints import choose_device, find_checkpoint, load_family
    from aigc.models.prompts import prompts_of
    from aigc.wording import counted

    if cfg.format not in FORMATS:
        raise UserError(f"unsupported format '{cfg.format}': {choices(cfg.format, FORMATS)}")
    if cfg.n < 1 or cfg.batch_size < 1:
        raise UserError(f"n={cfg.n} and batch_size={cfg.batch_size} must be at least 1")
    device = choose_device(cfg.device)
    checkpoint = find_checkpoint(cfg.run, cfg.checkpoint)
    run = run_of(checkpoint)
    out = Path(cfg.out).expanduser() if cfg.out else by_time(run / "generated")
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output:
        family = load_family(checkpoint, device=device)
        typed = to_plain(cfg)
        labels = labels_of(family, typed["label"], cfg.n)
        prompts, notes = prompts_of(family, typed["text"], cfg.n)
        for note in notes:
            print(f"aigc: {note}", file=sys.stderr)
        names = named(labels, family.class_names)
        asked = [{"text": prompt} for prompt in prompts] if prompts is not None else None
        asked = [{"label": name} for name in names] if names is not None else asked
        sampler = dict(cfg.sampler)
        options = {
            "sampler": sampler.pop("name", None), **sampler,
            "guidance": cfg.guidance, "truncation": cfg.truncation, **typed["options"],
        }
        options = {name: value for name, value in options.items() if value is not None}
        sha256 = sha256_of(checkpoint)
        output.facts = {
            "verb": "generate", "run": str(run), "checkpoint": str(checkpoint.resolve()), "sha256": sha256,
            "seed": cfg.seed, "options": typed,
        }
        recipe = {"program": "aigc", "run": "/".join(run.resolve().parts[-2:]), "checkpoint": checkpoint.stem,
                  "sha256": sha256, "seed": cfg.seed, **({"options": options} if options else {})}
        images = sample_uint8(family, cfg.n, seed=cfg.seed, condition=labels if prompts is None else prompts,
                              batch_size=cfg.batch_size, **options)
        write(images, output, cfg.format, cfg.n, recipe=recipe, asked=asked)
    print(f"{counted(cfg.n, 'image')} in {output.folder}")


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; for a checkpoint outside a run, the folder that holds it."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


if __name__ == "__main__":
    main()
