"""Works on pictures with a trained model: `python -m aigc.edit task=translate run=<run> images=<folder> out=<out>`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc import cli
from aigc.errors import RunError, UserError, choices

if TYPE_CHECKING:
    from torch import Tensor

    from aigc.models.family import Family

SHOWN = 16  # pictures in the comparison


def main() -> None:
    """The command line."""
    cli.run(edit, "edit")


def edit(cfg: Any) -> None:
    """Reads the pictures that `images` means, does the task on each, and writes them by the same names and sizes."""
    if cfg.task not in TASKS:
        raise UserError(f"there is no task '{cfg.task}': {choices(cfg.task, TASKS)}")
    if cfg.format not in ("keep", "png"):
        raise UserError(f"format '{cfg.format}' is not written here: {choices(cfg.format, ('keep', 'png'))}")
    if cfg.batch_size < 1 or cfg.megapixels <= 0 or (cfg.side is not None and cfg.side < 1):
        sentence = f"batch_size={cfg.batch_size}, megapixels={cfg.megapixels} and side={cfg.side}"
        raise UserError(f"{sentence} must be positive")
    from tqdm import tqdm

    from aigc.checkpoints import choose_device, load_family
    from aigc.generate import default_out
    from aigc.pictures import edited, find_pictures, save_comparison, write

    device = choose_device(cfg.device)
    folder = default_out(Path(cfg.run).expanduser()).with_name("edited")
    out = Path(cfg.out).expanduser() if cfg.out else folder
    pictures = find_pictures(cfg.images, out, cfg.format)
    family = load_family(cfg.run, cfg.checkpoint, device)
    task = TASKS[cfg.task](family, cfg)
    failures: dict[Path, str] = {}
    pairs: list[tuple[Tensor, Tensor]] = []
    with tqdm(total=len(pictures), unit=" pictures", disable=None) as bar:
        for picture, before, after in edited(
            pictures, task, channels=family.hparams.channels, batch_size=cfg.batch_size,
            pixels=int(cfg.megapixels * 1e6), failures=failures,
        ):
            write(after, picture.target)
            if len(pairs) < SHOWN:
                pairs.append((before, after))
            bar.update()
    comparison = out / "comparison.png"
    if pairs and comparison not in {picture.target for picture in pictures}:
        save_comparison(pairs, comparison)
    done = len(pictures) - len(failures)
    if failures:
        named = "; ".join(f"{path} ({reason})" for path, reason in sorted(failures.items()))
        rest = f"the other {done} are in '{out}'" if done else "nothing was written"
        raise RunError(f"{len(failures)} of {len(pictures)} pictures failed, {rest}: {named}")
    print(f"{done} pictures in {out}")


def translate(family: "Family", cfg: Any) -> Callable[["Tensor", list[int]], "Tensor"]:
    """Pictures of one side as pictures of the other.

    Raises:
        UserError: the run's family does not translate, or not in this direction.
    """
    from aigc.models.family import Translator
    from aigc.noise import mix
    from aigc.pictures import at_side

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

    from aigc.config import CONFIG_DIR, to_plain
    from aigc.models.family import Translator
    from aigc.targets import locate

    found = {path.stem: to_plain(OmegaConf.load(path), resolve=False).get("_target_")
             for path in sorted((CONFIG_DIR / "model").glob("*.yaml"))}
    return [name for name, target in found.items() if target and issubclass(locate(target, "model"), Translator)]


TASKS = {"translate": translate}

if __name__ == "__main__":
    main()
