"""Whether images show what their captions describe: attributes read back from samples (condition=text)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from aigc.data.shape_language import CLAIMS, fulfilled
from aigc.images.streams import samples
from aigc.scoring.devices import ALONE, Devices
from aigc.scoring.networks.oracle import agreement, clear, oracle_of, read_back

if TYPE_CHECKING:
    from aigc.models.family import Family

SPLITS = {"seen": "test", "heldout": "heldout", "templates": "templates"}   # name in a score: split of the captions


def reads_back(data: Any, family: "Family") -> bool:
    """Whether the family draws captions, from data that know their attributes and can read them from an image."""
    known = hasattr(data, "attributes")
    return known and family.condition == "text"


def shows_shapes(data: Any, family: "Family") -> bool:
    """Whether the family draws single objects without a condition, on data that can check that an image shows one."""
    single = hasattr(data, "attributes") and data.objects == "1"
    return single and family.condition == "none" and not family.reconstructs


def tables(
    family: "Family", data: Any, n: int, *, batch_size: int, seed: int, devices: Devices = ALONE,
    options: dict[str, Any] | None = None,
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """What is read from n samples, on all devices: the score's prefix, the split that gave the captions, and a table.

    With condition=text, for the captions of seen and of held-out combinations and, where there are any, in sentences
    that training never used: the attributes `found` in the sample and what the caption `asked` for (`Shapes.asked`),
    int64 `(m, k)`. Without a condition, for data of single objects: whether a sample is `clear`, `(m,)`.
    """
    reads = reads_back(data, family)
    if not reads and not shows_shapes(data, family):
        return
    devices.in_turn(lambda: oracle_of(data).to(family.device))
    for name, split in SPLITS.items() if reads else (("clear", "test"),):
        if split not in data.splits:
            continue
        numbers: list[int] = []
        parts = []
        every = data.asked(split) if reads else None
        for part, batch, made in samples(family, data, split, n, batch_size=batch_size, seed=seed, options=options,
                                         rank=devices.rank, world=devices.world):
            if every is not None:
                parts.append({"found": read_back(data, made).cpu(), "asked": every[batch["index"]]})
            else:
                parts.append({"clear": clear(oracle_of(data).to(made.device), made).cpu()})
            numbers += part
        yield f"attributes/{name}/" if reads else "attributes/", split, devices.collect(numbers, parts, n)


def shares_of(table: Mapping[str, Tensor]) -> dict[str, float]:
    """The scores of a table by the end of their names."""
    if "clear" in table:
        return {"clear": table["clear"].float().mean().item()}
    return shares(table["found"], table["asked"])


def shares(found: Tensor, asked: Tensor) -> dict[str, float]:
    """The share of correct attributes `(n, k)` int64: each one, and `all`: everything that the caption says.

    If captions name one or two objects, `all_single` and `all_pair` are the shares for either kind. Of captions in
    the richer language, of which `asked` `(n, 20)` are the claims, see `shape_language.fulfilled`.
    """
    if asked.shape[1] == len(CLAIMS):
        return fulfilled(found, asked)
    scores = agreement(found, asked)
    pair = asked[:, 0] == 2
    if pair.any() and not pair.all():
        for name, rows in (("all_single", ~pair), ("all_pair", pair)):
            scores[name] = agreement(found[rows], asked[rows])["all"]
    return scores
