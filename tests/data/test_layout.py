"""What folders mean: splits wherever they stand, classes, and what is refused because it could be either."""

import pytest

from aigc.data.layout import lay_out
from aigc.errors import UserError
from aigc.files.names import natural, split_of


def names(*folders: str) -> list[str]:
    """Two pictures in each folder; "." is the top."""
    return [f"{folder}/{k}.png".removeprefix("./") for folder in folders for k in range(2)]


SPLIT = {"train": ["train"], "test": ["test"]}
LAYOUTS: list[tuple[list[str], dict[str, list[str]], list[str]]] = [     # folders; splits; what is left out
    (["train", "test"], SPLIT, []),
    (["train", "test", "."], SPLIT, ["."]),
    (["train", "test", "preview"], SPLIT, ["preview"]),
    (["train", "preview"], {"train": ["train"]}, ["preview"]),
    (["train", "."], {"train": ["train"]}, ["."]),
    (["train/a", "train/b", "c", "d"], {"train": ["train/a", "train/b"]}, ["c", "d"]),
    (["data/pets/train", "data/pets/test", "data", "."], {"train": ["data/pets/train"], "test": ["data/pets/test"]},
     ["data", "."]),
    (["Train", "TEST", "Valid"], {"train": ["Train"], "test": ["TEST"], "validation": ["Valid"]}, []),
    (["train2017", "val2017"], {"train": ["train2017"], "validation": ["val2017"]}, []),
    (["training_set/a", "test_set/a"], {"train": ["training_set/a"], "test": ["test_set/a"]}, []),
    (["training/train", "training/test"], {"train": ["training/train"], "test": ["training/test"]}, []),
    (["cat/train", "cat/test", "dog/train", "dog/test", "."],
     {"train": ["cat/train", "dog/train"], "test": ["cat/test", "dog/test"]}, ["."]),
    (["cat/train", "cat/test", "dog/train", "dog"],
     {"train": ["cat/train", "dog/train"], "test": ["cat/test"]}, ["dog"]),
    (["good", "test"], {"train": ["good", "test"]}, []),
    (["cat", "dog/deep"], {"train": ["cat", "dog/deep"]}, []),
    (["trained", "tests", "value"], {"train": ["trained", "tests", "value"]}, []),
]


@pytest.mark.parametrize(("folders", "splits", "strays"), LAYOUTS, ids=lambda value: "+".join(value)[:40])
def test_splits_are_found_wherever_they_stand(
    folders: list[str], splits: dict[str, list[str]], strays: list[str]
) -> None:
    layout = lay_out(names(*folders), "set")
    assert layout.files == {split: names(*found) for split, found in splits.items()}
    assert sorted(name for found in layout.left_out.values() for name in found) == sorted(names(*strays))


@pytest.mark.parametrize(("folders", "words"), [
    (["test", "val"], "has the folders test, val but none called train"),
    (["test"], "has the folder test but none called train"),
    (["images", "test", "val"], "has the folders test, val beside images but none called train"),
    ([".", "test"], "has the folder test beside 2 loose pictures but none called train"),
    (["train", "Training", "test"], "has the folders Training, train, which both mean train"),
    (["train", "car", "bus"], r"beside bus, car: if it is the training set, .* a class, set data.labels=true"),
    (["cat/train", "dog/test"], r"train and test \(or similar\) in different folders \(cat, dog\)"),
    (["train/train", "train/test", "test"], "one inside the other"),
    (["pets/train", "pets/test", "more"], "holds train in pets, and other images beside that in more"),
    (["a/train", "a/test", "b/c/train", "b/c/test"], "at several depths"),
    (["cat/train", "cat/test", "dog/train", "dog/test", "bird"], "and other images in bird"),
])
def test_what_could_mean_either_is_refused(folders: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        lay_out(names(*folders), "set")
    assert str(caught.value).startswith("set ")


def test_classes_are_the_folders_below_the_splits() -> None:
    layout = lay_out(names("train/cat", "train/dog/deep", "train", "test/cat"), "set")
    assert layout.folders == {"train": ["cat"] * 2 + ["dog"] * 2 + [None] * 2, "test": ["cat"] * 2}
    nested = lay_out(names("x/cat/train", "x/dog/train/deep", "x/cat/test"), "set")
    assert nested.folders == {"train": ["cat"] * 2 + ["dog"] * 2, "test": ["cat"] * 2}
    assert "each class folder holds its own splits" in nested.note
    vehicles = lay_out(names("car", "bus", "train"), "set", labels=True)
    assert vehicles.folders == {"train": ["car"] * 2 + ["bus"] * 2 + ["train"] * 2}


def test_a_class_called_test_is_said_to_be_one() -> None:
    note = lay_out(names("good", "test"), "set").note
    assert note.startswith("test is a folder like any other, because there is no folder")
    assert lay_out(names("good", "bad"), "set").note == ""


def test_names_of_splits_and_natural_order() -> None:
    assert [split_of(n) for n in ("Train", "dev", "test_images", "val-2", "tester", "latest", "a")] == [
        "train", "validation", "test", "validation", None, None, None]
    mixed = ["10", "b2", "2", "B10", "a", "02", "b1x"]
    assert sorted(mixed, key=natural) == ["02", "2", "10", "a", "b1x", "b2", "B10"]
