"""What a call of generate is to make: images anew, or those of a recipe, in the batch in which they were made."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from aigc.config.schema import CONFIG_DIR, SCHEMAS, to_plain
from aigc.images.following import checkpoint_for, overlaid
from aigc.images.recipes import Recipe, in_turn, open_recipe, pixels_of
from aigc.models.checkpoints import find_checkpoint


@dataclass
class Plan:
    """What is made: `n` images from number `first` on, `at_once` together, of which `only` one may be wanted."""

    checkpoint: Path
    typed: dict[str, Any]                                  # all options, those of a recipe included
    first: int
    n: int
    at_once: int
    only: int | None = None                                # the number of the one that is wanted
    recipe: Recipe | None = None
    changed: bool = False                                  # whether options were given beside the recipe


def plan_of(cfg: Any, given: Collection[str]) -> Plan:
    """What a call of generate is to make.

    Args:
        cfg: its options.
        given: the keys of those that were typed.

    Raises:
        UserError: the recipe cannot be followed, or there is no checkpoint.
    """
    typed = to_plain(cfg)
    if cfg.recipe is None:
        return Plan(find_checkpoint(cfg.run, cfg.checkpoint), typed, 0, cfg.n, cfg.batch_size)
    recipe = open_recipe(cfg.recipe, "generate")
    run = None if OmegaConf.is_missing(cfg, "run") else cfg.run
    checkpoint, batch = checkpoint_for(recipe, run), recipe.batch
    typed = overlaid(recipe, typed, given) | {"run": str(checkpoint)}
    said = {name: typed[name] for name in ("label", "text") if name in given}
    changed = bool({key for key in given if not key.startswith("hydra.")}
                   - {"recipe", "run", "out", "overwrite", "device", "format", "latents"})
    if said or "n" in given:                               # other images, that this one's batch says nothing about
        typed |= said or {name: [word] for name, word in recipe.said.items()}
        first, n = (0, cfg.n) if "n" in given or recipe.number is None else (recipe.number, 1)
        return Plan(checkpoint, typed, first, n, cfg.batch_size, recipe=recipe, changed=True)
    typed |= {"label": batch.label, "text": batch.text}
    return Plan(checkpoint, typed, batch.start, batch.size, batch.at_once, recipe.number, recipe, changed)


def given_keys(cfg: Any, verb: str) -> set[str]:
    """The keys of the options that were typed; outside a command line, those that are not the defaults."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized() and HydraConfig.get().job.config_name == verb:
        words = HydraConfig.get().overrides.task
        return {word.lstrip("+~").partition("=")[0] for word in words}
    defaults = to_plain(OmegaConf.merge(OmegaConf.structured(SCHEMAS[verb]), {
        name: value for name, value in to_plain(OmegaConf.load(CONFIG_DIR / f"{verb}.yaml"), resolve=False).items()
        if name not in ("defaults", "hydra")}))
    return {key for key in _unlike(to_plain(cfg), defaults) if not key.startswith("task.")}


def _unlike(typed: Mapping[str, Any], defaults: Mapping[str, Any], above: str = "") -> set[str]:
    found = set()
    for name, value in typed.items():
        key, default = f"{above}{name}", defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            found |= _unlike(value, default, f"{key}.")
        elif value != default and value is not None:
            found.add(key)
    return found


@dataclass
class Batches:
    """The batches of a call, for the recipes of its images."""

    n: int
    first: int
    at_once: int
    together: int                                          # images whose sums are made together
    words: Sequence[dict[str, str]] | None                 # label or text of each image

    def of(self, number: int) -> dict[str, Any]:
        """The batch of an image's recipe; of number -1, of all of them."""
        start, stop = 0, self.n
        if number >= 0:
            start = (number - self.first) // self.together * self.together
            stop = min(self.n, start + self.together)
        batch: dict[str, Any] = {"start": self.first + start, "size": stop - start, "at_once": self.at_once}
        if self.words:
            batch |= {name: in_turn([one[name] for one in self.words[start:stop]]) for name in self.words[0]}
        return {"batch": batch}


class Compared:
    """Images on their way to files, of which one may be wanted; says afterwards whether it is the recipe's."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.same: bool | None = None                      # None: there is nothing to compare with

    def __call__(self, images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """The images that are wanted."""
        plan = self.plan
        if plan.only is not None:
            images = islice(images, plan.only - plan.first, plan.only - plan.first + 1)
        for image in images:
            if plan.recipe is not None and plan.only is not None and plan.recipe.pixels is not None:
                self.same = pixels_of(image) == plan.recipe.pixels
            yield image

    def told(self) -> str | None:
        """A line for people."""
        return verdict(self.same, self.plan.changed)


def verdict(same: bool | None, changed: bool) -> str | None:
    """Whether a picture that was made again is the same, for people; None: there is nothing to say."""
    if same is None:
        return None
    if same:
        return "recipe    the same picture, bit for bit"
    why = "as options were changed" if changed else "as happens on another machine or device, or by another version"
    return f"recipe    not the same bits, {why}"


def one_of(items: Sequence[Any] | None, plan: Plan) -> Sequence[Any] | None:
    """What belongs to the images that are wanted, of what belongs to all that are made."""
    if items is None or plan.only is None:
        return items
    return items[plan.only - plan.first : plan.only - plan.first + 1]


def facts_from(found: Callable[[int], dict[str, Any]] | None, plan: Plan) -> Callable[[int], dict[str, Any]] | None:
    """What is known of the k-th image that is wanted, from what is known of the k-th that is made."""
    skipped = 0 if plan.only is None else plan.only - plan.first
    return None if found is None else lambda k: found(skipped + k)
