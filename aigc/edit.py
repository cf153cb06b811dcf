"""Works on pictures with a trained model: `python -m aigc.edit task=translate run=<run> images=<folder> out=<out>`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc import cli
from aigc.errors import RunError, UserError, choices

if TYPE_CHECKING:
    from torch import Tensor

    from aigc.models.family import Family

    Task = Callable[[Tensor, list[int]], Tensor]

FORMATS = ("keep", "png")


def main() -> None:
    """The command line."""
    cli.run(edit, "edit")


def edit(cfg: Any) -> None:
    """Reads the pictures that `images` means, does the task on each, and writes them by the same names and sizes."""
    if cfg.task not in TASKS:
        raise UserError(f"there is no task '{cfg.task}': {choices(cfg.task, TASKS)}")
    if cfg.format not in FORMATS:
        raise UserError(f"unsupported format '{cfg.format}': {choices(cfg.format, FORMATS)}")
    if cfg.batch_size < 1 or cfg.megapixels <= 0 or (cfg.side is not None and cfg.side < 1):
        sentence = f"batch_size={cfg.batch_size}, megapixels={cfg.megapixels} and side={cfg.side}"
        raise UserError(f"{sentence} must be positive")
    from aigc.config.schema import to_plain
    from aigc.data.values import parse_range, recorded
    from aigc.generate import run_of
    from aigc.images.output import by_time, claim, sha256_of
    from aigc.images.pictures import find_pictures, ranges_of, write_edited
    from aigc.models.checkpoints import choose_device, find_checkpoint, load_family
    from aigc.runs.summary import read_summary
    from aigc.wording import counted, told

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
        task = TASKS[cfg.task](family, cfg)
        ranges, values = ranges_of(pictures, asked, recorded(read_summary(run).get("data")))
        for line in values:
            print(f"values    {line}")
        output.facts = {"verb": "edit", "run": str(run), "checkpoint": str(checkpoint.resolve()),
                        "sha256": sha256_of(checkpoint), "seed": cfg.seed, "options": to_plain(cfg), "range": ranges}
        write_edited(pictures, task, output, channels=family.hparams.channels, batch_size=cfg.batch_size,
                     pixels=int(cfg.megapixels * 1e6), failures=failures, ranges=ranges)
        output.ending = {"failed": {str(path): reason for path, reason in sorted(failures.items())}}
    done = len(pictures) - len(failures)
    if failures:
        named = "; ".join(f"{path} ({reason})" for path, reason in sorted(failures.items()))
        others = "the other one is" if done == 1 else f"the other {done} are"
        rest = f"{others} in '{output.folder}'" if done else "nothing was written"
        raise RunError(f"{len(failures)} of {counted(len(pictures), 'picture')} failed, {rest}: {named}")
    print("\n".join([f"{counted(done, 'picture')} in {output.folder}",
                     *(f"left out  {line}" for line in told(left_out))]))


def translate(family: "Family", cfg: Any) -> "Task":
    """Pictures of one side as pictures of the other.

    Raises:
        UserError: the run's family does not translate, or not in this direction.
    """
    from aigc.images.pictures import at_side
    from aigc.models.family import Translator
    from aigc.noise import mix

    if not isinstance(family, Translator):
        name = type(family).__name__
        raise UserError(f"'{cfg.run}' holds a {name}, which makes images from noise: task=translate needs a run of "
                        f"{' or '.join(translators())}")
    family.check_direction(cfg.direction)

    def task(images: "Tensor", numbers: list[int]) -> "Tensor":
        seeds = [mix(cfg.seed, k) for k in numbers]
        given = images.to(family.device)
        return at_side(lambda x: family.translate(x, direction=cfg.direction, seeds=seeds), given, cfg.side)

    return task


def translators() -> list[str]:
    """The `model=` choices that translate."""
    from omegaconf import OmegaConf

    from aigc.config.schema import CONFIG_DIR, to_plain
    from aigc.config.targets import locate
    from aigc.models.family import Translator

    found = {path.stem: to_plain(OmegaConf.load(path), resolve=False).get("_target_")
             for path in sorted((CONFIG_DIR / "model").glob("*.yaml"))}
    return [name for name, target in found.items() if target and issubclass(locate(target, "model"), Translator)]


TASKS = {"translate": translate}

if __name__ == "__main__":
    main()
