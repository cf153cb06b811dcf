"""Folders and zips of images: layouts, splits, sizes, broken files, and streaming."""

import io
import itertools
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.data import encoded
from aigc.data.folder import ImageFolder
from aigc.errors import UserError


def write(path: Path, value: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> None:
    """An image whose grey level is its number; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)


def classes(root: Path, n: int = 10, start: int = 0) -> Path:
    """Classes `cat` and `dog`, n images each."""
    for k, name in enumerate(("cat", "dog")):
        for i in range(n):
            write(root / name / f"{i:02}.png", start + k * n + i)
    return root


def packed(root: Path) -> Path:
    target = root.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(root.rglob("*.*")):
            archive.write(file, Path(root.name) / file.relative_to(root))
        archive.writestr("__MACOSX/._00.png", b"junk")
        archive.writestr(f"{root.name}/notes.txt", b"not an image")
    return target


def load(path: Path, **options: object) -> ImageFolder:
    data = ImageFolder(**{"path": str(path), "batch_size": 4, **options})  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def levels(data: ImageFolder, split: str) -> list[int]:
    return data.images(split)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("pack", [False, True])
def test_class_subfolders_are_cut_into_three_disjoint_splits(tmp_path: Path, pack: bool) -> None:
    root = classes(tmp_path / "pets")
    data = load(packed(root) if pack else root, validation=0.2, test=3)
    parts = {s: levels(data, s) for s in ("train", "validation", "test")}
    assert [len(p) for p in parts.values()] == [14, 3, 3]
    assert sorted(v for part in parts.values() for v in part) == list(range(20))
    assert (data.name, data.size, data.channels, data.class_names) == ("pets", (10, 12), 3, ["cat", "dog"])
    for split, found in parts.items():
        assert data.labels(split).tolist() == [level // 10 for level in found]
    again, other = (load(root, validation=0.2, test=3, split_seed=s) for s in (0, 1))
    assert levels(again, "test") == parts["test"] and levels(other, "test") != parts["test"]


def test_a_folder_and_its_zip_hold_the_same_data(tmp_path: Path) -> None:
    root = classes(tmp_path / "pets")
    folder, archive = load(root), load(packed(root))
    assert torch.equal(folder.images("train"), archive.images("train"))
    assert folder.fingerprint == archive.fingerprint


@pytest.mark.parametrize("pack", [False, True])
def test_split_folders_are_kept_and_the_missing_one_is_held_out_of_train(tmp_path: Path, pack: bool) -> None:
    root = tmp_path / "pets"
    classes(root / "train")
    classes(root / "Val", n=3, start=100)
    data = load(packed(root) if pack else root, test=0.25)
    assert sorted(levels(data, "validation")) == list(range(100, 106))
    assert data.count("test") == 5 and data.count("train") == 15
    assert sorted(levels(data, "train") + levels(data, "test")) == list(range(20))
    assert data.labels("validation").tolist() == [0, 0, 0, 1, 1, 1]


def test_loose_images_have_no_classes_and_labels_can_be_refused_or_demanded(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "flat" / f"{i}.png", i, mode="L")
    data = load(tmp_path / "flat")
    assert data.classes is None and data.labels("train") is None and data.channels == 1
    assert "label" not in next(iter(data.train_dataloader()))
    with pytest.raises(UserError, match="is in no class folder"):
        load(tmp_path / "flat", labels=True)
    assert load(classes(tmp_path / "pets"), labels=False).classes is None


def test_size_and_channels_follow_the_images_or_are_chosen(tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    for i in range(4):
        write(root / f"{i}.png", 100 + i, size=(20 + i, 30), mode="L")
    assert (load(root).size, load(root).channels) == ((32, 32), 1)
    write(root / "colour.png", 100)
    assert load(root).channels == 3
    chosen = load(root, size=[14, 9], channels=1)
    assert chosen.images("train").shape == (3, 1, 14, 9)
    assert len({load(root, size=s, fit=f).fingerprint for s, f in ((8, "crop"), (9, "crop"), (8, "pad"))}) == 3


def test_all_broken_files_are_named_together_and_skipped_only_on_request(tmp_path: Path) -> None:
    root = classes(tmp_path / "pets")
    (root / "cat" / "torn.png").write_bytes((root / "cat" / "00.png").read_bytes()[:45])
    (root / "dog" / "words.jpg").write_text("not an image")
    (root / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith(f"3 of 23 images in {root} cannot be read: ")
    assert all(name in message for name in ("cat/torn.png (", "dog/words.jpg (not an image)", "dog/empty.png ("))
    assert message.endswith("repair or delete them, or set data.skip_broken=true")
    data = load(root, skip_broken=True)
    assert sorted(v for s in data.splits for v in levels(data, s)) == list(range(20))
    assert all(data.labels(s).tolist() == [v // 10 for v in levels(data, s)] for s in data.splits)


def test_many_broken_files_are_counted_and_nothing_but_broken_ones_is_refused(tmp_path: Path) -> None:
    for i in range(25):
        (tmp_path / f"{i:02}.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"25 of 25 images.*19\.png \(not an image\) and 5 more;"):
        load(tmp_path, skip_broken=True)


def test_streaming_gives_the_same_batches_and_checks_the_files_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for i in range(30):
        path = tmp_path / "noise" / ("a" if i % 2 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (18, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "noise" / "a" / "broken.png").write_bytes(b"x")
    archive = packed(tmp_path / "noise")
    monkeypatch.setattr(encoded, "MANY", 30)
    memory = load(archive, size=12, flip=True, skip_broken=True)
    streamed = load(archive, size=12, flip=True, skip_broken=True, memory_gb=0, workers=2)
    assert memory.split("train").in_memory and not streamed.split("train").in_memory
    assert memory.fingerprint == streamed.fingerprint
    pairs = zip(itertools.islice(memory.train_dataloader(), 15), itertools.islice(streamed.train_dataloader(), 15),
                strict=True)
    for one, other in pairs:
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the files were looked at again")

    monkeypatch.setattr(encoded, "_each", fail)
    for again in (load(archive, size=12, skip_broken=True, memory_gb=gb) for gb in (0, 1)):
        assert again.fingerprint == memory.fingerprint
        assert torch.equal(again.images("train"), memory.images("train"))
    with pytest.raises(UserError, match="1 of 31 images"):
        load(archive, memory_gb=0)


def test_what_is_not_there_or_not_images_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 and no more")
    only_test = tmp_path / "only"
    write(only_test / "test" / "0.png", 1)
    write(only_test / "val" / "0.png", 1)
    strange = classes(tmp_path / "strange" / "train").parent
    write(strange / "test" / "bird" / "0.png", 1)
    write(strange / "test" / "cat" / "0.png", 1)
    for path, words in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "empty", "holds no images"),
                        (tmp_path / "torn.zip", "neither a folder nor an intact zip"),
                        (only_test, "none called train"), (strange, "'bird' in .* is in test but not in train")):
        with pytest.raises(UserError, match=words) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_too_few_images_to_cut_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "one" / "0.png", 1)
    with pytest.raises(UserError, match=r"data\.test=0\.1 would hold out 1 of 1 image"):
        load(tmp_path / "one")


def test_an_encrypted_or_damaged_zip_member_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 50).save(buffer, "PNG")
    path = tmp_path / "bits.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4):
            archive.writestr(f"{i}.png", buffer.getvalue())
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"2.png") + 60] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"1 of 4 images .*2\.png \(Bad CRC-32"):
        load(path)


def test_a_picture_with_several_names_is_taken_once_and_never_trained_on_when_held_out(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(8):
        write(root / "train" / f"{i}.png", i)
    write(root / "test" / "a.png", 100)
    os.link(root / "test" / "a.png", root / "train" / "a.png")
    os.symlink("../train/0.png", root / "test" / "link.png")
    os.symlink(".", root / "train" / "loop")
    os.symlink("train", root / "more")
    data = load(root, validation=1)
    assert levels(data, "test") == [100, 0]
    assert sorted(levels(data, "train") + levels(data, "validation")) == list(range(1, 8))
    assert data.left_out == [
        "links to folders that were read already or contain this one: 2 (more, train/loop)",
        "duplicate names of images already taken: 2 (train/0.png, train/a.png)"]


def test_links_that_lead_out_are_followed_on_request(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "set" / f"{i}.png", i)
        write(tmp_path / "store" / "deep" / f"{i}.png", 100 + i)
    os.symlink(tmp_path / "store", tmp_path / "set" / "all")
    os.symlink(tmp_path / "store" / "deep" / "0.png", tmp_path / "set" / "one.png")
    os.symlink(tmp_path, tmp_path / "set" / "up")
    data = load(tmp_path / "set")
    assert sorted(v for s in data.splits for v in levels(data, s)) == [0, 1, 2, 3]
    assert data.left_out == [
        "links out of the folder, which data.follow_links=true follows: 2 (all, one.png)",
        "links to folders that were read already or contain this one: 1 (up)"]
    data = load(tmp_path / "set", follow_links=True)
    assert sorted(v for s in data.splits for v in levels(data, s)) == [0, 1, 2, 3, 100, 101, 102, 103]
    assert "links to folders that were read already or contain this one: 1 (up)" in data.left_out


@pytest.mark.parametrize(("make", "why"), [
    (lambda path: os.symlink("nowhere", path), "a dangling link"),
    (lambda path: os.symlink(path.name, path), "a dangling link"),
    (os.mkfifo, "not a regular file"),
])
def test_a_link_to_nowhere_or_a_pipe_is_named_and_skipped_on_request(tmp_path: Path, make, why: str) -> None:
    root = classes(tmp_path / "pets")
    make(root / "cat" / "bad.png")
    with pytest.raises(UserError, match=rf"1 of 21 images in .*: cat/bad\.png \({why}\); repair or delete them"):
        load(root)
    data = load(root, skip_broken=True)
    assert sorted(v for s in data.splits for v in levels(data, s)) == list(range(20))
    assert data.found()[1] == f"left out  files that cannot be read: 1 (cat/bad.png ({why}))"


def test_what_this_program_drew_is_not_trained_on(tmp_path: Path) -> None:
    root = classes(tmp_path / "pets")
    run = root / "runs" / "default" / "x"
    write(run / "samples" / "000000064.png", 255)
    (run / "summary.json").write_text(json.dumps({"study": "default", "signature": "0"}))
    data = load(root)
    assert data.class_names == ["cat", "dog"] and sum(map(data.count, data.splits)) == 20
    assert "runs/default/x/samples/000000064.png" in data.left_out[0]


def test_classes_come_in_natural_order_and_one_loose_picture_is_named(tmp_path: Path) -> None:
    for k in (1, 10, 2):
        for i in range(4):
            write(tmp_path / "set" / str(k) / f"{i}.png", 20 * k + i)
    data = load(tmp_path / "set")
    assert data.class_names == ["1", "2", "10"]
    assert all(data.labels(s).tolist() == [{1: 0, 2: 1, 10: 2}[v // 20] for v in levels(data, s)] for s in data.splits)
    write(tmp_path / "set" / "stray.png", 5)
    data = load(tmp_path / "set")
    assert data.classes is None
    assert data.found()[0].startswith("data      13 images without classes (1 image in no class folder: stray.png), ")


def test_a_class_without_a_whole_image_is_no_class(tmp_path: Path) -> None:
    root = classes(tmp_path / "pets")
    (root / "emu").mkdir()
    (root / "emu" / "torn.png").write_bytes(b"x")
    (root / "fox").mkdir()
    data = load(root, skip_broken=True)
    assert data.class_names == ["cat", "dog"] and "classes without a readable image: 1 (emu)" in data.left_out


def test_captions_beside_pictures_make_the_set_captioned(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "set" / f"{i}.png", i)
        (tmp_path / "set" / f"{i}.{'txt' if i % 2 else 'caption'}").write_text(f" number\n{i} ")
    (tmp_path / "set" / "readme.txt").write_text("not a caption")
    data = load(tmp_path / "set")
    assert data.kind == "captioned"
    assert all(data.texts(s) == [f"number {v}" for v in levels(data, s)] for s in data.splits)
    assert load(tmp_path / "set", captions=False).texts("train") is None
    assert load(packed(tmp_path / "set")).texts("test") == data.texts("test")
    (tmp_path / "set" / "3.txt").unlink()
    assert data.found()[0].count("without a caption") == 0
    assert "; 1 without a caption, taken as empty: 3.png" in load(tmp_path / "set").found()[0]
    (tmp_path / "set" / "5.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"5\.txt in .* is not UTF-8 text"):
        load(tmp_path / "set")


@pytest.mark.parametrize("pack", [False, True])
def test_captions_of_metadata_beside_the_pictures_or_their_zip(tmp_path: Path, pack: bool) -> None:
    root = tmp_path / "set"
    for i in range(10):
        write(root / f"{i}.png", i)
    place = root
    if pack:
        place = tmp_path / "zipped"
        place.mkdir()
        packed(root).rename(place / "images.zip")
    rows = "".join(f'{"set/" if pack else ""}{i}.png,"no. {i}, grey"\n' for i in range(10))
    (place / "metadata.csv").write_text(f"file_name,text\n{rows}")
    data = load(place)
    assert all(data.texts(s) == [f"no. {v}, grey" for v in levels(data, s)] for s in data.splits)
    (place / "metadata.csv").write_text("name,text\na,b\n")
    with pytest.raises(UserError, match=r"row 1 of metadata\.csv in .* has no file_name"):
        load(place)


def test_nothing_needs_to_be_held_out(tmp_path: Path) -> None:
    data = load(classes(tmp_path / "pets", n=1), validation=0, test=0)
    assert list(data.splits) == ["train"] and data.class_names == ["cat", "dog"] and levels(data, "train") == [0, 1]
    assert data.found()[0].endswith("colour; 2 to train on")
    with pytest.raises(UserError, match=r"pets has no split 'validation': data\.validation=0 holds none out"):
        data.count("validation")


def test_equal_files_stay_together_and_are_counted_across_given_splits(tmp_path: Path) -> None:
    for i in range(20):
        write(tmp_path / "set" / f"{i}.png", i // 2)
    data = load(tmp_path / "set", validation=4, test=4)
    parts = [set(levels(data, split)) for split in data.splits]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 10
    for i in range(6):
        write(tmp_path / "given" / "train" / f"{i}.png", i)
        write(tmp_path / "given" / "test" / f"{i}.png", i + 4)
    assert "; 2 for test are copies of training images" in load(tmp_path / "given", validation=0).found()[0]


def test_plain_sets_keep_the_fingerprint_that_earlier_runs_recorded(tmp_path: Path) -> None:
    """A run of an earlier version resumes only with the data that it began with."""
    for name in ("cat", "dog"):
        for i in range(6):
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            level = 20 * i + (name == "dog")
            (tmp_path / "pets" / name / f"{i}.ppm").write_bytes(b"P6 2 2 255\n" + bytes([level, 0, 9] * 4))
    data = load(tmp_path / "pets")
    assert data._fingerprint("pets") == "db688797cb3218ad"  # of when the name of the folder counted
    (tmp_path / "pets").rename(tmp_path / "moved")
    assert load(tmp_path / "moved").fingerprint == data.fingerprint == "5fb8105f4253f8a8"
