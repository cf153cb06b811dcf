"""Rendered shapes: repeatable, balanced, true to their captions, and without what is held out."""

import hashlib

import pytest
import torch

from aigc.data.scenes import BACKGROUNDS, COLOURS, COLUMNS, SIZES, STREAMS, Scenes, caption, held_out, label
from aigc.data.shapes import Shapes
from aigc.errors import UserError

COLUMN = {name: k for k, name in enumerate(COLUMNS)}


def attributes(split: str, objects: str = "mixed", n: int = 4000) -> torch.Tensor:
    return Scenes(0, split, objects=objects).attributes(torch.arange(n))


def objects_of(row: torch.Tensor) -> list[tuple[int, int, int]]:
    a = {name: int(row[k]) for name, k in COLUMN.items()}
    one = [(a["size"], a["colour"], a["shape"])]
    return one + ([(a["size2"], a["colour2"], a["shape2"])] if a["count"] == 2 else [])


def test_ten_of_seventy_combinations_are_held_out_and_every_pair_is_still_seen() -> None:
    every = [(z, c, s) for z in range(2) for c in range(7) for s in range(5)]
    seen = [one for one in every if not held_out(*one)]
    assert len(every) - len(seen) == 10
    assert {(z, c) for z, c, _ in seen} == {(z, c) for z in range(2) for c in range(7)}
    assert {(z, s) for z, _, s in seen} == {(z, s) for z in range(2) for s in range(5)}
    assert {(c, s) for _, c, s in seen} == {(c, s) for c in range(7) for s in range(5)}  # so every class is trained


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_held_out_combinations_are_absent(split: str) -> None:
    found = {one for row in attributes(split) for one in objects_of(row)}
    assert len(found) == 60 and not any(held_out(*one) for one in found)


@pytest.mark.parametrize("objects", ["1", "2", "mixed"])
def test_every_heldout_image_has_a_held_out_object(objects: str) -> None:
    rows = attributes("heldout", objects, 500)
    assert all(any(held_out(*one) for one in objects_of(row)) for row in rows)


def test_attributes_are_balanced_and_the_number_of_objects_is_as_asked() -> None:
    rows = attributes("train")
    assert 0.47 < (rows[:, 0] == 2).float().mean() < 0.53
    assert (attributes("train", "1", 50)[:, 0] == 1).all() and (attributes("train", "2", 50)[:, 0] == 2).all()
    pairs = rows[rows[:, 0] == 2]
    assert (rows[rows[:, 0] == 1][:, [1, 5, 6, 7]] == -1).all() and (pairs >= 0).all()
    for name, choices in (("size", 2), ("colour", 7), ("shape", 5), ("background", 4), ("size2", 2)):
        share = pairs[:, COLUMN[name]].bincount(minlength=choices) / len(pairs)
        assert (share - 1 / choices).abs().max() < 0.05, name
    assert not any(len(set(objects_of(row))) == 1 for row in pairs)  # never the same thing twice


def test_captions_and_labels_say_what_the_attributes_are() -> None:
    row = torch.tensor([2, 1, 0, 0, 0, 1, 5, 1, 2])
    assert caption(row) == "a small red circle above a large blue square"
    assert caption(row, background=True) == "a small red circle above a large blue square on dots"
    data = Shapes(batch_size=4, train=300, validation=5, test=5, heldout=5, objects="mixed", caption_background=True)
    batch = data.split("train").batch(torch.arange(300))
    assert data.kind == "captioned" and data.classes == 35
    for row, text, number in zip(data.attributes("train"), batch["text"], batch["label"].tolist(), strict=True):
        words = text.split()
        assert words[1] == list(SIZES)[row[COLUMN["size"]]]
        assert f"{words[2]} {words[3]}" == data.class_names[number]
        assert ("left of" in text or "above" in text) == (row[0] == 2) and ("left of" in text) == (row[1] == 0)
        assert text.endswith({"plain": "on a plain ground", "gradient": "on a gradient"}.get(
            BACKGROUNDS[row[COLUMN["background"]]], f"on {BACKGROUNDS[row[COLUMN['background']]]}"))
        assert number == label(row[None]).item()


def test_pixels_agree_with_colour_size_and_relation() -> None:
    scenes = Scenes(0, "test", objects="2", size=(32, 32))
    index = torch.arange(150)
    for row, image in zip(scenes.attributes(index), scenes.images(index).float(), strict=True):
        one, two = objects_of(row)
        if one[1] == two[1]:
            continue
        spots = []
        for z, c, s in (one, two):
            paint = torch.tensor(list(COLOURS.values())[c]).float()[:, None, None]
            mask = (image - paint).abs().amax(0) < 25
            assert mask.any(), (z, c, s)
            y, x = mask.nonzero().float().mean(0)
            spots.append((float(x), float(y), int(mask.sum())))
        (x1, y1, area1), (x2, y2, area2) = spots
        assert (x2 - x1 > abs(y2 - y1)) if row[1] == 0 else (y2 - y1 > abs(x2 - x1))
        if one[2] == two[2] and one[0] != two[0]:
            assert (area1 > area2) == (one[0] == 1)


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    scenes = Scenes(3, "train", objects="mixed")
    together = scenes.images(torch.arange(600))
    picked = torch.tensor([599, 4, 257, 4])
    assert torch.equal(scenes.images(picked), together[picked])
    assert torch.equal(scenes.attributes(picked), scenes.attributes(torch.arange(600))[picked])
    others = [Scenes(4, "train", objects="mixed")] + [Scenes(3, s, objects="mixed") for s in STREAMS if s != "train"]
    for other in others:
        assert not any(torch.equal(a, b) for a, b in zip(other.images(torch.arange(40)), together[:40], strict=True))


def test_the_drawing_has_not_changed_without_its_version() -> None:
    """Raise VERSION in shapes.py with these numbers: caches and resumed runs hang on it."""
    scenes = Scenes(0, "train", objects="mixed")
    table = scenes.attributes(torch.arange(1000)).numpy().tobytes()
    assert hashlib.sha256(table).hexdigest()[:16] == "1eb5350f718b7951"
    means = scenes.images(torch.arange(256)).float().mean((0, 2, 3)).tolist()
    assert means == pytest.approx([217.394, 215.374, 210.124], abs=0.02)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (24, 48), (50, 33)])
def test_any_size_shows_the_same_scene(size: tuple[int, int]) -> None:
    scenes = Scenes(0, "train", objects="2", size=size)
    images = scenes.images(torch.arange(20))
    assert images.shape == (20, 3, *size) and images.dtype == torch.uint8
    if size[0] == size[1]:
        small = torch.nn.functional.interpolate(images.float(), (16, 16), mode="area")
        expected = Scenes(0, "train", objects="2", size=(16, 16)).images(torch.arange(20)).float()
        assert (small - expected).abs().mean() < 8


def test_bad_options_are_one_sentence() -> None:
    for options, words in (({"objects": 3}, "unknown data.objects '3'"), ({"size": 8}, "too small"),
                           ({"train": 0}, "data.train must be"), ({"size": "x"}, "data.size must be")):
        with pytest.raises(UserError, match=words):
            Shapes(batch_size=4, **options)


def test_centres_are_where_the_objects_are() -> None:
    scenes = Scenes(0, "test", objects="mixed", size=(40, 60))
    index = torch.arange(100)
    centres = scenes.centres(index)
    for row, image, at in zip(scenes.attributes(index), scenes.images(index).float(), centres, strict=True):
        assert at[1].isnan().all() == (row[0] == 1)
        for (_, colour, _), (x, y) in zip(objects_of(row), at.tolist(), strict=False):
            paint = torch.tensor(list(COLOURS.values())[colour]).float()
            assert (image[:, int(y * 40), int(x * 60)] - paint).abs().max() < 40


def test_objects_stay_inside_the_image() -> None:
    paints = torch.tensor(list(COLOURS.values())).float()
    for objects in ("1", "2"):
        images = Scenes(0, "train", objects=objects).images(torch.arange(2000)).float()
        rim = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=2)
        distance = (rim[:, :, None] - paints.T[None, :, :, None]).abs().amax(1)
        assert distance.min() > 40
