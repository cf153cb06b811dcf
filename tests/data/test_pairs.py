"""Two-sided batches: pure functions of their number, equal crops for pairs, own orders for unpaired sides."""

import pytest
import torch
from torch import Tensor

from aigc.data.pairs import PAIRED, UNPAIRED, PairBatches, PairData, PairSplit
from aigc.data.split import Split

SIDE = 12


def numbered(n: int, first: int, size: int = SIDE) -> Split:
    """Image i has three channels: its number + `first`, the row and the column of every pixel."""
    rows = torch.arange(size, dtype=torch.uint8)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    images[:, 0] = (torch.arange(n) + first).to(torch.uint8)[:, None, None]
    images[:, 1], images[:, 2] = rows[:, None], rows[None]
    return Split(images)


def split(n_a: int = 10, n_b: int = 7, keys: tuple[str, str] = UNPAIRED) -> PairSplit:
    return PairSplit(numbered(n_a, 0), numbered(n_b, 100), pairs=n_a == n_b, keys=keys)


def batches(data: PairSplit, *, size: int = 8, batch_size: int = 4, rank: int = 0, world: int = 1, flip: bool = True,
            seed: int = 3) -> PairBatches:
    return PairBatches(data, size=(size, size), batch_size=batch_size, seed=seed, rank=rank, world=world, flip=flip)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def corner(images: Tensor) -> list[tuple[int, int, bool]]:
    """(top, left, mirrored) of crops of `numbered` images, each checked to be a whole rectangle."""
    found = []
    for image in images.long():
        rows, columns = image[1], image[2]
        mirrored = bool(columns[0, 0] > columns[0, -1])
        columns = columns.flip(1) if mirrored else columns
        top, left = int(rows[0, 0]), int(columns[0, 0])
        assert torch.equal(rows, torch.arange(top, top + len(rows))[:, None].expand_as(rows))
        assert torch.equal(columns, torch.arange(left, left + columns.shape[1])[None].expand_as(columns))
        found.append((top, left, mirrored))
    return found


@pytest.mark.parametrize("keys", [UNPAIRED, PAIRED])
def test_batch_k_is_a_function_of_its_number_and_the_same_on_any_number_of_ranks(keys: tuple[str, str]) -> None:
    data = split(10, 10, keys)
    for k in (0, 2, 7):
        alone = batches(data, batch_size=6)[k]
        assert equal(alone, batches(data, batch_size=6)[k])
        parts = [batches(data, batch_size=3, rank=rank, world=2)[k] for rank in (0, 1)]
        assert equal(alone, {key: torch.cat([part[key] for part in parts]) for key in alone})
        assert not equal(alone, batches(data, batch_size=6, seed=4)[k])


def test_unpaired_sides_walk_through_their_own_permutations() -> None:
    data = batches(split(10, 7), batch_size=5, flip=False, size=SIDE)
    a, b = (torch.cat([data[k][key][:, 0, 0, 0] for k in range(14)]).tolist() for key in UNPAIRED)
    assert all(sorted(a[start : start + 10]) == list(range(10)) for start in range(0, 70, 10))
    assert all(sorted(b[start : start + 7]) == list(range(100, 107)) for start in range(0, 70, 7))
    assert torch.equal(data[3]["index"], data[3]["a"][:, 0, 0, 0].long())
    meetings = {(x, y) for x, y in zip(a, b, strict=True)}
    assert len(meetings) > 40                      # of 70: not the same partners again and again


def test_sides_of_equal_length_do_not_keep_their_partners() -> None:
    data = batches(split(9, 9), batch_size=9, size=SIDE)
    levels = [[data[k][key][:, 0, 0, 0] for key in UNPAIRED] for k in range(8)]
    same = [int((a == b - 100).sum()) for a, b in levels]
    assert sum(same) < 24 and min(same) < 3


def test_crops_lie_within_the_image_reach_every_place_and_differ_between_unpaired_sides() -> None:
    data = batches(split(), batch_size=100)
    batch = data[0]
    a, b = corner(batch["a"]), corner(batch["b"])
    for found in (a, b):
        assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(SIDE - 8 + 1))
        assert 30 < sum(mirrored for _, _, mirrored in found) < 70
    assert a != b and corner(data[1]["a"]) != a


def test_both_images_of_a_pair_are_cropped_and_mirrored_alike() -> None:
    data = batches(split(10, 10, PAIRED), batch_size=40)
    for k in (0, 5):
        batch = data[k]
        assert corner(batch["source"]) == corner(batch["target"])
        assert torch.equal(batch["source"][:, 0] + 100, batch["target"][:, 0])


def test_training_images_stay_as_they_were() -> None:
    data = split(10, 10)
    before = data.a.images.clone()  # type: ignore[union-attr]
    for k in range(5):
        batches(data, size=SIDE)[k]
    assert torch.equal(data.a.images, before)  # type: ignore[arg-type]


class Numbers(PairData):
    """Sides of 10 and 7 training images, pairs in the test."""

    def load(self) -> dict[str, Split]:
        small = {"train": (numbered(10, 0, 8), numbered(7, 100, 8)),
                 "validation": (numbered(5, 20, 8), numbered(3, 120, 8)),
                 "test": (numbered(4, 40, 8), numbered(4, 140, 8))}
        return self.pair_splits(small, pairs={"train": False, "validation": False, "test": True},
                                larger=(numbered(10, 0), numbered(7, 100)))


class Pairs(Numbers):
    kind = "paired"

    def load(self) -> dict[str, Split]:
        sides = {name: (numbered(6, first, 8), numbered(6, 100 + first, 8))
                 for name, first in (("train", 0), ("validation", 20), ("test", 40))}
        return self.pair_splits(sides, pairs=dict.fromkeys(sides, True), larger=(numbered(6, 0), numbered(6, 100)))


def test_measuring_repeats_the_shorter_side_and_says_where() -> None:
    data = Numbers(batch_size=2, flip=True)
    assert (data.count("validation"), data.counts("validation"), data.counts("train")) == (5, (5, 3), (10, 7))
    assert [data.has_pairs(name) for name in ("train", "validation", "test")] == [False, False, True]
    found = {int(i): (int(a), int(b)) for batch in data.eval_dataloader("validation")
             for i, a, b in zip(batch["index"], batch["a"][:, 0, 0, 0], batch["b"][:, 0, 0, 0], strict=True)}
    assert found == {k: (20 + k, 120 + k % 3) for k in range(5)}
    whole = torch.cat([batch["index"] for batch in data.eval_dataloader("validation")])
    for rank in (0, 1):
        mine = [batch["index"] for batch in data.eval_dataloader("validation", rank=rank, world=2)]
        assert torch.equal(whole[rank::2], torch.cat(mine))


def test_measuring_shows_whole_images_unmirrored_also_of_the_training_split() -> None:
    data = Numbers(batch_size=2, flip=True)
    for name in ("train", "test"):
        for batch in data.eval_dataloader(name):
            assert corner(batch["a"]) == corner(batch["b"]) == [(0, 0, False)] * len(batch["index"])
    assert data.size == (8, 8) and next(iter(data.train_dataloader()))["a"].shape[2:] == (8, 8)


def test_images_are_both_sides_one_after_the_other_and_have_no_labels() -> None:
    data = Numbers(batch_size=3)
    images = data.images("train")
    assert images[:, 0, 0, 0].tolist() == [*range(10), *range(100, 107)]
    assert torch.equal(data.images("train", limit=12), images[:12])
    assert data.labels("train") is None and data.texts("train") is None


def test_all_images_of_a_batch_become_floats() -> None:
    for data in (Numbers(batch_size=3), Pairs(batch_size=3)):
        batch = next(iter(data.train_dataloader()))
        ready = data.prepare(batch, "cpu")
        for key in PAIRED if data.kind == "paired" else UNPAIRED:
            assert torch.equal(ready[key], batch[key].float() / 127.5 - 1)
        assert torch.equal(ready["index"], batch["index"])


@pytest.mark.parametrize("late", [False, True])
def test_pairs_given_to_an_unpaired_family_part_in_training_and_stay_together_in_tests(late: bool) -> None:
    data = Pairs(batch_size=6, flip=True)
    if late:
        data.setup()
    data.unpair()
    data.setup()
    assert data.kind == "unpaired" and data.has_pairs("test")
    loader = iter(data.train_dataloader())
    meetings = set()
    for _ in range(6):
        batch = next(loader)
        assert set(batch) == {"a", "b", "index"}
        meetings |= set(zip(batch["a"][:, 0, 0, 0].tolist(), batch["b"][:, 0, 0, 0].tolist(), strict=True))
    assert len(meetings) > 15
    for batch in data.eval_dataloader("test"):
        assert torch.equal(batch["a"][:, 0] + 100, batch["b"][:, 0])
    paired = Pairs(batch_size=6)
    paired.setup()
    assert data.fingerprint == paired.fingerprint   # the same images: what is cached of them stays good


def test_training_goes_on_where_it_stopped() -> None:
    unbroken = iter(Numbers(batch_size=4, flip=True).train_dataloader())
    expected = [next(unbroken) for _ in range(9)]
    first = Numbers(batch_size=4, flip=True)
    first.start_batch = 6
    state = first.state_dict()
    again = Numbers(batch_size=4, flip=True)
    again.load_state_dict(state)
    resumed = iter(again.train_dataloader())
    assert all(equal(next(resumed), expected[k]) for k in range(6, 9))
