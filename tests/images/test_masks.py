"""Masks by property: whatever the picture's kind, the mask and the size, what is outside is equal to the last bit."""

import io
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.errors import UserError
from aigc.images.edited import edited, open_masked, write_edited
from aigc.images.exact import deep_png, read_exact
from aigc.images.masks import Masks, Padding, feathered, grown, part_around, read_mask
from aigc.images.output import claim
from aigc.images.pictures import find_pictures

MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "I;16", "F", "CMYK", "RGB;16", "RGBA;16", "LA;16", "turned", "tRNS")


def written(folder: Path, mode: str, h: int, w: int, draw: np.random.Generator) -> Path:
    """A random picture of this kind, upright as (h, w)."""
    def noise(*shape, high=256, kind=np.uint8):
        return draw.integers(0, high, shape).astype(kind)

    path = folder / "a.png"
    if mode.endswith(";16") and mode != "I;16":
        path.write_bytes(deep_png(noise(h, w, len(mode) - 3, high=2**16, kind=np.uint16), {}))
        return path
    if mode == "turned":                                   # by EXIF
        image = Image.fromarray(noise(w, h, 3))
        image.getexif()[0x0112] = orientation = int(draw.integers(5, 9))
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)
        return path
    if mode == "tRNS":
        Image.fromarray(noise(h, w, 3, high=2) * 255).save(path, transparency=(255, 0, 0))
        return path
    if mode == "F":
        image = Image.fromarray(draw.random((h, w), dtype=np.float32))
    elif mode == "I;16":
        image = Image.fromarray(noise(h, w, high=2**16, kind=np.uint16))
    elif mode == "P":
        image = Image.fromarray(noise(h, w, 3)).quantize(7)
    elif mode == "CMYK":
        image = Image.fromarray(noise(h, w, 4), "CMYK")
    else:
        bands = len(mode) if mode != "1" else 1
        image = Image.fromarray(noise(h, w, bands)[..., 0] if bands == 1 else noise(h, w, bands))
        image = image.convert("1") if mode == "1" else image
    path = path.with_suffix(".tif" if mode in ("F", "CMYK") else ".png")
    image.save(path)
    return path


def one_of(folder: Path, mode: str, seed: int) -> tuple[Path, Masks, np.random.Generator, random.Random]:
    """A random picture of a kind, and a mask of some kind for it."""
    draw, pick = np.random.default_rng(seed), random.Random(seed)
    h, w = pick.randint(3, 70), pick.randint(3, 70)
    path = written(folder, mode, h, w, draw)
    how = pick.choice(["path", "box", "shares", *(["alpha"] if "A" in mode else [])])
    options = {"grow": pick.choice([0, 0, 1, -1, 3]), "feather": pick.choice([0, 0, 1, 4]),
               "invert": pick.random() < 0.3}
    if how == "path":
        blob = np.zeros((h, w), np.uint8)
        blob[: pick.randint(1, h), : pick.randint(1, w)] = 255
        blob[draw.random((h, w)) < 0.1] = 255
        mask = folder / "mask.bmp"
        Image.fromarray(blob).save(mask)
        return path, Masks.of({"path": str(mask), **options}), draw, pick
    if how == "alpha":
        return path, Masks.of({"alpha": True, **options}), draw, pick
    x0, y0 = pick.randint(-2, w - 2), pick.randint(-2, h - 2)
    box = [x0, y0, x0 + pick.randint(2, w), y0 + pick.randint(2, h)]
    if how == "shares":
        box = [max(0, x0) / w, max(0, y0) / h, min(1.0, box[2] / w + 0.1), min(1.0, box[3] / h + 0.1)]
    return path, Masks.of({"box": box, **options}), draw, pick


def put(path: Path, out: Path, change, *, channels: int, size: tuple[int, int], value: float = 1.0):
    """The picture with `value` where it changes, through files; and the failures."""
    seen, failures = [], {}

    def edit(images, numbers, masks):
        assert images.shape[1:] == (channels, *size) and masks.shape == (len(images), 1, *size)
        seen.append(masks)
        return torch.where(masks, torch.full_like(images, value), images)

    pictures = find_pictures(str(path), out, "exact")
    opening = partial(open_masked, change=change, size=size, side=None)
    with claim(out) as output:
        write_edited(pictures, edit, output, recipe={}, channels=channels, batch_size=4, pixels=10**6,
                     failures=failures, opening=opening)
    return (out / pictures[0].target, seen, failures)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_outside_the_mask_is_equal_to_the_last_bit(mode, tmp_path):
    changed = 0
    for seed in range(6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        path, masks, _, pick = one_of(folder, mode, seed)
        size = (pick.choice([8, 16, 28]), pick.choice([8, 16]))
        before = read_exact(path.read_bytes(), {})
        content = Path(masks.path).read_bytes() if masks.path else None
        try:
            shown = torch.zeros(1, *before.values.shape[:2], dtype=torch.uint8)
            mask = masks.mask_of(before, content, shown).numpy()
        except ValueError as error:
            assert "leaves nothing to change" in str(error)
            continue
        made, _, failures = put(path, folder / "out", masks, channels=pick.choice([1, 3]), size=size,
                                value=pick.choice([-1.0, 1.0]))
        assert not failures
        after = read_exact(made.read_bytes(), {})
        assert after.values.dtype == before.values.dtype and after.values.shape == before.values.shape
        assert after.bilevel == before.bilevel and np.array_equal(after.values[~mask], before.values[~mask])
        changed += int((after.values[mask] != before.values[mask]).sum())
        if mode not in ("P", "CMYK", "turned", "tRNS"):
            assert Image.open(made).mode == Image.open(path).mode
    assert changed > 100


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB;16", "I;16", "F", "1"])
def test_a_padded_picture_keeps_every_value_in_its_middle(mode, tmp_path):
    path = written(tmp_path, mode, 21, 14, np.random.default_rng(3))
    made, seen, failures = put(path, tmp_path / "out", Padding.of({"left": 5, "top": 0.5}), channels=1, size=(16, 16))
    assert not failures and seen[0].any() and not seen[0].all()
    before, after = read_exact(path.read_bytes(), {}), read_exact(made.read_bytes(), {})
    assert after.values.shape[:2] == (31, 19) and np.array_equal(after.values[10:, 5:], before.values)
    if after.alpha is not None:
        assert (after.alpha[:10] == after.opaque).all()


def test_all_that_changes_is_new_and_feathers_fall_off_inside():
    mask = torch.zeros(12, 12, dtype=torch.bool)
    mask[2:9, 3:10] = True
    weight = feathered(mask, 2)
    assert torch.equal(weight > 0, mask) and float(weight[5, 6]) == 1
    assert weight[5, 3:7].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert feathered(mask, 50).max() == 1 and torch.equal(feathered(mask, 0), mask.float())
    assert torch.equal(grown(grown(mask, 1), -1), mask) and int(grown(mask, 1).sum()) == 81
    edge = torch.ones(4, 6, dtype=torch.bool)
    assert grown(edge, -2).all() and torch.equal(feathered(edge, 3), torch.ones(4, 6))


def test_the_part_holds_all_that_changes_and_lies_inside_where_it_can():
    pick = random.Random(0)
    for _ in range(300):
        h, w = pick.randint(1, 90), pick.randint(1, 90)
        y0, x0 = pick.randrange(h), pick.randrange(w)
        y1, x1 = pick.randint(y0 + 1, h), pick.randint(x0 + 1, w)
        mask = torch.zeros(h, w, dtype=torch.bool)
        mask[y0:y1, x0:x1] = True
        size = (pick.choice([8, 28]), pick.choice([8, 28]))
        part = part_around(mask, size, pick.choice([None, 16]))
        assert part.top <= y0 and part.left <= x0
        assert part.top + part.height >= y1 and part.left + part.width >= x1
        if part.height <= h:
            assert part.top >= 0 and part.top + part.height <= h
        if min(h, w) >= max(size) and (y1 - y0) * 1.5 <= size[0] and (x1 - x0) * 1.5 <= size[1]:
            assert part.height >= size[0] and part.width >= size[1], "no smaller than the model's own size"
    same = part_around(torch.ones(28, 28, dtype=torch.bool), (28, 28))
    assert (same.top, same.left, same.height, same.width) == (0, 0, 28, 28)


def test_masks_are_read_as_white_upright_and_transparency_is_black():
    def said(image, **more):
        file = io.BytesIO()
        image.save(file, format="PNG", **more)
        return read_mask(file.getvalue()).tolist()

    grey = np.array([[0, 127, 128, 255]], np.uint8)
    assert said(Image.fromarray(grey)) == [[False, False, True, True]]
    assert said(Image.fromarray(grey.astype(np.uint16) * 257)) == [[False, False, True, True]]
    strokes = np.zeros((1, 2, 4), np.uint8)
    strokes[0, 1] = 255
    assert said(Image.fromarray(strokes)) == [[False, True]]
    exif = Image.Exif()
    exif[0x0112] = 8
    assert said(Image.fromarray(grey), exif=exif) == [[True], [True], [False], [False]]


@pytest.mark.parametrize(("node", "sentence"), [
    ({}, "nothing says what is to change: give one of"),
    ({"alpha": True, "box": [0, 0, 1, 1]}, "mask.alpha and mask.box are two masks"),
    ({"path": "no such file"}, "mask.path='no such file' does not exist"),
    ({"box": [0, 0, 1]}, "is no box"),
    ({"box": [5, 0, 2, 9]}, "is no box"),
    ({"box": "all"}, "is no box"),
    ({"box": [0, 0, 9, 9], "grow": 1.5}, "mask.grow=1.5 is no number of pixels"),
    ({"box": [0, 0, 9, 9], "feather": -1}, "mask.feather=-1 is no number of pixels: give one from 0"),
    ({"boxx": [0, 0, 9, 9]}, "mask has no option 'boxx': did you mean 'box'?"),
])
def test_mistakes_in_masks_are_one_sentence(node, sentence):
    with pytest.raises(UserError) as caught:
        Masks.of(node)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("node", "sentence"), [
    ({}, "nothing says where pictures grow"), ({"left": 0}, "nothing says"), ({"left": -1}, "pad.left=-1 is no whole"),
    ({"top": 1.5}, "pad.top=1.5 is no whole number of pixels and no share"), ({"up": 3}, "pad has no option 'up'"),
    ({"top": True}, "pad.top=True is no whole"),
])
def test_mistakes_in_padding_are_one_sentence(node, sentence):
    with pytest.raises(UserError) as caught:
        Padding.of(node)
    assert sentence in str(caught.value)


def test_each_picture_has_its_own_mask_and_a_bad_one_costs_only_its_picture(tmp_path):
    (tmp_path / "masks" / "in").mkdir(parents=True)
    (tmp_path / "photos" / "in").mkdir(parents=True)
    for name, side in (("in/a", 9), ("b", 9), ("c", 9), ("d", 9), ("é [1] 'x'", 9), ("black", 9)):
        Image.new("L", (side, side), 50).save(tmp_path / "photos" / f"{name}.png")
    white = Image.new("L", (9, 9), 255)
    white.save(tmp_path / "masks" / "in" / "a.jpg")
    white.resize((8, 9)).save(tmp_path / "masks" / "b.png")
    (tmp_path / "masks" / "c.png").write_bytes(b"broken")
    white.save(tmp_path / "masks" / "é [1] 'x'.gif")
    Image.new("L", (9, 9)).save(tmp_path / "masks" / "black.png")
    opening = partial(open_masked, change=Masks.of({"path": str(tmp_path / "masks")}), size=(8, 8), side=None)
    failures: dict = {}
    pictures = find_pictures(str(tmp_path / "photos"), tmp_path / "out", "exact")
    made = list(edited(pictures, lambda images, numbers, masks: -images, channels=1, batch_size=4, pixels=10**6,
                       failures=failures, opening=opening))
    assert sorted(done.opened.picture.target for done in made) == ["in/a.png", "é [1] 'x'.png"]
    reasons = {path.stem: reason for path, reason in failures.items()}
    assert reasons["b"] == "its mask has 8 x 9 pixels instead of 9 x 9"
    assert reasons["d"].endswith("holds no mask called d.*")
    assert "c.png' cannot be read (" in reasons["c"] and reasons["black"] == "its mask leaves nothing to change"
    assert len(made[0].opened.parents) == 2 and made[0].opened.parents[1]["role"] == "mask"
