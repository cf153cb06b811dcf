"""Folders and zips of two kinds of images: layouts, sizes, partners, broken files, and streaming."""

import itertools
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from aigc.data.pair_folders import PairedFolder, UnpairedFolder
from aigc.data.pair_layout import by_side, lay_out_sides, partner_name
from aigc.errors import UserError
from aigc.images.grids import save_grid


def write(path: Path, level: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    """An image whose grey level is its number, brighter at its right edge; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, (level,) * 3 if mode == "RGB" else level)
    image.paste((255,) * 3 if mode == "RGB" else 255, (size[0] - 1, 0, size[0], size[1]))
    image.save(path)


def beside(path: Path, left: int, right: int, size: tuple[int, int] = (20, 10)) -> None:
    """Two images in one file, of grey levels `left` and `right`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (left,) * 3)
    image.paste((right,) * 3, (size[0] // 2, 0, *size))
    image.save(path)


def horses(root: Path, n_a: int = 20, n_b: int = 15, tests: int = 4) -> Path:
    for i in range(n_a):
        write(root / "trainA" / f"horse_{i:02}.png", i)
    for i in range(n_b):
        write(root / "trainB" / f"zebra_{i:02}.png", 100 + i)
    for i in range(tests):
        write(root / "testA" / f"{i}_A.png", 50 + i)
        write(root / "testB" / f"{i}_B.png", 150 + i)
    return root


def packed(root: Path) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, Path(root.name) / file.relative_to(root))
    return target


def unpaired(root: Path, **options: object) -> UnpairedFolder:
    data = UnpairedFolder(**{"root": str(root), "batch_size": 4, **options})  # type: ignore[arg-type]
    data.prepare_data()
    return data


def paired(root: Path, **options: object) -> PairedFolder:
    data = PairedFolder(**{"root": str(root), "batch_size": 4, **options})  # type: ignore[arg-type]
    data.prepare_data()
    return data


def levels(data: UnpairedFolder, split: str) -> tuple[list[int], list[int]]:
    found = data.images(split)[:, 0, 0, 0].tolist()
    n = data.counts(split)[0]
    return found[:n], found[n:]


@pytest.mark.parametrize("pack", [False, True])
def test_unpaired_folders_keep_their_tests_and_lose_a_tenth_to_validation(tmp_path: Path, pack: bool) -> None:
    root = horses(tmp_path / "horses")
    data = unpaired(packed(root) if pack else root)
    assert (data.kind, data.name, data.size, data.channels) == ("unpaired", "horses", (10, 12), 3)
    assert {s: data.counts(s) for s in data.splits} == {"train": (18, 13), "validation": (2, 2), "test": (4, 4)}
    assert [sorted(side) for side in levels(data, "test")] == [list(range(50, 54)), list(range(150, 154))]
    train, held = levels(data, "train"), levels(data, "validation")
    assert sorted(train[0] + held[0]) == list(range(20)) and sorted(train[1] + held[1]) == list(range(100, 115))
    assert data.has_pairs("test") and not data.has_pairs("train") and not data.has_pairs("validation")
    assert all(b - a == 100 for a, b in zip(*levels(data, "test"), strict=True))


def test_b2a_swaps_the_sides(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses")
    there, back = unpaired(root), unpaired(root, direction="b2a")
    assert levels(back, "train") == levels(there, "train")[::-1]
    assert there.fingerprint != back.fingerprint
    with pytest.raises(UserError, match=r"data\.direction 'atob'"):
        unpaired(root, direction="atob")


def test_usual_layouts_are_understood() -> None:
    assert by_side(["x/trainA/1.png", "x/trainB/2.png", "x/extra/3.png", "x/ValA/sub/4.png"]) == {
        "train": {"a": ["x/trainA/1.png"], "b": ["x/trainB/2.png"]}, "validation": {"a": ["x/ValA/sub/4.png"]}}
    assert by_side(["train/A/1.png", "train/B/2.png", "test/a/3.png"]) == {
        "train": {"a": ["train/A/1.png"], "b": ["train/B/2.png"]}, "test": {"a": ["test/a/3.png"]}}
    assert by_side(["A/train/1.png", "B/train/2.png", "A/test/3.png"]) == {
        "train": {"a": ["A/train/1.png"], "b": ["B/train/2.png"]}, "test": {"a": ["A/test/3.png"]}}
    assert by_side(["set/A/1.png", "set/A/deep/3.png", "set/B/2.png", "set/readme.png"]) == {
        "train": {"a": ["set/A/1.png", "set/A/deep/3.png"], "b": ["set/B/2.png"]}}
    assert by_side(["train/1.png", "val/2.png"]) == {}
    assert [partner_name(name, "a") for name in ("testA/7_A.jpg", "x/7.png", "7_B.png", "A/_A.png")] == [
        "7", "7", "7_B", "_A"]


def test_training_images_are_cropped_from_the_load_size_and_measured_whole(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses")
    data = unpaired(root, load_size=[16, 18], crop_size=14)
    assert data.size == (14, 14)
    batches = list(itertools.islice(data.train_dataloader(), 20))
    assert batches[0]["a"].shape == (4, 3, 14, 14)
    edges = torch.cat([(batch["a"][:, 0, 0, -1] > 200) for batch in batches])   # cut off by most crops
    assert 0 < int(edges.sum()) < 40
    for split in ("train", "validation", "test"):
        whole = data.images(split)
        assert whole.shape[2:] == (14, 14) and bool((whole[:, 0, 0, -1] > 200).all())
    direct = unpaired(root, crop_size=14)                     # straight to the size, not by way of the load size
    assert torch.equal(direct.images("train"), data.images("train"))
    assert len({unpaired(root, **o).fingerprint for o in ({"crop_size": 14}, {"load_size": 16, "crop_size": 14},
                                                          {"load_size": 17, "crop_size": 14}, {})}) == 4


@pytest.mark.parametrize("load", [16, 20])
def test_patches_train_what_is_measured_on_whole_images_of_the_test_size(tmp_path: Path, load: int) -> None:
    data = unpaired(horses(tmp_path / "horses"), load_size=load, crop_size=10, test_size=16)
    assert data.size == (16, 16)
    batches = list(itertools.islice(data.train_dataloader(), 20))
    assert {batch[side].shape for batch in batches for side in "ab"} == {(4, 3, 10, 10)}
    edges = torch.cat([(batch["a"][:, 0, 0, -1] > 200) for batch in batches])
    assert 0 < int(edges.sum()) < 40
    same = unpaired(tmp_path / "horses", load_size=16)
    for split in ("train", "validation", "test"):
        assert torch.equal(data.images(split), same.images(split))


def test_margins_shrink_the_images_of_a_side_onto_white(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses")
    plain = unpaired(root, crop_size=20)
    data = unpaired(root, load_size=30, crop_size=20, margins=[0.1, 0], direction="b2a")
    for split in ("train", "validation", "test"):
        zebras, shrunk = (data.pair_split(split).batch(torch.arange(2))[side] for side in ("a", "b"))
        assert torch.equal(zebras, plain.pair_split(split).batch(torch.arange(2))["b"])
        assert bool((shrunk[:, :, :2] == 255).all() and (shrunk[..., -2:] == 255).all())
        assert bool((shrunk[:, :, 2:18, 2] < 60).all())                # folder A's levels
    assert unpaired(root, margins=[0, 0]).fingerprint == unpaired(root).fingerprint
    assert unpaired(root, margins=[0, 0.2]).fingerprint != unpaired(root).fingerprint
    with pytest.raises(UserError, match=r"data\.margins=\[0\.5, 0\] must be two shares"):
        unpaired(root, margins=[0.5, 0])
    for i in range(20):
        beside(tmp_path / "halves" / f"{i}.png", i, 100)
    with pytest.raises(UserError, match=r"data\.margins is for two folders"):
        paired(tmp_path / "halves", margins=[0.1, 0])


def test_one_size_stands_for_both_and_mixed_sizes_become_64(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses")
    assert unpaired(root, load_size=8).size == unpaired(root, crop_size=8).size == (8, 8)
    write(root / "trainB" / "wide.png", 115, size=(30, 9), mode="L")
    data = unpaired(root)
    assert data.size == (64, 64) and data.channels == 3
    with pytest.raises(UserError, match=r"data\.crop_size=9 is larger than data\.load_size=8"):
        unpaired(root, load_size=8, crop_size=9)
    with pytest.raises(UserError, match=r"data\.load_size must be a number"):
        unpaired(root, load_size="big")


@pytest.mark.parametrize("crop", [None, 8])
def test_streaming_gives_the_same_batches(tmp_path: Path, crop: int | None) -> None:
    root = packed(horses(tmp_path / "horses"))
    options = {"load_size": 10, "crop_size": crop, "flip": True}
    memory, streamed = unpaired(root, **options), unpaired(root, **options, memory_gb=0, workers=2)
    assert memory.fingerprint == streamed.fingerprint and not streamed.split("train").in_memory
    for one, other in zip(itertools.islice(memory.train_dataloader(), 9), streamed.train_dataloader(), strict=False):
        assert all(torch.equal(one[key], other[key]) for key in ("a", "b", "index"))


def test_broken_files_of_both_sides_are_named_together_and_take_their_partners_with_them(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses")
    (root / "trainA" / "horse_03.png").write_bytes(b"x")
    (root / "testB" / "1_B.png").write_bytes((root / "testB" / "1_B.png").read_bytes()[:50])
    with pytest.raises(UserError, match=r"2 of 43 images in .*testB/1_B\.png \(.*trainA/horse_03\.png \(not an image"):
        try:
            unpaired(root)
        except UserError as error:                             # in whatever order the splits come
            names = sorted(str(error).split(": ")[1].split("; ")[0].split(", "), key=lambda text: text[:5])
            raise UserError(str(error).split(":")[0] + " " + " ".join(names)) from error
    data = unpaired(root, skip_broken=True)
    assert data.counts("test") == (3, 3) and data.has_pairs("test")
    assert sorted(levels(data, "test")[0]) == [50, 52, 53] and sorted(levels(data, "test")[1]) == [150, 152, 153]


def test_what_is_not_laid_out_for_two_sides_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "flat" / "0.png", 1)
    write(tmp_path / "half" / "trainA" / "0.png", 1)
    for side in "AB":
        write(tmp_path / "tests" / f"test{side}" / "0.png", 1)
    for folder, words in (("nowhere", r"data\.root=.*nowhere does not exist"), ("flat", "but it holds none of them"),
                          ("half", "has train images of side A but none of side B: add them as trainB"),
                          ("tests", "has images for test only")):
        with pytest.raises(UserError, match=words) as caught:
            unpaired(tmp_path / folder)
        assert "\n" not in str(caught.value)


def test_pairs_side_by_side_with_and_without_split_folders(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 30), ("test", 60)):
        for i in range(6):
            beside(tmp_path / "facades" / split / f"{i}.png", first + i, 100 + first + i)
    for i in range(20):
        beside(tmp_path / "loose" / f"{i:02}.png", i, 100 + i)
    for root, counts in ((tmp_path / "facades", (6, 6, 6)), (packed(tmp_path / "loose"), (16, 2, 2))):
        data = paired(root, flip=True)
        assert (data.kind, data.size) == ("paired", (10, 10))
        assert tuple(data.count(s) for s in ("train", "validation", "test")) == counts
        for split in data.splits:
            source, target = levels(data, split)
            assert data.has_pairs(split) and [value + 100 for value in source] == target
        batch = next(iter(data.train_dataloader()))
        assert set(batch) == {"source", "target", "index"}
        assert torch.equal(batch["source"] + 100, batch["target"])
    back = paired(tmp_path / "facades", direction="b2a")
    assert levels(back, "test") == levels(paired(tmp_path / "facades"), "test")[::-1]


def test_side_by_side_pairs_stream_and_crop_alike(tmp_path: Path) -> None:
    for i in range(20):
        path = tmp_path / "noise" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((24, 12), 60).save(path)
        half = Image.open(path).crop((0, 0, 12, 12))
        both = Image.open(path)
        both.paste(half, (12, 0))                            # both halves equal: they stay so under equal crops
        both.save(path)
    options = {"load_size": 12, "crop_size": 9, "flip": True}
    memory = paired(tmp_path / "noise", **options)
    streamed = paired(tmp_path / "noise", **options, memory_gb=0, workers=0)
    assert memory.fingerprint == streamed.fingerprint and memory.channels == 1
    for one, other in zip(itertools.islice(memory.train_dataloader(), 6), streamed.train_dataloader(), strict=False):
        assert torch.equal(one["source"], one["target"])
        assert torch.equal(one["source"], other["source"]) and torch.equal(one["target"], other["target"])
    assert torch.equal(memory.images("train"), streamed.images("train"))
    assert memory.images("train").shape == (32, 1, 9, 9)


def test_pairs_in_two_folders_need_partners_of_the_same_name(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / "two" / "A" / "train" / f"{i:02}.png", i)
        write(tmp_path / "two" / "B" / "train" / f"{i:02}.jpg", 100 + i)
    data = paired(tmp_path / "two", validation=3)
    assert [data.count(s) for s in ("train", "validation", "test")] == [15, 3, 2]
    for split in data.splits:
        assert all(abs(b - a - 100) <= 2 for a, b in zip(*levels(data, split), strict=True))     # one side is JPEG
    write(tmp_path / "two" / "A" / "train" / "alone.png", 7)
    words = r"1 train image without a partner of the same name .*: A/train/alone\.png; .*data=unpaired_folder"
    with pytest.raises(UserError, match=words):
        paired(tmp_path / "two")
    write(tmp_path / "two" / "B" / "train" / "alone.png", 7)
    write(tmp_path / "two" / "B" / "train" / "alone.jpg", 7)
    with pytest.raises(UserError, match="more than once: name each pair differently"):
        paired(tmp_path / "two")


def test_the_emoji_at_hand(shared: Path) -> None:
    data = unpaired(shared / "noto2openmoji")
    assert (data.size, data.channels) == ((64, 64), 3)
    assert {s: data.counts(s) for s in data.splits} == {"train": (727, 727), "validation": (81, 81), "test": (87, 87)}
    assert data.has_pairs("test") and not data.has_pairs("train")
    whole = unpaired(shared / "noto2openmoji", validation=1)
    assert whole.counts("train") == (807, 807)               # all of the 808 but one


def test_pairs_of_which_none_is_whole_are_refused(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses", tests=2)
    (root / "testA" / "0_A.png").write_bytes(b"x")
    (root / "testB" / "1_B.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no pair of test images in .* is readable: repair them"):
        unpaired(root, skip_broken=True)


# ---- which files are pairs ----


def test_ordinary_pictures_are_no_pairs_side_by_side(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        for i in range(6):
            write(tmp_path / "pets" / folder / f"{folder}{i}.png", i)
    words = r"12 of 12 images .* not about twice as wide as high \(cat/cat0\.png \(12 x 10\), .* and 9 more\).*"
    words += r"1_A\.png and 1_B\.png .* two folders A and B, .* data\.layout=halves"
    with pytest.raises(UserError, match=words):
        paired(tmp_path / "pets")
    told = paired(tmp_path / "pets", layout="halves", crop_size=6)
    assert sum(told.counts(split)[0] for split in told.splits) == 12
    for i in range(20):
        beside(tmp_path / "mixed" / f"{i}.png", i, 100 + i)
    write(tmp_path / "mixed" / "stray.png", 1)
    with pytest.raises(UserError, match=r"1 of 21 images .* \(stray\.png \(12 x 10\)\)"):
        paired(tmp_path / "mixed")


@pytest.mark.parametrize(("first", "second"), [("_A", "_B"), ("-a", "-b"), (".A", ".B")])
def test_files_in_one_folder_whose_names_end_in_a_and_b_are_pairs(tmp_path: Path, first: str, second: str) -> None:
    for i in range(12):
        write(tmp_path / "set" / f"{i}{first}.png", i)
        write(tmp_path / "set" / f"{i}{second}.png", 100 + i)
    data, back = paired(tmp_path / "set"), paired(tmp_path / "set", direction="b2a")
    assert {split: data.counts(split) for split in data.splits} == {
        "train": (10, 10), "validation": (1, 1), "test": (1, 1)}
    for split in data.splits:
        a, b = levels(data, split)
        assert [value + 100 for value in a] == b and data.has_pairs(split)
        assert levels(back, split) == (b, a)
    assert data.found() == ["data      from ..._A (source) to ..._B (target), 12 x 10 pixels, colour; 10 pairs to "
                            "train on; 1 pair for validation; 1 pair for test"]
    assert back.found()[0].startswith("data      from ..._B (source) to ..._A (target)")
    assert data.facts()["sides"] == ["..._A", "..._B"] and data.facts()["pairs"] == dict.fromkeys(data.splits, True)
    write(tmp_path / "set" / f"lone{first}.png", 7)
    with pytest.raises(UserError, match=r"1 image in .* without a partner, .*: lone.A\.png|: lone.a\.png"):
        paired(tmp_path / "set")


@pytest.mark.parametrize("splits", [False, True])
def test_equal_names_in_two_folders_of_any_names_are_pairs_in_order_of_folders(tmp_path: Path, splits: bool) -> None:
    for i in range(12):
        for folder, level in (("photo", 100 + i), ("label", i)):
            split = ("test" if i < 3 else "train") + "/" if splits else ""
            write(tmp_path / "set" / f"{split}{folder}" / f"{i:02}.png", level)
    write(tmp_path / "set" / "loose.png", 200)
    (tmp_path / "set" / "._x.png").write_bytes(b"x")
    data = paired(tmp_path / "set")
    assert data.counts("test") == ((3, 3) if splits else (1, 1))
    for split in data.splits:
        a, b = levels(data, split)
        assert [value + 100 for value in a] == b and data.has_pairs(split)
    one, left = data.found()
    assert one.startswith("data      from label/ (source) to photo/ (target), 12 x 10 pixels")
    assert left == ("left out  hidden files: 1 (._x.png); pictures outside the folders of both sides: 1 (loose.png)")


def test_two_folders_of_any_names_are_two_sides_of_unpaired_data(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / "set" / "zebra" / f"z{i}.png", 100 + i)
    for i in range(10):
        write(tmp_path / "set" / "horse" / f"h{i}.png", i)
    data = unpaired(tmp_path / "set")
    assert data.counts("train") == (8, 16)
    assert data.found()[0].startswith("data      horse/ (side a) and zebra/ (side b), 12 x 10 pixels, colour; 8 and "
                                      "16 images, not in pairs to train on")


def test_a_folder_like_train_in_which_two_folders_share_no_names_is_no_set_of_pairs() -> None:
    names = [f"{folder}/{folder}{i}.png" for folder in ("cat", "dog") for i in range(5)]
    assert lay_out_sides(names, "x").kind == "halves"
    assert lay_out_sides(names, "x", layout="folders").files["train"]["b"] == names[5:]
    with pytest.raises(UserError, match=r"data\.layout=folders, but x does not hold two folders of images"):
        lay_out_sides(["1.png", "2.png"], "x", layout="folders")
    with pytest.raises(UserError, match=r"2 images in x without a partner"):
        lay_out_sides(["1.png", "2.png"], "x", layout="names")
    with pytest.raises(UserError, match=r"unknown data\.layout 'sides'"):
        PairedFolder(root="x", batch_size=1, layout="sides")


def test_what_this_program_wrote_and_links_to_nowhere_are_no_pairs(tmp_path: Path) -> None:
    root = horses(tmp_path / "horses")
    (root / "trainA" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"1 of 44 images .* cannot be read: .*gone\.png \(a dangling link"):
        unpaired(root)
    data = unpaired(root, skip_broken=True)
    assert data.counts("train") == (18, 13) and "files that cannot be read: 1" in data.found()[1]


def test_grids_that_were_drawn_here_are_neither_side(tmp_path: Path) -> None:
    for i in range(12):
        beside(tmp_path / "set" / f"{i}.png", i, 100 + i)
    grid = torch.zeros(4, 3, 10, 20)
    save_grid(grid, tmp_path / "set" / "grid.png")
    data = paired(tmp_path / "set")
    assert sum(data.counts(split)[0] for split in data.splits) == 12
    assert data.found()[1] == "left out  grids that aigc drew: 1 (grid.png)"
