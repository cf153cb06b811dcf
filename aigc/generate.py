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
        best = reranked(cfg, family, asked.condition, device)
        sha256 = sha256_of(checkpoint)
        output.facts = {
            "verb": "generate", "run": str(run), "checkpoint": str(checkpoint.resolve()), "sha256": sha256,
            "seed": cfg.seed, "options": typed,
        }
        recipe = {"program": "aigc", "run": "/".join(run.resolve().parts[-2:]), "checkpoint": checkpoint.stem,
                  "sha256": sha256, "seed": cfg.seed, **({"options": asked.options} if asked.options else {}),
                  **({"rerank": {"of": best.of, "sha256": best.judge.sha256}} if best is not None else {})}
        with cli.bars(" images") as progress:
            how = {"batch_size": cfg.batch_size, "progress": progress, **asked.options}
            images = best.made(**how) if best is not None else \
                sample_uint8(family, cfg.n, seed=cfg.seed, condition=asked.condition, **how)
            write(images, output, cfg.format, cfg.n, recipe=recipe, asked=asked.words, found=best and best.facts)
    print(f"{counted(cfg.n, 'image')} in {output.folder}")


def reranked(cfg: Any, family: Any, prompts: Any, device: Any) -> Any:
    """What chooses each image among several, where that is asked for, or None."""
    if cfg.rerank is None:
        return None
    from aigc.images.reranking import Reranked, check_reranking
    from aigc.scoring.scores.clip_score import open_judge

    check_reranking(family, prompts, cfg.rerank_of)
    return Reranked(family, open_judge(cfg.rerank, device, option="rerank"), prompts, of=cfg.rerank_of, seed=cfg.seed)


if __name__ == "__main__":
    main()
