"""Scores with how they were measured, and which of them may be compared."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aigc.runs.catalogue import ENTRIES, EVERY, Entry, entry_of, recorded, words
from aigc.runs.entry import Run

ASIDE = (   # not how a score was measured: results, random draws, and names that stand beside a fingerprint or a hash
    "metric", "network", "network_weights", "network_task", "network_accuracy", "data", "seed", "floor", "floor_final",
    "num_samples_final", "attribute_samples", "splits", "directions", "identity", "reference",
)
STATED = (  # by every protocol, or they differ from those that state it
    "network_sha256", "num_samples", "num_reals", "resizer", "data_fingerprint", "split", "judge_taught",
)
AXES = ("step", "images", "seconds")
COURSE = {"epoch", "step", "steps", "iteration", "lr", "learning", "time", "sec", "second", "seconds", "minutes",
          "fps", "speed", "throughput"}     # words of what other programs log that is no score
WORDS = {"network_sha256": "weights of the feature network", "num_samples": "images generated",
         "num_reals": "reference images", "data_fingerprint": "data", "split": "reference split", "counts": "images",
         "judge_taught": "whether the model learned through the feature network"}


@dataclass(frozen=True)
class Score:
    """One number and how it was measured.

    Attributes:
        value: at the best checkpoint for the monitored score of a training run, else at the end.
        low, high: its interval, where one was measured.
        facts: the parts of the protocol that bear on this score; two scores compare when these are equal.
        shown: the protocol as recorded, for people.
        evaluation: the record of `aigc.evaluate` it comes from; empty: from training.
        checkpoint: whose score it is: `best`, `last` or another.
        entry: what it is, as its record or the catalogue says; None: nothing is known but the name.
    """

    name: str
    value: float
    facts: dict[str, Any]
    shown: dict[str, Any]
    low: float | None = None
    high: float | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = "last"
    entry: Entry | None = None


def measured(name: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of the score `name`.

    What a run's says of a second network, and in `others` of scores that these list, replaces what it says of the
    first network.
    """
    first = {key: value for key, value in protocol.items() if key not in ("second", "others")}
    second, others = protocol.get("second"), protocol.get("others")
    for other in (second, *(others if isinstance(others, list) else ())):
        listed = other.get("scores") if isinstance(other, Mapping) else None
        if isinstance(listed, list) and (name in listed or (other is second and name.split("/")[-1] in listed)):
            return {**first, **{key: value for key, value in other.items() if key != "scores"}}
    return first


def facts(name: str, protocol: Mapping[str, Any], known: Mapping[str, Entry] | None = None) -> dict[str, Any]:
    """The parts of a protocol that bear on the score `name`, as its entry says, of the record (`known`) or of the
    catalogue. What no entry names, bears on all scores; on a score without an entry also what bears on `EVERY`.
    """
    entry, protocol = entry_of(name, known), measured(name, protocol)
    named = {fact for one in (*ENTRIES.values(), *(known or {}).values()) for fact in one.facts}
    own = entry.facts if entry is not None else EVERY
    kept = {key: value for key, value in protocol.items() if key in own or key not in (*ASIDE, *named)}
    if name.startswith("final/") and "num_samples" in kept and protocol.get("num_samples_final") is not None:
        kept["num_samples"] = protocol["num_samples_final"]
    if "attribute_samples" in own:
        kept["num_samples"] = kept.pop("attribute_samples", protocol.get("num_samples"))
    if isinstance(splits := protocol.get("splits"), dict):
        kept["counts"] = splits.get("test" if name.startswith("test/") else "validation")
    if not kept.get("data_fingerprint") and protocol.get("data"):
        kept["data_fingerprint"] = protocol["data"]
    return kept


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What two scores' facts disagree on, in words; empty: the scores were measured alike.

    A fact that only one of them states counts if every protocol should state it.
    """
    found = []
    for key in sorted({*a, *b}):
        stated = key in a and key in b
        if a.get(key) != b.get(key) and (stated or key in STATED):
            words = WORDS.get(key, key.replace("_", " "))
            found.append(f"{words} ({_short(a.get(key))} and {_short(b.get(key))})")
    return found


def _short(value: Any) -> str:
    if value is None:
        return "not stated"
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    is_hash = len(text) >= 16 and set(text) <= set("0123456789abcdef")
    return text[:8] if is_hash else text


def describe(protocol: Mapping[str, Any]) -> str:
    """A protocol in a line: metric-independent, for the legend of a table."""
    parts = []
    if protocol.get("network"):
        weights = f" ({str(protocol['network_sha256'])[:8]})" if protocol.get("network_sha256") else ""
        parts.append(f"{protocol['network']}{weights}")
    if protocol.get("num_samples"):
        parts.append(f"{protocol['num_samples']:,} images")
    if protocol.get("num_reals"):
        parts.append(f"against {protocol['num_reals']:,} of {protocol.get('data')} {protocol.get('split')}")
    elif protocol.get("data"):
        parts.append(f"{protocol['data']} {protocol.get('split') or ''}".strip())
    if protocol.get("resizer") not in (None, "none"):
        parts.append(str(protocol["resizer"]))
    return ", ".join(parts) or "no protocol recorded"


def by_reason(missing: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of scores that are missing, by the reason that they share."""
    found: dict[str, list[str]] = {}
    for name, reason in missing.items():
        found.setdefault(reason, []).append(name)
    return found


def notes_of(record: Mapping[str, Any]) -> list[str]:
    """What a run's summary or an evaluation's record says there is to think of its scores."""
    notes = record.get("scores_notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def missing_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Why scores could not be taken, by name, as a run's summary or an evaluation's record says."""
    missing = record.get("scores_missing")
    return {name: str(reason) for name, reason in missing.items()} if isinstance(missing, dict) else {}


def why_missing(name: str, missing: Mapping[str, str]) -> str | None:
    """Why a score is missing: its own reason (`test/psnr`), or that of its kind (`psnr`); None: none is recorded."""
    parts = set(name.split("/"))
    fitting = [key for key in missing if set(key.split("/")) <= parts and key.split("/")[-1] == name.split("/")[-1]]
    best = max(fitting, key=lambda key: key.count("/"), default=None)
    return None if best is None else missing[best]


def monitored(run: Run) -> str | None:
    """The score that says which checkpoint of the run is best."""
    scores = run.summary.get("scores")
    return scores.get("monitor") if isinstance(scores, dict) else None


def scores_of(run: Run) -> dict[str, list[Score]]:
    """Every score of a run by name, the most informative last: evaluations that sampled with options of their own,
    those of another checkpoint than training's score is of, training, the other evaluations; each oldest first.
    """
    found: dict[str, list[Score]] = {}
    scores, protocol = run.summary.get("scores"), run.summary.get("protocol")
    scores = scores if isinstance(scores, dict) else {}
    protocol = protocol if isinstance(protocol, dict) else {}
    monitor, best, known = str(scores.get("monitor")), scores.get("best"), recorded(run.summary)
    at_best = (line.get("images") for line in run.history if best is not None and line.get(monitor) == best)
    seen = {"last": run.summary.get("images"), "best": next(at_best, None)}         # images, where they are known
    values = scores.get("last") or last_scored(run)
    for name, value in values.items():
        checkpoint = "best" if name == monitor and best is not None else "last"
        value = best if checkpoint == "best" else value
        if not isinstance(value, int | float) or name in AXES:
            continue
        if name.startswith("val/") and run.source == "aigc":    # a loss of the family's own: of no other family
            bearing = {"family": run.family, "data_fingerprint": protocol.get("data_fingerprint", run.data)}
            shown = {"data": run.data, "split": "validation"}
        else:
            bearing = facts(name, protocol or {"data": run.data}, known)
            shown = _shown(name, protocol or {"data": run.data})
        found[name] = [Score(name, value, bearing, shown, checkpoint=checkpoint, entry=entry_of(name, known))]
    trained = {name: score.checkpoint for name, (score,) in found.items()}
    for record in run.evaluations:
        entries, protocols, target = record.get("scores"), record.get("protocol"), record.get("target")
        known = recorded(record)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if not isinstance(entry, dict) or not isinstance(entry.get("value"), int | float):
                continue
            measured = protocols.get(name) if isinstance(protocols, dict) else None
            measured = measured if isinstance(measured, dict) else {}
            own = trained.get(name)
            checkpoint = _checkpoint(target if isinstance(target, dict) else {}, own, seen.get(str(own)))
            found.setdefault(name, []).append(Score(
                name, entry["value"], facts(name, measured, known), _shown(name, measured),
                entry.get("low"), entry.get("high"), record, checkpoint, entry_of(name, known),
            ))
    return {name: sorted(entries, key=lambda score: _weight(score, trained.get(score.name)))
            for name, entries in found.items()}


def _checkpoint(target: Mapping[str, Any], own: str | None, seen: Any) -> str:
    """Which checkpoint an evaluation scored; `own`, that of training's score, if it is the one of `seen` images."""
    name, images = str(target.get("checkpoint")), target.get("images")
    if own is None or images is None or seen is None:
        return name
    return own if images == seen else f"an earlier {name}" if name == own else name


def _weight(score: Score, own: str | None) -> int:
    sampling = score.evaluation.get("sampling")
    if isinstance(sampling, dict) and sampling.get("options"):
        return 0
    return 2 if not score.evaluation else 3 if own in (None, score.checkpoint) else 1


def last_scored(run: Run) -> dict[str, Any]:
    """The newest line of the history that a scoring wrote; empty where there is none.

    W&B runs do not tell scores from losses: the last value of everything but the course of training.
    """
    if run.source == "wandb":
        return {name: value for line in run.history for name, value in line.items()
                if name in AXES or not COURSE & {*words(name)}}
    known = recorded(run.summary)

    def scored(name: str) -> bool:
        entry = entry_of(name, known)
        return name.startswith("val/") or (entry is not None and bool({"features", "logits"} & {*entry.reads}))

    return next((line for line in reversed(run.history) if any(map(scored, line))), {})


def _shown(name: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    protocol = measured(name, protocol)
    final = name.startswith("final/") and protocol.get("num_samples_final")
    return {**protocol, "num_samples": final or protocol.get("num_samples")}


def alike(name: str, candidates: Sequence[Iterable[Score]]) -> tuple[list[Score | None], list[int], list[Score]]:
    """One score of each run, chosen so that as many as possible were measured alike.

    Args:
        name: of the score; candidates of another name do not count.
        candidates: each run's scores, the most informative last.

    Returns:
        The score of each run or None; the number of its protocol, 0 for the one that most runs have, -1 without a
        score; and an example of each protocol, in that order.
    """
    groups: list[Score] = []
    known: dict[str, int] = {}
    placed: list[list[tuple[int, Score]]] = []
    for row in candidates:
        places = []
        for score in row:
            if score.name != name:
                continue
            key = json.dumps(score.facts, sort_keys=True, default=str)
            if key not in known:
                same = (k for k, other in enumerate(groups) if not differences(score.facts, other.facts))
                known[key] = next(same, len(groups))
                groups += [score] if known[key] == len(groups) else []
            places.append((known[key], score))
        placed.append(places)
    sizes = [sum(any(k == group for k, _ in places) for places in placed) for group in range(len(groups))]
    order = sorted(range(len(groups)), key=lambda k: -sizes[k])
    rank = {group: place for place, group in enumerate(order)}
    chosen: list[Score | None] = []
    numbers = []
    for places in placed:
        best = min((rank[group] for group, _ in places), default=-1)
        chosen.append(next((score for group, score in reversed(places) if rank[group] == best), None))
        numbers.append(best)
    used = sorted({number for number in numbers if number >= 0})
    return chosen, [used.index(k) if k >= 0 else -1 for k in numbers], [groups[order[k]] for k in used]
