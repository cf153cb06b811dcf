"""Works on pictures with a trained model: `python -m aigc.edit task=translate run=<run> images=<folder> out=<out>`."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from aigc import cli
from aigc.errors import RunError, UserError, check_least, choices

FORMATS = ("keep", "png")


def main() -> None:
    """The command line; with recipe=, the task is by default that of the recipe."""
    typed = {key: value for key, _, value in (word.partition("=") for word in sys.argv[1:])}
    if "recipe" in typed and "task" not in typed:
        from aigc.images.recipes import task_of

        if (task := task_of(typed["recipe"])) is not None:
            sys.argv.insert(1, f"task={task}")
    cli.run(edit, "edit")


def edit(cfg: Any) -> None:
    """Reads the pictures that `images` means, does the task on each, and writes them by the same names and sizes."""
    if cfg.format not in FORMATS:
        raise UserError(f"unsupported format '{cfg.format}': {choices(cfg.format, FORMATS)}")
    check_least(cfg, {"batch_size": 1, "side": 1})
    if not cfg.megapixels > 0:
        raise UserError(f"megapixels={cfg.megapixels} must be above 0")
    from aigc.data.values import parse_range, recorded
    from aigc.editing.again import change_of, plan_of
    from aigc.editing.tasks import among_copies, changes_of, open_task
    from aigc.images.edited import open_masked, open_whole, write_edited
    from aigc.images.output import by_time, claim, sha256_of
    from aigc.images.pictures import find_pictures, ranges_of
    from aigc.images.recipes import recipe_of
    from aigc.images.remaking import given_keys, verdict
    from aigc.models.checkpoints import choose_device, load_family, run_of
    from aigc.runs.summary import read_summary
    from aigc.wording import counted, told

    chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    asked = parse_range(cfg.range, "range")
    device = choose_device(cfg.device)
    plan = plan_of(cfg, str(chosen.get("task", cfg.task.get("function"))), given_keys(cfg, "edit"))
    typed, run, recipe = plan.typed, run_of(plan.checkpoint), plan.recipe
    change = change_of(typed, changes_of(typed["task"]))
    out = Path(cfg.out).expanduser() if cfg.out else by_time(run / "edited")
    left_out: dict[str, list[str]] = {}
    failures: dict[Path, str] = {}
    form = "exact" if change is not None and cfg.format == "keep" else cfg.format
    pictures = plan.numbered(find_pictures(plan.images, out, form, left_out=left_out))
    with claim(out, overwrite=cfg.overwrite, numbered=not cfg.out) as output:
        family = load_family(plan.checkpoint, device=device)
        task = open_task(typed["task"], family, name=plan.task, run=typed["run"], seed=typed["seed"],
                         side=typed["side"])
        ranges, values = (recipe.range, list[str]()) if recipe is not None and asked is None else \
            ranges_of(pictures, asked, recorded(read_summary(run).get("data")))
        for line in values:
            print(f"values    {line}")
        sha256 = sha256_of(plan.checkpoint)
        output.facts = {"verb": "edit", "task": plan.task, "run": str(run), "checkpoint":
                        str(plan.checkpoint.resolve()), "sha256": sha256, "seed": typed["seed"], "options": typed,
                        "range": ranges}
        shared = recipe_of("edit", plan.recorded(), run=run, checkpoint=plan.checkpoint, sha256=sha256,
                           task=plan.task, **({"range": ranges} if ranges else {}))
        opening = open_whole if change is None else partial(
            open_masked, change=change, size=tuple(family.hparams.size), side=typed["side"])
        among = None if recipe is None else (recipe.batch.start, recipe.batch.size)
        if among is not None:
            task = among_copies(task, *among)
        with cli.bars(" pictures") as progress:
            made = write_edited(
                pictures, task, output, recipe=shared, channels=family.hparams.channels, batch_size=cfg.batch_size,
                pixels=int(cfg.megapixels * 1e6), failures=failures, ranges=ranges, progress=progress,
                opening=opening, among=among)
        output.ending = {"failed": {str(path): reason for path, reason in sorted(failures.items())}}
    done = len(pictures) - len(failures)
    if failures:
        named = "; ".join(f"{path} ({reason})" for path, reason in sorted(failures.items()))
        others = "the other one is" if done == 1 else f"the other {done} are"
        rest = f"{others} in '{output.folder}'" if done else "nothing was written"
        raise RunError(f"{len(failures)} of {counted(len(pictures), 'picture')} failed, {rest}: {named}")
    same = None if recipe is None or recipe.pixels is None else made == [recipe.pixels]
    lines = [*(f"left out  {line}" for line in told(left_out)), verdict(same, plan.changed)]
    print("\n".join([f"{counted(done, 'picture')} in {output.folder}", *filter(None, lines)]))


if __name__ == "__main__":
    main()
