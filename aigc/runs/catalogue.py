"""The catalogue of scores: what each one is, described once, for whoever measures, records, compares or searches.

A run's summary and the record of an evaluation hold the entries of their scores (`described`), so that who reads them
guesses nothing from a name (`recorded`, `entry_of`). The scores of this package stand here, in plain data, because
records from before they held entries, and records of other programs, are read by this table.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

BETTER = ("less", "more", "neither")
READS = ("features", "logits", "pairs", "captions", "images", "losses")
EVERY = ("data_fingerprint", "split")           # bear on every score that says nothing else
OF_A_NETWORK = (*EVERY, "network_sha256", "resizer", "num_reals", "num_samples", "balanced", "judge_taught")
FRECHET = (*OF_A_NETWORK, "fd_covariance")
KERNEL = (*OF_A_NETWORK, "kd_kernel", "kd_subsets", "kd_subset_size")
AROUND = (*OF_A_NETWORK, "kept", "neighbours")
COPIED = (*OF_A_NETWORK, "searched", "memorised_limit")


@dataclass(frozen=True)
class Entry:
    """What there is to know of a score.

    Attributes:
        name: as in records, `*` in place of a network's name, or of a name's rest after a `/`: `fd_*`, `attributes/*`.
        better: whether `less` or `more` of it is, or `neither`.
        bounds: the least and the largest possible value, None where there is none.
        unit: dB, nats per image; empty for pure numbers.
        reads: what it is computed from, of `READS`.
        facts: the keys of the protocol that bear on it: two values compare if these are equal.
    """

    name: str
    better: str
    bounds: tuple[float | None, float | None] = (None, None)
    unit: str = ""
    reads: tuple[str, ...] = ()
    facts: tuple[str, ...] = EVERY

    def __post_init__(self) -> None:
        if self.better not in BETTER or not {*self.reads} <= {*READS}:
            raise ValueError(f"the score {self.name}: better is one of {', '.join(BETTER)}, and it reads some of "
                             f"{', '.join(READS)}")

    def fits(self, name: str) -> bool:
        """Whether it describes the score of this name, whatever stands before it: `test/a2b/`, `final/`."""
        return _pattern(self.name).fullmatch(name) is not None


PLAIN = tuple(field.name for field in fields(Entry) if field.name != "name")      # what a record holds of an entry


@cache
def _pattern(name: str) -> re.Pattern[str]:
    rest = name.endswith("/*")
    inner = "[^/]+".join(map(re.escape, (name[:-1] if rest else name).split("*")))
    return re.compile(f"(.*[/.])?{inner}{'.+' if rest else ''}", re.IGNORECASE)


def _network(name: str, better: str, least: float | None, most: float | None, facts: tuple[str, ...],
             reads: tuple[str, ...] = ("features",)) -> Entry:
    return Entry(name, better, (least, most), "", reads, facts)


def _loss(name: str, better: str = "less", unit: str = "", least: float | None = None) -> Entry:
    return Entry(f"val/{name}", better, (least, None), unit, ("losses",))


ENTRIES: dict[str, Entry] = {entry.name: entry for entry in (
    *(_network(name, "less", 0, None, FRECHET) for name in ("fd_*", "fid", "fd_*_over_floor", "fid_over_floor")),
    _network("mifid", "less", 0, None, (*FRECHET, *COPIED)),
    *(_network(name, "less", None, None, KERNEL) for name in ("kd_*", "kid")),
    *(_network(name, "more", 1, None, (*OF_A_NETWORK, "is_splits"), ("logits",)) for name in ("is_*", "is")),
    *(_network(f"{name}_*", "more", 0, None if name == "density" else 1, AROUND)
      for name in ("precision", "recall", "density", "coverage")),
    _network("memorised_*", "less", 0, 1, COPIED),
    _network("label_accuracy", "more", 0, 1, OF_A_NETWORK, ("logits",)),
    _network("similarity_*", "more", -1, 1, (*OF_A_NETWORK, "similarity"), ("features", "pairs")),
    Entry("psnr", "more", (0, 100), "dB", ("images", "pairs"), (*EVERY, "psnr")),
    Entry("ssim", "more", (-1, 1), "", ("images", "pairs"), (*EVERY, "ssim")),
    Entry("lpips", "less", (0, None), "", ("images", "pairs"), (*EVERY, "lpips", "lpips_sha256")),
    Entry("cycle_l1", "less", (0, None), "", ("losses",)),          # CycleGAN's own loss, of the round trip
    Entry("clip_score", "more", (0, 100), "", ("images", "captions"),
          (*EVERY, "network_sha256", "resizer", "num_samples", "judge_saw_captions")),
    Entry("retrieval/*", "more", (0, 1), "", ("images", "captions"), (*EVERY, "num_samples", "captions", "pools")),
    Entry("zero_shot/*", "more", (0, 1), "", ("images",), (*EVERY, "num_samples", "prompts")),
    Entry("attributes/*", "more", (0, 1), "", ("images", "captions"), ("data_fingerprint", "attribute_samples")),
    _loss("loss"), _loss("loss/*"), _loss("l1", least=0),
    *(_loss(f"{name}_{side}", least=0) for name in ("cycle", "identity") for side in "ab"),
    *(_loss(name, "more", "nats per image") for name in ("elbo", "iwae", "reconstruction")),
    _loss("kl", unit="nats per image", least=0),
    _loss("bits_per_dim", unit="bits"), *(_loss(f"bits_per_{one}", unit="bits", least=0) for one in ("code", "word")),
    _loss("l2", least=0),
    Entry("val/perplexity", "more", (1, None), "codes", ("losses",)),
    Entry("val/bicubic_psnr", "neither", (0, None), "dB", ("losses",)),    # of held-out images, to be beaten
    Entry("val/bicubic_psnr/*", "neither", (0, None), "dB", ("losses",)),  # of each stage of a cascade
    *(Entry(f"val/{name}", "more", (0, 1), "", ("losses",)) for name in ("accuracy", "accuracy_at_*")),
    Entry("val/codes_used", "more", (0, 1), "", ("losses",)),
    _loss("logits/held_out", "neither"),
)}


def register(*entries: Entry) -> None:
    """Adds entries of scores that are to be measured.

    Raises:
        ValueError: a name is there with another entry.
    """
    for entry in entries:
        if ENTRIES.setdefault(entry.name, entry) != entry:
            raise ValueError(f"the score {entry.name} is in the catalogue already, and differs")


def entry_of(name: str, known: Mapping[str, Entry] | None = None) -> Entry | None:
    """The entry that describes the score `name`, of what a record holds (`known`), else of the catalogue; the most
    exact of several. None: nothing is known but the name.
    """
    for entries in (known or {}, ENTRIES):
        fitting = [entry for entry in entries.values() if entry.fits(name)]
        if fitting:
            return max(fitting, key=lambda entry: len(entry.name.replace("*", "")))
    return None


def described(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The entries of these scores as a record holds them, by their names."""
    found = {entry.name: entry for name in names if (entry := entry_of(name))}
    return {name: {key: list(value) if isinstance(value, tuple) else value for key in PLAIN
                   for value in (getattr(entry, key),)} for name, entry in sorted(found.items())}


def recorded(record: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries that a run's summary or an evaluation's record holds; what is no entry is left out."""
    held, found = record.get("catalogue"), {}
    for name, told in held.items() if isinstance(held, Mapping) else ():
        try:
            plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                     for key, value in told.items() if key in PLAIN}
            found[name] = Entry(name, **plain)
        except (AttributeError, TypeError, ValueError):         # of another program, or edited by hand
            continue
    return found


# ---- scores that nothing describes: what other programs log ----

HIGHER = ("psnr", "ssim", "similarity", "attributes", "label", "accuracy", "acc", "precision", "recall", "density",
          "coverage", "clip", "elbo", "reconstruction")
LOWER = ("loss", "error", "fd", "kd", "fid", "kid", "mifid", "memorised", "lpips")      # whatever stands beside them


def words(name: str) -> list[str]:
    """`fd` and `squeezenet` of `test/a2b/fd_squeezenet`."""
    return re.split(r"[/.]", name.lower())[-1].split("_")


def higher_is_better(name: str, known: Mapping[str, Entry] | None = None) -> bool:
    """Whether more of a score is better, by its entry; without one by its name: of `PSNR`, `val_accuracy`."""
    entry = entry_of(name, known)
    if entry is not None:
        return entry.better == "more"
    found = words(name)
    return found[0] == "is" or (not {*found} & {*LOWER} and bool({*found} & {*HIGHER}))


def measures(name: str, known: Mapping[str, Entry] | None = None) -> bool:
    """Whether a score says how good pictures are, as far as is known; a loss does not."""
    entry = entry_of(name, known)
    return "losses" not in entry.reads if entry is not None else higher_is_better(name)
