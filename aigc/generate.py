"""Makes images with a trained generator: `python -m aigc.generate run=<run folder> n=64 out=images seed=0`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc import cli
from aigc.errors import UserError, choices

if TYPE_CHECKING:
    import numpy as np

    from aigc.models.family import Family


def main() -> None:
    """The command line."""
    cli.run(generate, "generate")


def generate(cfg: Any) -> None:
    """Samples `n` images and writes them to `out`."""
    import torch
    from omegaconf import OmegaConf

    from aigc.checkpoints import load_family

    if cfg.format not in ("png", "npy"):
        raise UserError(f"format '{cfg.format}' is not written here: {choices(cfg.format, ('png', 'npy'))}")
    if cfg.n < 1 or cfg.batch_size < 1:
        raise UserError(f"n={cfg.n} and batch_size={cfg.batch_size} must be at least 1")
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU: use device=cpu or device=auto")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    family = load_family(cfg.run, cfg.checkpoint, device)
    label = OmegaConf.to_container(cfg.label) if OmegaConf.is_config(cfg.label) else cfg.label
    condition = labels_of(family, label, cfg.n)
    sampler = dict(cfg.sampler)
    options = {
        "sampler": sampler.pop("name", None), **sampler,
        "guidance": cfg.guidance, "truncation": cfg.truncation, **dict(cfg.options),
    }
    options = {name: value for name, value in options.items() if value is not None}
    out = Path(cfg.out).expanduser() if cfg.out else default_out(Path(cfg.run))
    images = sample_uint8(family, cfg.n, seed=cfg.seed, condition=condition, batch_size=cfg.batch_size, **options)
    count = write(images, out, cfg.format, cfg.n)
    print(f"{count} images in {out}")


def default_out(run: Path) -> Path:
    """`<run folder>/generated`, for a run folder or a checkpoint in it."""
    if run.is_file():
        return (run.parent.parent if run.parent.name == "checkpoints" else run.parent) / "generated"
    return run / "generated"


def labels_of(family: "Family", wanted: Any, n: int) -> Any:
    """One label an image, `(n,)` int64: `wanted` gone through in turn, or every class; None if unconditional.

    Raises:
        UserError: the family was trained without labels, or has no such class.
    """
    import torch

    classes = family.hparams.get("classes")
    if family.hparams.get("condition", "none") != "label":
        if wanted is not None:
            raise UserError(f"label={wanted}, but this {type(family).__name__} knows no labels: leave it out")
        return None
    labels = list(range(classes)) if wanted is None else wanted if isinstance(wanted, list) else [wanted]
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"label={label} is no class of this model: choose from 0 to {classes - 1}")
    return torch.tensor([labels[k % len(labels)] for k in range(n)])


def sample_uint8(
    family: "Family", n: int, *, seed: int, condition: Any = None, batch_size: int = 64, **options: Any
) -> Iterator["np.ndarray"]:
    """Yields images `(h, w, c)` uint8, the k-th from seed mix(seed, k)."""
    from tqdm import tqdm

    from aigc.metrics.features import to_uint8
    from aigc.noise import mix

    with tqdm(total=n, unit=" images", disable=None) as bar:
        for start in range(0, n, batch_size):
            stop = min(n, start + batch_size)
            given = None if condition is None else condition[start:stop]
            seeds = [mix(seed, k) for k in range(start, stop)]
            made = family.sample(stop - start, condition=given, seeds=seeds, **options)
            bar.update(stop - start)
            yield from to_uint8(made).permute(0, 2, 3, 1).cpu().numpy()


def write(images: Iterator["np.ndarray"], out: Path, form: str, n: int) -> int:
    """Writes each image as it comes, so that an interruption loses none; returns how many.

    Raises:
        UserError: the folder does not take them.
    """
    import numpy as np
    import torch
    from PIL import Image

    from aigc.grids import save_grid

    shown, made, stack = [], 0, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for k, image in enumerate(images):
            made += 1
            if k < 64:
                shown.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
            if form == "npy":
                stack.append(image)
            else:
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                picture.save(out / f"{k:0{max(5, len(str(n - 1)))}}.png")
        if form == "npy":
            np.save(out / "images.npy", np.stack(stack))
        save_grid(torch.stack(shown), out / "grid.png")
    except OSError as error:
        sentence = f"the images could not be written to '{out}' ({error.strerror}): choose another out="
        raise UserError(sentence) from error
    return made


if __name__ == "__main__":
    main()
