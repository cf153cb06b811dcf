"""Scores a family while it trains and when it is done: held-out losses, and samples against real images.

The same protocol for every family and every run: the items and the seeds of the samples are fixed, so two runs differ
by their models only. Several devices share the work and give the numbers of one.
"""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from aigc.conditions.rewording import caption_numbers
from aigc.errors import UserError, check_count
from aigc.models.family import Family
from aigc.scoring.enough import no_floor, no_label_accuracy
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.panel import How, Panel
from aigc.scoring.samples import Samples, Sampling, show
from aigc.scoring.scores.attributes import reads_back, shares_of, shows_shapes, tables
from aigc.scoring.scores.clip_score import Judge, open_judge
from aigc.scoring.scores.retrieval import retrieval, splits_of
from aigc.scoring.scores.similarity import PROTOCOL, no_ssim
from aigc.scoring.sources import FamilySource
from aigc.training.callbacks.evaluating import evaluating
from aigc.training.callbacks.scoring import Scoring, devices_of


class Scores(Scoring):
    """Every `every_images` and at the end: the family's own losses on held-out images, as `val/<name>`, and scores.

    Scores over a feature network are `fd_<network>` (Fréchet distance), `kd_<network>` (kernel distance),
    `is_<network>` (inception score), called fid, kid and is for the published Inception-v3 alone; `label_accuracy` is
    how often the data's classifier sees the label that was asked for. The floor is the Fréchet distance of as many
    real test images to the same reference; `<fd>_over_floor` says how many times the samples are as far. A second
    network, which costs many times the first, gives the same scores at the end only, of `second_images` at most.

    Of a family that reconstructs, the images of `validation` are scored again in place of samples, each one once, as
    `reconstruction/<score>`: `reconstruction/fd_<network>` is rFD, beside the distance of as many real test images.
    `reconstruction/psnr` (dB) and `reconstruction/ssim` compare each with its own image.

    With condition=text and data that can read attributes back from an image, `attributes/seen/<attribute>` and
    `attributes/heldout/<attribute>` are how often it is as the caption asks (scoring/scores/attributes.py). With
    condition=none and such data of single objects, `attributes/clear` is how often one clear known shape is seen.
    `clip_score` is how well samples fit their captions, as a CLIP sees it (scoring/scores/clip_score.py).

    Of a family that scores texts, `retrieval/<split>/...` and `zero_shot/<split>/accuracy` say how often it finds what
    belongs together, on validation images and held-out combinations (scoring/scores/retrieval.py).
    """

    def __init__(
        self,
        *,
        network: str | None,                    # a name of metrics.networks.NETWORKS; None: no scores over features
        every_images: int,                      # seen, between two scorings
        batch_size: int,                        # images at once, on every device
        num_samples: int | None = None,         # images made for a scoring; None: only without a network
        num_reals: int | None = None,           # reference images, at most; None: all of the split
        second: str | None = None,              # another, at the end; auto: a foreign one beside the classifier
        second_images: int = 2000,              # samples and reference images that it sees, at most
        num_samples_final: int | None = None,   # at the end also as many, as `final/<score>`; None: no other number
        split: str = "train",                   # whose images are the reference, and whose conditions are used
        balanced: bool = True,                  # labels as conditions: equally many of each class; else as in the data
        attribute_samples: int = 0,             # condition=text: images read back, of seen and of held-out captions
        clip: str | None = None,                # condition=text: a CLIP's run, or its name, for clip_score; None: none
        validation_images: int = 0,             # held-out images for the family's own losses, at most
        weights: str | None = None,             # local file of the network's weights; None: download
        preprocessing: str | None = None,       # of squeezenet's weights: caffe or torchvision
        monitor: str | None = None,             # the score that says which model is best; None: the Fréchet distance
        mode: str | None = None,                # less is better (min), or more (max); None: as the catalogue says
        kd_subsets: int = 100,                  # see scoring/suite.py
        kd_subset_size: int = 1000,
        seed: int = 0,                          # of the samples; the same for every run, so that scores compare
        extra: Sequence[str] = (),              # modules of scores of your own (scoring/scores/registry.py)
    ):
        super().__init__(
            network=network, second=second, weights=weights, preprocessing=preprocessing, every_images=every_images,
            batch_size=batch_size, validation_images=validation_images, monitor=monitor, mode=mode,
            kd_subsets=kd_subsets, kd_subset_size=kd_subset_size, seed=seed, extra=extra,
        )
        check_count("metrics.attribute_samples", attribute_samples, least=0)
        check_count("metrics.num_samples", num_samples, least=2, optional=True)
        check_count("metrics.num_reals", num_reals, least=2, optional=True)
        check_count("metrics.second_images", second_images, least=2)
        check_count("metrics.num_samples_final", num_samples_final, least=num_samples or 2, optional=True)
        if network is not None and num_samples is None:
            raise UserError(f"metrics.network={network} needs metrics.num_samples=<images made for a scoring>")
        self.num_samples = num_samples or 0
        self.num_samples_final = num_samples_final or self.num_samples
        self.num_reals = num_reals
        self.second_images = second_images
        self.split = split
        self.balanced = balanced
        self.attribute_samples = attribute_samples
        self.clip = clip
        self.judge: Judge | None = None
        self.panel: Panel | None = None         # on rank 0 it knows the real side

    @property
    def more_at_end(self) -> bool:
        """Whether more samples are made at the end, or a second network looks at them."""
        return self.num_samples_final != self.num_samples or self.second is not None

    def measure(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of samples and of their attributes, complete on rank 0."""
        scores = self._samples(trainer, pl_module, final=final) if self.panel is not None else {}
        devices = devices_of(trainer, pl_module)
        for prefix, _, table in tables(
            pl_module, trainer.datamodule, self.attribute_samples,  # type: ignore[attr-defined]
            batch_size=self.batch_size, seed=self.seed, devices=devices,
        ) if self.attribute_samples and pl_module.makes_images() else ():
            if devices.first:
                scores |= {prefix + name: value for name, value in shares_of(table).items()}
        return scores | (self._retrieved(trainer, pl_module) if pl_module.can("score_text") else {})

    def _retrieved(self, trainer: L.Trainer, pl_module: Family) -> dict[str, float]:
        """How often it finds a caption, an image and a class, complete on rank 0."""
        data, devices = trainer.datamodule, devices_of(trainer, pl_module)  # type: ignore[attr-defined]
        found: dict[str, float] = {}
        for split in splits_of(data, ("validation",)):
            scores, facts = retrieval(pl_module, data, split, batch_size=self.batch_size, devices=devices)
            found |= scores
            self._told(scores, facts)
        return found

    def _told(self, scores: dict[str, float], facts: dict[str, Any]) -> None:
        """Records how scores were taken that have a protocol of their own."""
        others = [other for other in self.protocol.get("others", []) if not {*other["scores"]} & {*scores}]
        if scores:
            self.protocol["others"] = [*others, {"scores": list(scores), **facts}]

    def _samples(self, trainer: L.Trainer, pl_module: Family, *, final: bool) -> dict[str, float]:
        """Scores of samples, complete on rank 0; of the first `num_samples` under the plain names."""
        assert self.panel is not None
        data, devices = trainer.datamodule, devices_of(trainer, pl_module)  # type: ignore[attr-defined]
        n, panels = self.num_samples, [self.panel]
        if final:
            n, panels = self.num_samples_final, [*panels, *self._second(trainer, pl_module)]
        prefix = pl_module.score_prefix()
        how = Sampling(n, self.batch_size, self.seed, "validation" if prefix else self.split, self.balanced, {})
        making = Samples(pl_module, data, how, devices)
        numbers: list[int] = []
        parts: list[dict[str, Tensor]] = []
        for mine, images, _, texts, _ in show(iter(making), n, panels):
            if self.judge is not None and texts is not None:
                numbers += mine
                parts.append({"fit": self.judge(images, texts), "caption": caption_numbers(texts)})
        self.sampling = {"evaluations": making.cost()["evaluations"]}
        seen = [panel.gather(n) for panel in panels]
        judged = devices.collect(numbers, parts, n) if self.judge is not None else {}
        if not devices.first:
            return {}
        scores = _called(prefix, self.panel.scores_of(seen[0], self.num_samples))
        for panel, other in zip(panels[1:], seen[1:], strict=True):
            alone = {name: other[name] for name in ("features", "logits")}                  # the first judges labels
            own = panel.scores_of(alone)
            scores |= _called(prefix, own)
            self._say(data, panel, self.second_images)
            self.protocol["second"] = {
                "scores": list(own), "metric": prefix + panel.suite.names["fd"], **panel.network.facts(),
                "num_samples": len(other["features"]), "num_reals": panel.num_reals,
                "floor": panel.distances.get(len(other["features"])), **panel.suite.protocol(len(other["features"])),
            }
        if n != self.num_samples:
            scores |= _called(f"final/{prefix}", self.panel.scores_of(seen[0]))
        if self.judge is not None:
            captions = judged["caption"][: self.num_samples]
            scores["clip_score"] = judged["fit"][: self.num_samples].mean().item()
            self._told({"clip_score": scores["clip_score"]}, self.judge.facts(captions))
            remark = self.judge.remark(captions)
            self.notes += [remark] if remark and remark not in self.notes else []
        return scores

    def _second(self, trainer: L.Trainer, pl_module: Family) -> list[Panel]:
        """The second network's panel, where there is one; on rank 0 it knows the real side."""
        if self.second is None:
            return []
        m = min(self.num_samples, self.second_images)
        return [self._learn(trainer, pl_module, self.second, self.second_reals(trainer), {m}, most=m)]

    # ---- the real side ----

    def prepare(self, trainer: L.Trainer, pl_module: Family) -> None:
        """Loads the feature network, the real statistics and the floor, or makes and caches them; once.

        Raises:
            UserError: weights are missing, or a split is.
        """
        if self.network_name is None or self.panel is not None:
            return
        if not pl_module.makes_images():
            self.ruled_out[f"fd_{self.network_name}"] = "the family makes no images: its own losses are its scores"
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.count(self.split) < 2:
            raise UserError(f"{data.name} has one image in {self.split}, and distances need at least two: add images, "
                            "or choose metrics=losses")
        again = {}                              # facts of reconstructions
        if pl_module.reconstructs:
            again = {"reconstructions": "of validation, each image once", **PROTOCOL}
            self._bound(data.count("validation"))
            if (too_small := no_ssim(data.size)) is not None:
                self.missing["ssim"] = too_small
        if self.clip is not None and pl_module.condition != "text":
            raise UserError("metrics.clip= scores images by their captions, but this run uses none: leave it out")
        with evaluating(pl_module):
            if self.clip is not None:
                self.judge = open_judge(self.clip, pl_module.device, option="metrics.clip")
            network = self.build(trainer, pl_module)
            count = self.reals(trainer)
            panel = self._learn(trainer, pl_module, network, count, {self.num_samples, self.num_samples_final})
        if self.monitor is None:
            self.monitor = pl_module.score_prefix() + panel.suite.names["fd"]
        self.protocol = {
            "metric": pl_module.score_prefix() + panel.suite.names["fd"],
            **network.facts(),
            "data": data.name,
            "data_fingerprint": data.fingerprint,
            "split": self.split,
            "num_samples": self.num_samples,
            "num_samples_final": self.num_samples_final,
            "num_reals": count,
            "balanced": self.balanced,
            "seed": self.seed,
            "attribute_samples": self.attribute_samples
            if reads_back(data, pl_module) or shows_shapes(data, pl_module) else 0,
            "floor": panel.distances.get(self.num_samples),
            "floor_final": panel.distances.get(self.num_samples_final),
            **panel.suite.protocol(self.num_samples),
            **again,
        }
        self.panel = panel
        self._say(data, panel, self.num_samples)
        condition, more = pl_module.condition, self.num_samples_final
        if pl_module.reconstructs and data.classes:
            condition = "label"                 # they should show what their image shows
        self._without("label_accuracy", no_label_accuracy(condition, network.classes, data.classes),
                      condition != "label")
        if more != self.num_samples:
            self._without(f"final/{panel.suite.names['fd']}_over_floor",
                          no_floor(more, self._held(data), panel.distances.get(more)), self.split == "test")
        if self.second is not None:
            blank = Panel(self.second, self._how(None))
            blank.num_reals = self.second_reals(trainer)
            self._say(data, blank, min(self.num_samples, self.second_images))

    def _bound(self, count: int) -> None:
        """Makes no more samples than `count`, the images that are reconstructed.

        Raises:
            UserError: there are fewer than two.
        """
        if count < 2:
            raise UserError("reconstructions of validation images are scored, and there are fewer than two: hold some "
                            "out with data.validation, or choose metrics=losses")
        if count < self.num_samples_final:
            self.notes.append(f"reconstructions of all {count:,} validation images are scored")
        self.num_samples, self.num_samples_final = min(self.num_samples, count), min(self.num_samples_final, count)

    def reals(self, trainer: L.Trainer) -> int:
        """How many reference images there are."""
        count = trainer.datamodule.count(self.split)  # type: ignore[attr-defined]
        return min(self.num_reals or count, count)

    def second_reals(self, trainer: L.Trainer) -> int:
        """How many of them the second network sees."""
        return min(self.reals(trainer), self.second_images)

    def _say(self, data: Any, panel: Panel, n: int) -> None:
        """Notes what there are too few images for, and why a score over a network is not taken."""
        n = panel.bounded(n)
        self.notes += [note for note in panel.notes(n, "samples") if note not in self.notes]
        floor = no_floor(n, self._held(data), panel.distances.get(n))
        self._without(f"{panel.suite.names['fd']}_over_floor", floor, self.split == "test")
        for name, reason in panel.suite.missing(n, panel.num_reals).items():
            self._without(name, reason, name in panel.suite.ruled_out() and not data.classes)

    def _without(self, name: str, reason: str | None, chosen: bool) -> None:
        """Records why there is no such score, if there is a reason; `chosen`: the user's own choices rule it out."""
        if reason:
            (self.ruled_out if chosen else self.missing)[name] = reason

    def _held(self, data: Any) -> int | None:
        """How many test images are held out of the reference; None: no split is."""
        return None if self.split == "test" or "test" not in data.splits else data.count("test")

    def _how(self, count: int | None, most: int | None = None) -> How:
        return How(kd_subsets=self.kd_subsets, kd_subset_size=self.kd_subset_size, batch_size=self.batch_size,
                   seed=self.seed, num_reals=count, most=most, extra=self.extra, together=True, flags=torch.float32)

    def _learn(
        self, trainer: L.Trainer, pl_module: Family, network: FeatureNetwork, count: int, sizes: set[int],
        most: int | None = None,
    ) -> Panel:
        """A network's panel, which on rank 0 knows the real side, and the floors of so many samples as there are."""
        data, devices = trainer.datamodule, devices_of(trainer, pl_module)  # type: ignore[attr-defined]
        panel = Panel(network, self._how(count, most), devices)
        panel.learn(FamilySource(data, self.split, pl_module, devices))
        for n in sizes:
            if n <= (self._held(data) or 0):
                panel.measure_distance(FamilySource(data, "test", pl_module, devices), n)
        return panel


def _called(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    """The scores with `prefix` before their names."""
    return {prefix + name: value for name, value in scores.items()}
