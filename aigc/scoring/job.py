"""An evaluation from its options to its record: all networks see every image once."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from aigc.config.schema import to_plain
from aigc.errors import UserError
from aigc.models.family import Translator
from aigc.models.guidance import guidance_asked
from aigc.models.requests import sampling_options
from aigc.runs.catalogue import described
from aigc.runs.machine import environment, keep_freed_memory
from aigc.runs.protocol import by_reason
from aigc.scoring import bootstrap
from aigc.scoring.bootstrap import Estimate
from aigc.scoring.enough import no_floor, no_label_accuracy
from aigc.scoring.evaluations import now, write_record
from aigc.scoring.losses import held_out_losses
from aigc.scoring.networks.registry import FOREIGN
from aigc.scoring.panel import How, Panel
from aigc.scoring.samples import (
    Found,
    Samples,
    Sampling,
    clip_floor,
    pictures_of,
    score_attributes,
    score_images,
    show_neighbours,
)
from aigc.scoring.scores.clip_score import Judge, open_judge
from aigc.scoring.scores.registry import load
from aigc.scoring.scores.retrieval import retrieval, splits_of
from aigc.scoring.scores.similarity import PROTOCOL, check_lpips, lpips_at_hand, no_ssim
from aigc.scoring.sources import DataSource, FolderSource, share_ranges
from aigc.scoring.target import Target, open_data, open_networks, open_reference, open_second
from aigc.scoring.translation import score_translations
from aigc.wording import Report, silent, told

log = logging.getLogger(__name__)
NUM_SAMPLES = 2000         # of a family, as in training (conf/metrics/classifier.yaml)


def measure(
    cfg: Any, target: Target, device: torch.device, out: Path, *, progress: Report = silent, fetched: Report = silent
) -> tuple[Found, list[str]]:
    """Computes the requested scores, and writes the record once the images are scored and again at the end.

    Args:
        cfg: as in conf/evaluate.yaml.
        target: what to score.
        device: where networks compute.
        out: the record's path; pictures of nearest neighbours are saved beside it.
        progress: told of the images that were seen.
        fetched: told of the bytes of downloads.

    Returns:
        The scores, and lines to print.

    Raises:
        UserError: a mistake in the options.
        RunError: the family's images are not finite, or the record cannot be written.
    """
    started = time.perf_counter()
    keep_freed_memory()
    data = open_data(target, to_plain(cfg.data), cfg, fetched)
    draws = target.family is None or target.family.makes_images()
    networks = open_networks(cfg, target, data, device) if draws else []
    second, most, unavailable = open_second(cfg, target, data, device, networks[0].name) if draws else (None, 0, None)
    translates = target.family is not None and target.family.can("translate")
    again = target.family is not None and target.family.reconstructs
    against = FolderSource(Path(cfg.against).expanduser(), "against") if cfg.against is not None else None
    values = share_ranges([source for source in (target.pictures, against) if source is not None],
                          data.ranges if data is not None else {})
    sizes = [data.size] if data is not None else []
    sizes += [size for source in (target.pictures, against) if source is not None for size in source.sizes.values()]
    batch_size = max(1, min(cfg.batch_size, int(cfg.megapixels * 1e6 / max(h * w for h, w in sizes))))
    how = How(
        kd_subsets=cfg.kd_subsets, kd_subset_size=cfg.kd_subset_size, neighbours=cfg.neighbours,
        memorisation=cfg.memorisation and not (translates or again), resamples=cfg.resamples, num_reals=cfg.num_reals,
        batch_size=batch_size, seed=cfg.seed, extra=load(cfg.extra, "extra"),
    )
    learned_through = target.family.learned_through if target.family is not None else {}
    panels = [Panel(network.judge(learned_through), how) for network in networks]
    found = Found()
    if second is not None:
        how = replace(how, memorisation=False)
        few = how if translates else replace(how, most=most, num_reals=min(most, how.num_reals or most))
        panels.append(Panel(second.judge(learned_through), few))
    if unavailable is not None:
        found.ruled_out[f"fd_{FOREIGN}"] = unavailable

    def keep() -> None:
        write_record(out, {
            "made": now(),
            "target": target.facts(),
            "scores": {name: dict(zip(("value", "low", "high", "floor"), score, strict=True))
                       for name, score in found.scores.items()},
            "protocol": found.protocol,
            "catalogue": described(found.scores),
            "interval": {"method": "bootstrap standard error, normal", "level": bootstrap.LEVEL,
                         "resamples": cfg.resamples} if cfg.resamples else None,
            "sampling": found.sampling,
            "scores_notes": found.notes,
            "scores_missing": {**found.ruled_out, **found.missing},
            "seconds": round(time.perf_counter() - started, 3),
            **environment(),
        })

    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        notes: list[str] = []
        if not draws:
            _losses(cfg, target, data, found, batch_size)
        elif translates:
            _translations(cfg, target, data, panels, found, batch_size, device, progress)
        else:
            notes = _images(cfg, target, data, against, panels, found, batch_size, device, out, keep, progress)
    keep()
    notes += [f"no {', '.join(names)}  {reason}" for reason, names in by_reason(found.missing).items()]
    notes += [f"values    {line}" for line in values]
    for source in (target.pictures, against):
        notes += [f"left out  {line}" for line in told(source.left_out)] if source is not None else []
    return found, notes


def _images(
    cfg: Any, target: Target, data: Any, against: FolderSource | None, panels: list[Panel], found: Found,
    batch_size: int, device: torch.device, out: Path, keep: Callable[[], None], progress: Report,
) -> list[str]:
    """Scores samples or a folder of pictures."""
    reference, held = open_reference(against, data, target, cfg.split, cfg.test)
    clip = open_clip(cfg, target, device)
    making = None
    facts: dict[str, Any] = {}
    again = target.family is not None and target.family.reconstructs
    if target.family is not None:
        options, n, split = sampling_options(to_plain(cfg)), cfg.num_samples or NUM_SAMPLES, cfg.split
        if again:
            if not target.family.can("upscale"):
                refuse(cfg, ("guidance", "truncation", "classifier"), "reconstructions have no sampling options")
            n, split = min(n, data.count(cfg.test)), cfg.test
            facts |= {"reconstructions": f"of {split}, each image once", **PROTOCOL}
            if reason := no_ssim(data.size):
                found.missing["ssim"] = reason
        guidance = guidance_asked(target.family, {"classifier": cfg.classifier, "options": options,
                                                  "classifier_guidance": cfg.classifier_guidance}, n, run=cfg.run)
        how = Sampling(n, batch_size, cfg.seed, split, cfg.balanced, options, guidance)
        making = Samples(target.family, data, how)
        facts["balanced"] = cfg.balanced
    else:
        assert target.pictures is not None
        n = min(cfg.num_samples or target.pictures.count, target.pictures.count)
    for panel in panels:
        panel.learn(reference)
        panel.measure_floor(held, n)
        for note in panel.notes(n):
            found.note(note)
        found.missing |= panel.missing(n)
        found.ruled_out |= panel.ruled_out()
    if target.family is not None:
        classes = data.classes if data is not None else None
        told = making is not None and making.how.labelled
        condition = "label" if (again or told) and classes else target.family.condition
        reasons = [no_label_accuracy(condition, panel.network.classes, classes) for panel in panels]
        if all(reasons):
            (found.missing if condition == "label" else found.ruled_out)["label_accuracy"] = str(reasons[0])
    if reason := no_floor(n, held.count if held is not None else None):
        more = f"; num_samples={held.count} gives one" if held is not None and held.count > 1 else ""
        (found.ruled_out if cfg.against else found.missing)["floor"] = reason + more
    stream = iter(making) if making is not None else pictures_of(target.pictures, n, batch_size)  # type: ignore[arg-type]
    shown = score_images(stream, n, panels, found, clip=clip, progress=progress,
                         facts=facts, prefix=target.family.score_prefix() if target.family is not None else "")
    if making is not None:
        found.sampling = making.cost()
    keep()
    notes = [show_neighbours(panel, shown, out.with_name(f"{out.stem}_neighbours_{panel.network.name}.png"))
             for panel in panels if panel.limit is not None]
    if clip is not None and isinstance(held, DataSource) and (floor := clip_floor(clip, held, n, batch_size)):
        found.scores["clip_score"] = found.scores["clip_score"]._replace(floor=floor)
    if making is not None:
        assert target.family is not None
        score_attributes(target.family, data, found, making.how, resamples=cfg.resamples, n=cfg.attribute_samples)
    return notes


def open_clip(cfg: Any, target: Target, device: torch.device) -> Judge | None:
    """The requested CLIP.

    Raises:
        UserError: it is missing, or there are no captions.
    """
    if cfg.clip is None:
        return None
    if target.family is None or target.family.condition != "text":
        raise UserError("clip= scores images by their captions, but this run uses none: leave it out")
    return open_judge(cfg.clip, device)


def _losses(cfg: Any, target: Target, data: Any, found: Found, batch_size: int) -> None:
    """Scores a family that makes no images by its own losses on all validation and test images."""
    assert target.family is not None
    refuse(cfg, ("against", "clip", "classifier", "guidance", "truncation", "networks"),
           "a family that makes no images is scored by its own losses, which have no such options")
    for split, prefix in (("validation", ""), (cfg.test, f"{cfg.test}/")):
        losses = held_out_losses(target.family, data, split, cfg.num_samples, batch_size=batch_size, seed=cfg.seed)
        found.add({prefix + name: Estimate(value) for name, value in losses.items()}, {
            "data": data.name, "data_fingerprint": data.fingerprint, "split": split, "batch_size": batch_size,
            "num_samples": min(cfg.num_samples or data.count(split), data.count(split)), "seed": cfg.seed,
        })
    for split in splits_of(data, ("validation", cfg.test)) if target.family.can("score_text") else ():
        scores, facts = retrieval(target.family, data, split, batch_size=batch_size)
        found.add({name: Estimate(value) for name, value in scores.items()}, facts)


def refuse(cfg: Any, names: Sequence[str], why: str) -> None:
    """Refuses options that are given and have no meaning here.

    Raises:
        UserError: names them.
    """
    unused = [name for name in names if cfg[name] is not None]
    unused += [f"sampler.{name}" for name, value in dict(cfg.sampler).items() if value is not None]
    unused += [f"options.{name}" for name in cfg.options]
    if unused:
        raise UserError(f"{', '.join(unused)}: {why}: leave it out")


def named_methods(asked: Any) -> dict[str, dict[str, Any]]:
    """Methods and their options, from a name, a list of names, or a mapping of names to options."""
    if isinstance(asked, dict):
        return {str(name): dict(options or {}) for name, options in asked.items()}
    names = [asked] if isinstance(asked, str) else asked or []
    return {str(name): {} for name in names}


def _translations(
    cfg: Any, target: Target, data: Any, panels: list[Panel], found: Found, batch_size: int, device: torch.device,
    progress: Report = silent,
) -> None:
    """Scores translations of the held-out images."""
    refuse(cfg, ("against", "clip", "classifier", "guidance", "truncation"),
           "a translator is scored on the other side of its data, and its translations have no such options")
    check_lpips(cfg.lpips)
    lpips = None
    if data.has_pairs(cfg.test):
        if reason := no_ssim(data.size):
            found.missing["ssim"] = reason
        lpips = lpips_at_hand(cfg.lpips, cfg.lpips_weights, channels=data.channels, size=data.size,
                              missing=found.missing)
    else:
        names = ("psnr", "ssim", "lpips", *(panel.called("similarity") for panel in panels))
        found.ruled_out |= dict.fromkeys(names, f"the images of {cfg.test} are not paired")
    score_translations(
        cast(Translator, target.family), data, panels, found, split=cfg.test, limit=cfg.num_samples,
        batch_size=batch_size, seed=cfg.seed, lpips=lpips.to(device) if lpips is not None else None,
        methods=named_methods(to_plain(cfg).get("methods")), progress=progress,
    )
