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
    """Samples `n` images and writes them to `out`; or the image of a recipe, in its batch, once more."""
    if cfg.format not in FORMATS:
        raise UserError(f"unsupported format '{cfg.format}': {choices(cfg.format, FORMATS)}")
    check_least(cfg, {"n": 1, "batch_size": 1})
    from aigc.images.animating import motion_asked, write_videos
    from aigc.images.generating import sample_uint8, write
    from aigc.images.output import by_time, claim, sha256_of
    from aigc.images.recipes import recipe_of
    from aigc.images.remaking import Batches, Compared, facts_from, given_keys, one_of, plan_of
    from aigc.models.checkpoints import choose_device, load_family, run_of
    from aigc.models.requests import images_asked
    from aigc.wording import counted

    device = choose_device(cfg.device)
    plan = plan_of(cfg, given_keys(cfg, "generate"))
    typed, run = plan.typed, run_of(plan.checkpoint)
    motion = motion_asked(typed["video"], typed["animation"])
    out = Path(cfg.out).expanduser() if cfg.out else by_time(run / "generated")
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output:
        family = load_family(plan.checkpoint, device=device)
        asked = images_asked(family, typed, plan.n, run=typed["run"])
        for note in asked.notes:
            print(f"aigc: {note}", file=sys.stderr)
        best = reranked(plan, family, asked.condition, device)
        sha256 = sha256_of(plan.checkpoint)
        output.facts = {
            "verb": "generate", "run": str(run), "checkpoint": str(plan.checkpoint.resolve()), "sha256": sha256,
            "seed": typed["seed"], "options": typed,
        }
        if motion is not None:
            with cli.bars(" frames") as progress:
                told = write_videos(family, typed, output, asked, motion, plan.n, progress=progress)
            print("\n".join([f"{counted(plan.n, 'video')} in {output.folder}", *told]))
            return
        shared = recipe_of("generate", typed, run=run, checkpoint=plan.checkpoint, sha256=sha256,
                           **({"guided": asked.guidance.weights()} if asked.guidance.facts else {}),
                           **({"rerank": {"of": best.of, "sha256": best.judge.sha256}} if best is not None else {}))
        together = plan.at_once if best is None else best.together(plan.at_once)
        batches, compared = Batches(plan.n, plan.first, plan.at_once, together, asked.words), Compared(plan)
        with cli.bars(" images") as progress:
            how = {"batch_size": plan.at_once, "progress": progress, "guides": asked.guidance, **asked.options}
            images = best.made(**how) if best is not None else sample_uint8(
                family, plan.n, seed=typed["seed"], first=plan.first, condition=asked.condition, **how)
            n, first = (plan.n, plan.first) if plan.only is None else (1, plan.only)
            write(compared(images), output, cfg.format, n, recipe=lambda number: shared | batches.of(number),
                  asked=one_of(asked.words, plan), found=facts_from(best and best.facts, plan), first=first)
    print("\n".join([f"{counted(n, 'image')} in {output.folder}", *filter(None, [compared.told()])]))


def reranked(plan: Any, family: Any, prompts: Any, device: Any) -> Any:
    """What chooses each image among several, where that is asked for, or None."""
    typed = plan.typed
    if typed["rerank"] is None:
        return None
    from aigc.images.reranking import Reranked, check_reranking
    from aigc.scoring.scores.clip_score import open_judge

    check_reranking(family, prompts, typed["rerank_of"])
    judge = open_judge(typed["rerank"], device, option="rerank")
    return Reranked(family, judge, prompts, of=typed["rerank_of"], seed=typed["seed"], first=plan.first)


if __name__ == "__main__":
    main()
