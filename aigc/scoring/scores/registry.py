"""The scores over features: each registers itself, and a network's suite (aigc/scoring/suite.py) measures them all.

A score of your own is one file: a function of features, logits and real features, under its entry in the catalogue.

    @score(Entry("spread_*", "more", bounds=(0, None), reads=("features",)))
    def spread(features, logits, real):
        return features.std(0).mean().item()

`metrics.extra=[my_package.spread]` measures it in training, `extra=[my_package.spread]` in an evaluation, if the
environment variable AIGC_ALLOW_TARGETS names its package.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from aigc.config.targets import ALLOW_VARIABLE, own_packages, within
from aigc.errors import UserError
from aigc.runs.catalogue import ENTRIES, Entry, register
from aigc.scoring.networks.features import FeatureNetwork

Computed = Callable[[Tensor, Tensor, Tensor], float | None]
SCORES: list[type["FeatureScore"]] = []


class Measured(NamedTuple):
    """A score's value, its values `(b,)` on resamples where they were asked for, and how many images those are of."""

    value: float
    again: Tensor | None = None
    kept: int = 1


class Sides(Protocol):
    """What a score may know: features of real and of generated images, and the options of all scores."""

    network: FeatureNetwork
    seed: int
    kd_subsets: int
    neighbours: int
    frechet: Any                # sums of both sides' features (scores/frechet.py)
    kernel: Any                 # the kept features of both sides (scores/kernel.py)

    @property
    def generated(self) -> int:
        """Number of generated images."""

    def kept(self, *, real: bool) -> Tensor:
        """At most the first 10,000 features `(m, d)` of a side, float32."""

    def kept_logits(self) -> Tensor:
        """The logits `(m, k)` of the kept generated images."""

    def subset_size(self, n: int) -> int:
        """Images per subset of the kernel distance for n generated ones."""


class FeatureScore:
    """A score over one network's features, or several that are computed together.

    Attributes:
        names: its entries in the catalogue; a network's own name for one stands in `FeatureNetwork.names`.
    """

    names: tuple[str, ...]

    def __init__(self, sides: Sides):
        self.sides = sides

    def called(self, name: str) -> str:
        """The score's name with this network."""
        own = self.sides.network.score_names()
        return own.get(name.removesuffix("_*"), name.replace("*", self.sides.network.name))

    def begin(self, n: int) -> None:
        """Starts again with n new generated images."""

    def add(self, features: Tensor, logits: Tensor | None) -> None:
        """Takes in the features `(m, d)` and logits `(m, k)` of the next ones, where that is not kept."""

    def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
        """The scores of all images since `begin` by their names in the catalogue; none where there are too few.

        Args:
            drawn: how often each kept image is in each resample, `(b, m)`; None: no resamples are asked for.
            strata: of the kept images `(m,)`, within which they are resampled.
        """
        raise TypeError(f"{type(self).__name__} must define measure()")

    def protocol(self, n: int) -> dict[str, Any]:
        """How n images are scored: facts for the protocol."""
        return {}

    def missing(self, n: int, reals: int) -> str | None:
        """Why n images have no such score against so many kept real ones; None: they have one."""
        return None

    def ruled_out(self) -> str | None:
        """Why there is none with this network and these options; None: there is one."""
        return None


def feature_score(cls: type[FeatureScore]) -> type[FeatureScore]:
    """Has every suite measure this class of scores."""
    SCORES.append(cls)
    return cls


def score(entry: Entry, **protocol: Any) -> Callable[[Computed], Computed]:
    """Registers a function `(features (m, d), logits (m, k), real features (r, d)) -> value or None` as a score.

    Args:
        entry: what the score is; `*` in its name stands for the network's.
        protocol: how it is measured; names that the entry's `facts` list decide whether values compare.
    """
    register(entry)

    def add(compute: Computed) -> Computed:
        class Own(FeatureScore):
            names = (entry.name,)

            def measure(self, drawn: Tensor | None = None, strata: Tensor | None = None) -> dict[str, Measured]:
                features, real = self.sides.kept(real=False), self.sides.kept(real=True)
                logits = self.sides.kept_logits()
                value = compute(features, logits, real)
                if value is None:
                    return {}
                again = []
                for times in drawn if drawn is not None else ():
                    rows = torch.arange(len(features)).repeat_interleave(times.long())
                    again.append(compute(features[rows], logits[rows], real))
                values = torch.tensor([one for one in again if one is not None], dtype=torch.float64)
                return {entry.name: Measured(float(value), values if len(values) > 1 else None, len(features))}

            def protocol(self, n: int) -> dict[str, Any]:
                return dict(protocol)

        Own.__name__, Own.__module__, Own.__doc__ = compute.__name__, compute.__module__, compute.__doc__
        feature_score(Own)
        return compute

    return add


def load(modules: Iterable[str], key: str) -> tuple[str, ...]:
    """Imports modules of scores, of packages that the user allows, and returns their names.

    Args:
        modules: dotted names.
        key: the option that names them, for messages.

    Raises:
        UserError: a module is not allowed, does not exist, or registers no score.
    """
    for name in (found := tuple(map(str, modules))):
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name) or not within(name, own_packages()):
            raise UserError(f"{key}={name} is not allowed: name its package in the environment variable "
                            f"{ALLOW_VARIABLE}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not within(name, (error.name,)):
                raise
            raise UserError(f"{key}={name} does not exist: is its folder in PYTHONPATH?") from error
        if not any(one.__module__ == name for one in SCORES):
            raise UserError(f"{key}={name} registers no score: see aigc/scoring/scores/registry.py")
    return found


def chosen(extra: Iterable[str]) -> list[type[FeatureScore]]:
    """The scores of this package in the catalogue's order, then those of the modules `extra`."""
    from aigc.scoring import scores

    for module in pkgutil.iter_modules(scores.__path__):
        importlib.import_module(f"{scores.__name__}.{module.name}")
    modules, places = {*extra}, list(ENTRIES)
    found = [one for one in SCORES if one.__module__ in modules or within(one.__module__, (scores.__name__,))]
    return sorted(found, key=lambda one: places.index(one.names[0]))
