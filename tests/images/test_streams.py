"""The items that are scored: the same ones however they are dealt out."""

import torch

from aigc.data.digits import Digits
from aigc.images.streams import balanced_labels, items, seeds_of


def drawn(n, *, batch_size, world=1):
    data = Digits(batch_size=16)
    found = {}
    for rank in range(world):
        for numbers, batch in items(data, "test", n, batch_size=batch_size, rank=rank, world=world):
            assert len(numbers) == len(batch["image"])
            for number, index in zip(numbers, batch["index"].tolist(), strict=True):
                assert number not in found
                found[number] = index
    return [found[k] for k in range(n)]


def test_neither_batch_size_nor_ranks_change_the_items():
    count = Digits(batch_size=16).count("test")
    n = 2 * count + 7  # more than there are: the order starts again
    one = drawn(n, batch_size=50)
    assert one == drawn(n, batch_size=33) == drawn(n, batch_size=20, world=2) == drawn(n, batch_size=20, world=3)
    assert sorted(one[:count]) == list(range(count)) and one[count : 2 * count] == one[:count]


def test_fewer_items_are_the_first_of_more():
    assert drawn(40, batch_size=16) == drawn(100, batch_size=16)[:40]


def test_seeds_belong_to_numbers():
    assert seeds_of([3, 5], 0) == [seeds_of([3], 0)[0], seeds_of([5], 0)[0]]
    assert len(set(seeds_of(range(1000), 0) + seeds_of(range(1000), 1))) == 2000


def test_balanced_labels_are_balanced():
    assert torch.bincount(balanced_labels(range(2000), 10)).tolist() == [200] * 10
