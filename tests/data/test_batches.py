"""Training batches are pure functions of (seed, number, global batch); measuring sees every image once."""

import torch

from aigc.data.batches import Endless, EvalBatches, TrainBatches, stream
from aigc.data.split import Split, hold_out


def numbered(n: int) -> Split:
    """Image i is 1 x 2 x 4 pixels and says i in its left column and 0 elsewhere, so that a mirrored one shows."""
    images = torch.zeros(n, 1, 2, 4, dtype=torch.uint8)
    images[:, :, :, 0] = torch.arange(1, n + 1, dtype=torch.uint8)[:, None, None]
    return Split(images, labels=torch.arange(n) % 3, texts=[f"image {i}" for i in range(n)])


def batches(n: int, *, batch_size: int, rank: int = 0, world: int = 1, seed: int = 5, flip: bool = True):
    return TrainBatches(numbered(n), batch_size=batch_size, seed=seed, rank=rank, world=world, flip=flip)


def test_every_image_comes_once_an_epoch_and_epochs_differ() -> None:
    epochs = [stream(3, 17, 17 * e, 17 * (e + 1)) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(17))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], stream(4, 17, 0, 17))


def test_a_batch_across_the_end_of_an_epoch_takes_from_both() -> None:
    whole = stream(1, 10, 0, 30)
    assert torch.equal(stream(1, 10, 7, 23), whole[7:23])


def test_fewer_images_than_a_batch_wrap_around() -> None:
    index = batches(3, batch_size=8)[0]["index"]
    assert index.shape == (8,)
    assert torch.bincount(index).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_starting_at_batch_k_gives_the_same_batches_as_never_having_stopped() -> None:
    data = batches(50, batch_size=7)
    numbers = iter(Endless(0))
    unbroken = [data[next(numbers)] for _ in range(20)]
    resumed = iter(Endless(12))
    for k in range(12, 20):
        again = batches(50, batch_size=7)[next(resumed)]
        assert torch.equal(again["image"], unbroken[k]["image"])
        assert torch.equal(again["index"], unbroken[k]["index"])
        assert again["text"] == unbroken[k]["text"]


def test_ranks_partition_the_global_batch_and_change_neither_images_nor_augmentation() -> None:
    for k in (0, 3, 9):
        alone = batches(50, batch_size=12)[k]
        ranks = [batches(50, batch_size=4, rank=r, world=3)[k] for r in range(3)]
        assert torch.equal(torch.cat([part["index"] for part in ranks]), alone["index"])
        assert torch.equal(torch.cat([part["image"] for part in ranks]), alone["image"])
        assert [text for part in ranks for text in part["text"]] == alone["text"]


def test_labels_texts_and_pixels_belong_to_the_index() -> None:
    batch = batches(50, batch_size=40, flip=False)[2]
    assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"] + 1)
    assert torch.equal(batch["label"], batch["index"] % 3)
    assert batch["text"] == [f"image {i}" for i in batch["index"].tolist()]


def test_augmentation_mirrors_about_half_repeatably_and_anew_each_epoch() -> None:
    data = batches(200, batch_size=200)
    mirrored = [data[k]["image"][:, 0, 0, 3] > 0 for k in (0, 1)]
    assert 70 < int(mirrored[0].sum()) < 130
    assert torch.equal(mirrored[0], batches(200, batch_size=200)[0]["image"][:, 0, 0, 3] > 0)
    assert not torch.equal(mirrored[0], mirrored[1])
    assert not (batches(200, batch_size=200, flip=False)[0]["image"][:, 0, 0, 3] > 0).any()


def test_measuring_sees_each_image_once_in_a_fixed_order_whatever_the_batch_and_ranks() -> None:
    split = numbered(23)

    def order(batch_size: int, rank: int = 0, world: int = 1, limit: int | None = None, seed: int = 0) -> list[int]:
        data = EvalBatches(split, batch_size=batch_size, seed=seed, limit=limit, rank=rank, world=world)
        return [i for k in range(len(data)) for i in data[k]["index"].tolist()]

    whole = order(5)
    assert sorted(whole) == list(range(23))
    assert order(23) == order(4) == whole
    assert order(4, limit=9) == whole[:9]
    assert order(4, rank=0, world=2) == whole[0::2]
    assert order(4, rank=1, world=2) == whole[1::2]
    assert order(4, seed=1) != whole


def test_held_out_rows_are_disjoint_complete_stable_and_change_with_the_seed() -> None:
    kept, held = hold_out(100, 0.2, 7, what="data.validation")
    assert sorted(kept.tolist() + held.tolist()) == list(range(100))
    assert len(held) == 20
    assert torch.equal(held, hold_out(100, 20, 7, what="data.validation")[1])
    assert not torch.equal(held, hold_out(100, 20, 8, what="data.validation")[1])


def test_groups_stay_together() -> None:
    groups = [i // 4 for i in range(80)]
    kept, held = hold_out(80, 0.1, 0, what="data.test", groups=groups)
    assert len(held) == 8
    assert not {groups[i] for i in kept.tolist()} & {groups[i] for i in held.tolist()}
