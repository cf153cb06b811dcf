"""Scores a translator while it trains and when it is done: against the other side's images and against true pairs.

Everything is also measured for the untranslated images: a translation that is no better than
`identity` has achieved nothing. Several devices share the work and give the numbers of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import lightning as L
from torch import Tensor

from aigc.data.pairs import PairData
from aigc.errors import UserError, check_count
from aigc.models.family import Family, Translator
from aigc.scoring.enough import smaller_subsets, too_few
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.panel import How, Panel
from aigc.scoring.scores.similarity import LPIPS, PROTOCOL, check_lpips, lpips_at_hand, no_ssim
from aigc.scoring.translation import show, side_features
from aigc.scoring.translations import translations
from aigc.training.callbacks.evaluating import evaluating
from aigc.training.callbacks.scoring import Scoring, devices_of


@dataclass
class Real:
    """What a network knows of a split before anything is translated, on all ranks unless said otherwise."""

    network: FeatureNetwork
    counts: tuple[int, int]                  # images of either side
    pairs: bool                              # images k of both sides show the same thing
    features: tuple[Tensor, Tensor]          # of all images of either side `(n, d)`, in their own order
    panels: dict[str, Panel]                 # by direction: its target side is the reference
    identity: dict[str, float]               # scores of the untranslated images, by name; known to rank 0


class TranslationScores(Scoring):
    """Every `every_images` and at the end, of held-out images: how well translations match the other side.

    For every direction d of the family, with the feature network's name in place of <network>:

    - `<d>/fd_<network>`, `<d>/kd_<network>`: Fréchet and kernel distance of the translations to all real images of
      the target side of the same split
    - `<d>/cycle_l1`: mean |back(there(x)) - x| on [-1, 1], of families that go both ways
    - where the data hold true pairs, means over images: `<d>/psnr` (dB, of 0..255 after rounding), `<d>/ssim`,
      `<d>/lpips` (where its weights are at hand) and `<d>/similarity_<network>` (cosine of the features)
    - `<d>/identity/<name>`: the same of the images as they are

    An image repeated on the shorter side is scored once. During training on `validation`, at the end also on `test`,
    as `test/<d>/<name>`; `val/<name>` are the family's own losses. A second network, which costs many times the
    first, looks at `test` only.
    """

    def __init__(
        self,
        *,
        network: str,                           # a name of metrics.networks.NETWORKS
        every_images: int,                      # seen, between two scorings
        num_images: int | None,                 # rows of a split that are translated, at most; None: all
        batch_size: int,                        # images at once on every device
        validation_images: int = 0,             # held-out images for the family's own losses, at most
        second: str | None = None,              # another, on test; auto: a foreign one beside the classifier
        weights: str | None = None,             # local file of the network's weights
        preprocessing: str | None = None,       # of squeezenet's weights: caffe or torchvision
        lpips: str | None = "auto",             # alex, vgg or squeeze; auto: the first at hand; None: without
        lpips_weights: str | None = None,       # local file of its backbone's weights; None: what torch.hub has kept
        monitor: str | None = None,             # the score that says which model is best; None: a2b's Fréchet distance
        mode: str | None = None,                # less is better (min), or more (max); None: as the catalogue says
        kd_subsets: int = 20,                   # see scoring/suite.py
        kd_subset_size: int = 100,
        seed: int = 0,                          # of what is random in a translation
        extra: Sequence[str] = (),              # modules of scores of your own (scoring/scores/registry.py)
    ):
        super().__init__(
            network=network, second=second, weights=weights, preprocessing=preprocessing, every_images=every_images,
            batch_size=batch_size, validation_images=validation_images, monitor=monitor, mode=mode,
            kd_subsets=kd_subsets, kd_subset_size=kd_subset_size, seed=seed, extra=extra,
        )
        check_count("metrics.num_images", num_images, least=2, optional=True)
        check_lpips(lpips)
        self.num_images = num_images
        self.lpips_choice = lpips
        self.lpips_weights = lpips_weights
        self.lpips: LPIPS | None = None
        self.reals: dict[str, Real] = {}        # by split

    @property
    def more_at_end(self) -> bool:
        """The test images are read only then."""
        return True

    # ---- the real side ----

    def prepare(self, trainer: L.Trainer, pl_module: Family) -> None:
        """Loads the networks and reads the real images of both splits and both sides; once.

        Raises:
            UserError: the family or the data do not translate, weights are missing, or a side has one image.
        """
        if self.reals:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not pl_module.can("translate") or not isinstance(data, PairData):
            raise UserError(f"metrics=translation scores families that turn images into images, and {data.name} with "
                            f"{type(pl_module).__name__} is something else: use metrics=classifier")
        family = cast(Translator, pl_module)
        with evaluating(family):
            network = self.build(trainer, family)
            if any(data.has_pairs(split) for split in ("validation", "test")):
                found = lpips_at_hand(self.lpips_choice, self.lpips_weights, channels=data.channels, size=data.size,
                                       missing=self.missing)
                self.lpips = found.to(family.device) if found is not None else None
            self.reals = {split: self._look(trainer, family, split, network) for split in ("validation", "test")}
        if self.monitor is None:
            self.monitor = f"{family.directions[0]}/{network.score_names()['fd']}"
        suite = self.reals["validation"].panels[family.directions[0]].suite
        self.protocol = {
            "metric": self.monitor,
            **network.facts(),
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "split": "validation; test at the end, as test/...",
            "reference": "all real images of the target side of the same split",
            "identity": "the untranslated images against the same reference",
            "splits": {
                name: {"a": real.counts[0], "b": real.counts[1], "pairs": real.pairs,
                       "rows": self._rows(data, name), "kd_subset_size": self._subset(real, data, name)}
                for name, real in self.reals.items()
            },
            "directions": list(family.directions),
            "seed": self.seed,
            **PROTOCOL,
            "lpips": self.lpips.net if self.lpips is not None else None,
            "lpips_sha256": self.lpips.sha256 if self.lpips is not None else None,
            "similarity": _similarity(network),
            **{name: fact for name, fact in suite.protocol(2).items() if name not in ("kd_subset_size", "is_splits")},
        }
        self._say(data)

    def _say(self, data: PairData) -> None:
        """Notes what there are too few images for, and why a score is not taken."""
        assert self.network is not None
        for name, real in self.reals.items():
            counts = {f"images of {name}": min(*real.counts, self._rows(data, name))}
            networks = [self.network, *([self.second] if self.second is not None and name == "test" else [])]
            notes = (*(too_few(counts, network.num_features) for network in networks),
                     smaller_subsets(self.kd_subset_size, self._subset(real, data, name)))
            self.notes += [note for note in notes if note and note not in self.notes]
        apart = {split: f"the images of {split} are not paired" for split, real in self.reals.items()
                 if not real.pairs}
        for split, reason in apart.items():
            prefix = "test/" if split == "test" else ""
            names = ("psnr", "ssim", "lpips", f"similarity_{self.network.name}")
            self.ruled_out |= {prefix + name: reason for name in names}
            if self.second is not None and split == "test":
                self.ruled_out[f"test/similarity_{self.second.name}"] = reason
        if len(apart) < len(self.reals) and (too_small := no_ssim(data.size)):
            self.missing["ssim"] = too_small

    def _rows(self, data: PairData, split: str) -> int:
        return min(self.num_images or data.count(split), data.count(split))

    def _subset(self, real: Real, data: PairData, split: str) -> int:
        """Images in a subset of the kernel distance, at most: no more than either side has."""
        return min(self.kd_subset_size, *real.counts, self._rows(data, split))

    def _look(self, trainer: L.Trainer, pl_module: Translator, split: str, network: FeatureNetwork) -> Real:
        """The real side of a split."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        counts, pairs = data.counts(split), data.has_pairs(split)
        if min(counts) < 2:
            raise UserError(f"{data.name} has one image in {split} on a side: distances need at least two")
        devices = devices_of(trainer, pl_module)
        features = side_features(pl_module, data, split, network, devices, batch_size=self.batch_size)
        panels = {}
        for direction in pl_module.directions:
            how = How(kd_subsets=self.kd_subsets, kd_subset_size=self.kd_subset_size, batch_size=self.batch_size,
                      seed=self.seed, extra=self.extra, together=True, logits=False)
            panels[direction] = Panel(network, how, devices)
            panels[direction].know(features[1 if direction == "a2b" else 0])
            panels[direction].paired = pairs
        real = Real(network, counts, pairs, features, panels, {})
        for direction in pl_module.directions:
            (scores,) = self._measured(trainer, pl_module, split, [real], direction, identity=True)
            real.identity |= {f"{direction}/identity/{name}": value for name, value in scores.items()}
        return real

    # ---- scores ----

    def measure(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of all directions on the validation images, at the end also on the test images."""
        family = cast(Translator, pl_module)
        scores: dict[str, float] = {}
        for split in ("validation", "test") if final else ("validation",):
            reals, prefix = [self.reals[split]], "test/" if split == "test" else ""
            if split == "test" and self.second is not None:
                reals.append(self._look(trainer, family, split, self.second))
            found: dict[str, float] = {}
            for direction in family.directions:
                for scores_of_one in self._measured(trainer, family, split, reals, direction):
                    found |= {f"{direction}/{name}": value for name, value in scores_of_one.items()}
            for real in reals:
                found |= real.identity
            scores |= {prefix + name: value for name, value in found.items()}
            if split == "test" and self.second is not None:
                self._state_second(reals[-1])
        return scores

    def _state_second(self, real: Real) -> None:
        """Adds to the protocol how the second network measured."""
        names = real.network.score_names()
        direction = next(iter(real.panels))
        self.protocol["second"] = {
            "scores": [names["fd"], names["kd"], f"similarity_{real.network.name}"],
            "metric": f"test/{direction}/{names['fd']}", **real.network.facts(),
            "similarity": _similarity(real.network),
        }

    def _measured(
        self, trainer: L.Trainer, pl_module: Translator, split: str, reals: list[Real], direction: str, *,
        identity: bool = False,
    ) -> list[dict[str, float]]:
        """Scores of the images of a side, translated or as they are, each once, by each of `reals`; known to rank 0.

        Pairs are compared beside the first network's features only.
        """
        data, devices = trainer.datamodule, devices_of(trainer, pl_module)  # type: ignore[attr-defined]
        side, n = int(direction == "b2a"), self._rows(data, split)
        stream = translations(pl_module, data, split, direction, n, batch_size=self.batch_size, seed=self.seed,
                              identity=identity, by=None, **devices.share)
        panels = [real.panels[direction] for real in reals]
        first = reals[0].network is self.network
        measured = show(stream, panels, n, n, lpips=self.lpips, pairs=reals[0].pairs and first, devices=devices,
                        features=[real.features[side] for real in reals] if identity else None)
        seen = [panel.gather(n) for panel in panels]
        if any(len(one.get("features", ())) < 2 for one in seen):
            raise UserError(f"metrics.num_images={self.num_images} leaves fewer than two images of {split} on a side: "
                            "distances need at least two")
        if not devices.first:
            return [{} for _ in reals]
        scores = [panel.scores_of(one) for panel, one in zip(panels, seen, strict=True)]
        means = {name: values.mean().item() for name, values in measured.items()}
        return [{**own, **means} for own in scores]


def _similarity(network: FeatureNetwork) -> str:
    """What the likeness of pairs is, for protocols."""
    return f"cosine of {network.name} features with the true pair's, mean over images"
