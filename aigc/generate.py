"""Makes images with a trained generator: `python -m aigc.generate run=<run folder> n=64 out=images seed=0`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aigc import cli
from aigc.errors import UserError, choices
from aigc.prompts import prompts_of

if TYPE_CHECKING:
    from aigc.models.family import Family


def main() -> None:
    """The command line."""
    cli.run(generate, "generate")


def generate(cfg: Any) -> None:
    """Samples `n` images and writes them to `out`."""
    from omegaconf import OmegaConf

    from aigc.checkpoints import choose_device, load_family
    from aigc.sampling import sample_uint8, write

    if cfg.format not in ("png", "npy"):
        raise UserError(f"format '{cfg.format}' is not written here: {choices(cfg.format, ('png', 'npy'))}")
    if cfg.n < 1 or cfg.batch_size < 1:
        raise UserError(f"n={cfg.n} and batch_size={cfg.batch_size} must be at least 1")
    device = choose_device(cfg.device)
    family = load_family(cfg.run, cfg.checkpoint, device)
    label, text = (OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in (cfg.label, cfg.text))
    labels, prompts = labels_of(family, label, cfg.n), prompts_of(family, text, cfg.n)
    condition = labels if prompts is None else prompts
    sampler = dict(cfg.sampler)
    options = {
        "sampler": sampler.pop("name", None), **sampler,
        "guidance": cfg.guidance, "truncation": cfg.truncation, **dict(cfg.options),
    }
    options = {name: value for name, value in options.items() if value is not None}
    out = Path(cfg.out).expanduser() if cfg.out else default_out(Path(cfg.run))
    images = sample_uint8(family, cfg.n, seed=cfg.seed, condition=condition, batch_size=cfg.batch_size, **options)
    write(images, out, cfg.format, cfg.n, prompts=prompts)
    print(f"{cfg.n} images in {out}")


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
            instead = "give text=<prompt>" if family.hparams.get("condition") == "text" else "leave it out"
            raise UserError(f"label={wanted}, but this {type(family).__name__} knows no labels: {instead}")
        return None
    labels = list(range(classes)) if wanted is None else wanted if isinstance(wanted, list) else [wanted]
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"label={label} is no class of this model: choose from 0 to {classes - 1}")
    return torch.tensor([labels[k % len(labels)] for k in range(n)])


if __name__ == "__main__":
    main()
