"""What a call of edit is to do: a task on pictures, or that of a recipe on the picture that it was done on."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from aigc.config.schema import to_plain
from aigc.errors import UserError
from aigc.images.following import checkpoint_for, overlaid, parent_of
from aigc.images.masks import Masks, Padding
from aigc.images.output import sha256_of
from aigc.images.pictures import Picture
from aigc.images.recipes import Recipe, open_recipe
from aigc.models.checkpoints import find_checkpoint
from aigc.wording import shown

BESIDE = {"recipe", "run", "images", "out", "overwrite", "device", "format", "batch_size", "megapixels"}


@dataclass
class Plan:
    """What is done: a task, by a checkpoint, with options; `recipe` is followed on the very picture it was made of."""

    checkpoint: Path
    typed: dict[str, Any]
    images: str
    task: str
    recipe: Recipe | None = None
    changed: bool = False                                  # whether options were given beside the recipe

    def numbered(self, pictures: list[Picture]) -> list[Picture]:
        """Pictures with the number of the recipe's, where it is followed on that one."""
        if self.recipe is None or self.recipe.number is None:
            return pictures
        return [replace(picture, number=self.recipe.number) for picture in pictures]

    def recorded(self) -> dict[str, Any]:
        """The options for recipes: without masks and padding that do not count, and without a file's place."""
        from aigc.editing.tasks import changes_of

        changes = changes_of(self.typed["task"])
        mask = {name: value for name, value in self.typed["mask"].items() if name != "path" and value}
        return self.typed | {"mask": mask if changes == "mask" else {},
                             "pad": self.typed["pad"] if changes == "padding" else {}}


def plan_of(cfg: Any, task: str, given: Collection[str]) -> Plan:
    """What a call of edit is to do.

    Args:
        cfg: its options.
        task: the name of its task.
        given: the keys of the options that were typed.

    Raises:
        UserError: the recipe cannot be followed, or there is no checkpoint.
    """
    typed = to_plain(cfg)
    if cfg.recipe is None:
        return Plan(find_checkpoint(cfg.run, cfg.checkpoint), typed, cfg.images, task)
    recipe = open_recipe(cfg.recipe, "edit")
    checkpoint = checkpoint_for(recipe, None if OmegaConf.is_missing(cfg, "run") else cfg.run)
    if recipe.task in (None, task) or "task" not in given:                # the same task keeps the recipe's options
        given, task = set(given) - {"task"}, recipe.task or task
    typed = overlaid(recipe, typed, given) | {"run": str(checkpoint)}
    if isinstance(recipe.options.get("mask"), dict) and not any(
            typed["mask"].get(name) for name in ("path", "alpha", "box")):
        typed["mask"] = typed["mask"] | {"path": _mask_of(recipe)}
    elif any(one.get("role") == "mask" for one in recipe.parents) and not typed["mask"]:
        typed["mask"] = {"path": _mask_of(recipe)}
    changed = bool({key for key in given if not key.startswith("hydra.")} - BESIDE)
    images = str(cfg.images) if "images" in given else str(_source_of(recipe))
    same = Path(images).expanduser().is_file() and sha256_of(Path(images).expanduser()) == next(
        (one["sha256"] for one in recipe.parents if "role" not in one), None)
    return Plan(checkpoint, typed, images, task, recipe if same else None, changed)


def _source_of(recipe: Recipe) -> Path:
    found, wanted = parent_of(recipe), next((one for one in recipe.parents if "role" not in one), None)
    if found is None and wanted is not None:
        raise UserError(f"recipe='{recipe.source}' was made from '{shown(wanted['name'])}', which is not here as it "
                        f"was (sha256 {shown(wanted['sha256'][:12])}): give images=<it>, or another picture")
    if found is None:
        raise UserError(f"recipe='{recipe.source}' does not say from which picture it was made: give images=<it>")
    return found


def _mask_of(recipe: Recipe) -> str:
    found = parent_of(recipe, "mask")
    if found is None:
        raise UserError(f"recipe='{recipe.source}' was made with a mask that is not here as it was: give mask.path="
                        "<it>")
    return str(found)


def change_of(typed: dict[str, Any], changes: str) -> Masks | Padding | None:
    """Which part of pictures changes; None: all.

    Raises:
        UserError: see `Masks.of` and `Padding.of`, or a mask is given to a task that takes none.
    """
    if changes == "mask":
        return Masks.of(typed["mask"])
    if any(typed["mask"].get(name) for name in ("path", "alpha", "box")):
        raise UserError("mask= says what is to change, and this task changes all: leave it out, or give task=inpaint")
    return Padding.of(typed["pad"]) if changes == "padding" else None
