"""Shapes in two styles: the same scenes where pairs are promised, other ones where not."""

import pytest
import torch

from aigc.data.scenes import Scenes
from aigc.data.shape_pairs import ShapesPaired, ShapesUnpaired
from aigc.data.shapes import Shapes
from aigc.errors import UserError
from aigc.scoring.networks import oracle


def unpaired(**options: object) -> ShapesUnpaired:
    return ShapesUnpaired(**{"batch_size": 8, "train": 30, "validation": 9, "test": 9, "size": 32, **options})  # type: ignore[arg-type]


def paired(**options: object) -> ShapesPaired:
    return ShapesPaired(**{"batch_size": 8, "train": 30, "validation": 9, "test": 9, "size": 32, **options})  # type: ignore[arg-type]


def test_styles_draw_the_same_scene_and_only_pairs_show_the_same_one() -> None:
    data = unpaired()
    split = data.pair_split("test")
    flat = Scenes(0, "test", objects="mixed", style="flat")
    neon = Scenes(0, "test", objects="mixed", style="neon")
    index = torch.arange(9)
    assert torch.equal(flat.attributes(index), neon.attributes(index))
    assert torch.equal(split.a.images, flat.images(index)) and torch.equal(split.b.images, neon.images(index))  # type: ignore[arg-type]
    assert [data.has_pairs(s) for s in ("train", "validation", "test")] == [False, True, True]
    train = data.pair_split("train")
    assert torch.equal(train.b.images, Scenes(0, "other", objects="mixed", style="neon").images(torch.arange(30)))  # type: ignore[arg-type]
    one, other = (Scenes(0, stream, objects="mixed").attributes(torch.arange(30)) for stream in ("train", "other"))
    assert int((one == other).all(1).sum()) < 3


def test_the_styles_are_far_apart_and_keep_what_is_drawn() -> None:
    data = unpaired(test=200)
    split = data.pair_split("test")
    a, b = split.a.images.float(), split.b.images.float()  # type: ignore[union-attr]
    assert a.mean() > 200 and b.mean() < 80                      # day and night
    empty = Scenes(0, "test", objects="mixed", size=(32, 32))
    empty._object = lambda *_: None  # type: ignore[method-assign]
    drawn = (a - empty.images(torch.arange(200)).float()).abs().amax(1) > 20
    bright = b.amax(1) > 150
    assert float((bright & drawn).sum() / bright.sum()) > 0.97   # light is where objects are
    assert float(b[bright.logical_not()[:, None].expand_as(b)].mean()) < 60


def test_drawings_and_paintings_are_pairs_everywhere() -> None:
    data = paired()
    assert data.kind == "paired" and all(data.has_pairs(s) for s in ("train", "validation", "test"))
    batch = next(iter(data.train_dataloader()))
    target = data.pair_split("train").b.images[batch["index"]]  # type: ignore[index]
    assert torch.equal(batch["target"], target)
    painted = Shapes(batch_size=8, train=30, validation=9, test=9, heldout=9, objects="mixed").images("train")
    assert torch.equal(data.pair_split("train").b.images, painted)  # type: ignore[arg-type]
    assert 2 < (batch["source"].float() - batch["target"].float()).abs().mean() < 40


def test_they_are_deterministic_stream_and_change_with_what_they_show() -> None:
    memory, streamed = unpaired(flip=True), unpaired(flip=True, memory_gb=1e-9, workers=0)
    one, other = iter(memory.train_dataloader()), iter(streamed.train_dataloader())
    for _ in range(6):
        x, y = next(one), next(other)
        assert all(torch.equal(x[key], y[key]) for key in ("a", "b", "index"))
    assert memory.fingerprint == streamed.fingerprint
    prints = set()
    for data in (unpaired(), paired(), unpaired(size=[24, 40]), unpaired(objects=1), unpaired(split_seed=1),
                 unpaired(train=31)):
        data.setup()
        prints.add(data.fingerprint)
    assert len(prints) == 6
    assert unpaired(size=[24, 40]).images("test").shape[2:] == (24, 40)


def test_bad_options_are_one_sentence() -> None:
    for options, words in (({"objects": 3}, "data.objects '3'"), ({"size": 8}, "too small"),
                           ({"test": 0}, "data.test must be a number of images above 0")):
        with pytest.raises(UserError, match=words):
            unpaired(**options)


def test_shapes_read_their_own_images_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def small(size: tuple[int, int], *, language: str) -> oracle.ShapesOracle:
        assert language == "plain"
        asked.append(size)
        return oracle.ShapesOracle(size, width=2).eval()

    monkeypatch.setattr(oracle, "shapes_oracle", small)
    data = Shapes(batch_size=8, train=20, validation=9, test=9, heldout=9, size=24)
    found = oracle.read_back(data, data.images("test"))
    assert found.shape == data.attributes("test").shape and found.dtype == torch.int64
    oracle.read_back(data, data.images("heldout", limit=2))
    assert asked == [(24, 24)]                                   # the oracle is made once
    assert data.texts("test", limit=2) == data.split("test").texts[:2]  # type: ignore[index]
