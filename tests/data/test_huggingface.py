"""The `datasets` library behind one option: parquet and image folders, columns found or named."""

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from aigc.data.huggingface import HuggingFace
from aigc.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def png(value: int, size: tuple[int, int] = (9, 7)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, n: int = 20, start: int = 0, **columns: tuple[object, list]) -> Path:
    """Rows with an `image` (its number is its red level), and more columns as (feature, values)."""
    features = datasets.Features({"image": datasets.Image(), **{k: f for k, (f, _) in columns.items()}})
    rows = {"image": [{"bytes": png(start + i), "path": None} for i in range(n)],
            **{k: values for k, (_, values) in columns.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


def load(path: Path | str, **options: object) -> HuggingFace:
    data = HuggingFace(**{"path": str(path), "batch_size": 4, **options})  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def levels(data: HuggingFace, split: str) -> list[int]:
    return data.images(split)[:, 0, 0, 0].tolist()


def test_one_parquet_file_with_class_names_is_cut_into_three(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["even", "odd"])
    data = load(parquet(tmp_path / "a.parquet", label=(names, [i % 2 for i in range(20)])))
    parts = {s: levels(data, s) for s in ("train", "validation", "test")}
    assert [len(p) for p in parts.values()] == [16, 2, 2]
    assert sorted(v for part in parts.values() for v in part) == list(range(20))
    assert (data.kind, data.size, data.channels, data.class_names) == ("images", (7, 9), 3, ["even", "odd"])
    assert all(data.labels(s).tolist() == [v % 2 for v in levels(data, s)] for s in parts)


def test_a_folder_of_parquet_files_keeps_its_splits(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "train.parquet")
    parquet(tmp_path / "set" / "test.parquet", n=5, start=100)
    data = load(tmp_path / "set", validation=4)
    assert levels(data, "test") == list(range(100, 105)) and data.classes is None
    assert sorted(levels(data, "train") + levels(data, "validation")) == list(range(20))
    assert data.count("validation") == 4


def test_columns_are_named_and_texts_filled_into_templates(tmp_path: Path) -> None:
    string, number = datasets.Value("string"), datasets.Value("int64")
    path = parquet(tmp_path / "a.parquet", kind=(string, ["cat", "dog"] * 10),
                   caption=(string, [f"c{i}" for i in range(20)]), label=(number, [i % 4 for i in range(20)]),
                   many=(datasets.Sequence(string), [[f"m{i}", "x"] for i in range(20)]))
    found = load(path)
    assert found.kind == "captioned" and found.classes == 4 and found.class_names == ["0", "1", "2", "3"]
    assert found.split("train").texts == [f"c{i}" for i in levels(found, "train")]
    named = load(path, label="kind", text="a {kind}, {many}")
    assert named.class_names == ["cat", "dog"]
    assert named.labels("train").tolist() == [i % 2 for i in levels(named, "train")]
    assert named.split("test").texts == [f"a {['cat', 'dog'][i % 2]}, m{i}" for i in levels(named, "test")]
    joined = load(path, text="a {kind}: {many:; }")                    # all of several texts, by a separator
    assert joined.split("test").texts == [
        f"a {['cat', 'dog'][i % 2]}: m{i}; x" for i in levels(joined, "test")]
    none = load(path, label=None, text=None)
    assert none.kind == "images" and none.classes is None and none.split("train").texts is None


def test_rows_of_a_group_are_held_out_together(tmp_path: Path) -> None:
    concept = [f"k{i // 4}" for i in range(20)]
    data = load(parquet(tmp_path / "a.parquet", text=(datasets.Value("string"), concept)), group="text")
    texts = {s: set(data.split(s).texts) for s in data.splits}
    assert all(len(data.split(s)) == 4 * len(texts[s]) for s in texts)
    assert sum(map(len, texts.values())) == 5


def test_an_image_folder_with_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    with open(folder / "metadata.jsonl", "w") as file:
        for i in range(12):
            (folder / f"{i}.png").write_bytes(png(i, size=(10 + i, 8)))
            row = {"file_name": f"{i}.png", "text": f"number {i}", "label": "low" if i < 6 else "high"}
            print(json.dumps(row), file=file)
    data = load(tmp_path / "pictures", size=6)
    assert data.size == (6, 6) and data.class_names == ["high", "low"] and data.kind == "captioned"
    assert data.split("train").texts == [f"number {i}" for i in levels(data, "train")]
    streamed = load(tmp_path / "pictures", size=6, memory_gb=0, workers=2)
    for one, other in zip(data.eval_dataloader("train"), streamed.eval_dataloader("train"), strict=True):
        assert torch.equal(one["image"], other["image"]) and one["text"] == other["text"]
    assert data.fingerprint == streamed.fingerprint


def test_broken_rows_are_named_together(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(i) if i not in (2, 5) else b"torn", "path": None} for i in range(9)],
            "label": [i // 3 for i in range(9)]}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64")})).to_parquet(str(path))
    with pytest.raises(UserError, match=r"2 of 9 images .*: train\[2\] \(not an image\), train\[5\] \("):
        load(path)
    data = load(path, skip_broken=True)
    assert data.labels("train").tolist() == [i // 3 for i in levels(data, "train")]
    assert not {2, 5} & set(levels(data, "train"))


def test_missing_corrupt_and_misnamed_are_one_sentence_each(tmp_path: Path) -> None:
    good = parquet(tmp_path / "good.parquet", label=(datasets.Value("int64"), [None, *range(19)]),
                   kind=(datasets.Value("float32"), [i + 0.5 for i in range(20)]))
    (tmp_path / "torn.parquet").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    datasets.Dataset.from_dict({"words": ["a", "b"]}).to_parquet(str(tmp_path / "words.parquet"))
    for path, options, words in (
        (tmp_path / "nowhere.parquet", {}, "does not exist"),
        (tmp_path / "torn.parquet", {}, "is damaged or in a format"),
        (tmp_path / "empty", {}, "is damaged or in a format"),
        ("nobody/has-this", {}, "cannot be loaded from the Hub"),
        (tmp_path / "words.parquet", {}, r"no recognizable image column \(it has words\): name it with data.image"),
        (good, {"image": "imge"}, "no column 'imge' for data.image: did you mean 'image'"),
        (good, {"text": "a {stile}"}, "no column 'stile' for data.text"),
        (good, {}, "'label' of .* has rows without a label"),
        (good, {"label": "kind"}, "'kind' of .* holds no classes"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load(path, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("feature", "kinds", "names"), [
    ("int64", [7, 1], ["1", "7"]),
    ("int64", [10, -3], ["-3", "10"]),
    ("int64", [2, 1], ["1", "2"]),
    ("bool", [True, False], ["False", "True"]),
    ("float32", [10.0, 2.0], ["2", "10"]),
    ("string", ["10", "2"], ["2", "10"]),
    ("string", ["dog", "Cat"], ["Cat", "dog"]),
    (["never", "even", "nor", "odd"], [3, 1], ["even", "odd"]),
])
def test_classes_are_what_occurs_under_its_own_name(
    tmp_path: Path, feature: str | list[str], kinds: list, names: list[str]
) -> None:
    typed = datasets.Value(feature) if isinstance(feature, str) else datasets.ClassLabel(names=feature)
    data = load(parquet(tmp_path / "a.parquet", label=(typed, kinds * 10)))
    assert (data.classes, data.class_names) == (2, names)
    for split in data.splits:       # even images have the first kind, which comes second in order
        assert data.labels(split).tolist() == [1 - i % 2 for i in levels(data, split)]
    assert "of 2 classes (" + ", ".join(names) + ")" in data.found()[0]
    assert ("never, nor" in data.found()[0]) == isinstance(feature, list)


def test_held_out_rows_of_classes_that_train_lacks_are_left_out(tmp_path: Path) -> None:
    number = datasets.Value("int64")
    parquet(tmp_path / "set" / "train.parquet", label=(number, [1, 7] * 10))
    parquet(tmp_path / "set" / "test.parquet", n=4, start=100, label=(number, [7, 8, 1, 9]))
    data = load(tmp_path / "set")
    assert data.class_names == ["1", "7"] and levels(data, "test") == [100, 102]
    assert data.labels("test").tolist() == [1, 0]
    assert data.left_out == ["test images of classes that do not occur in train: 2 (row 1, row 3)"]
    parquet(tmp_path / "set" / "test.parquet", n=4, start=100, label=(number, [8, 8, 9, 9]))
    with pytest.raises(UserError, match=r"no test image of .* has a class that occurs in train"):
        load(tmp_path / "set")


def test_every_class_keeps_an_image_to_train_on(tmp_path: Path) -> None:
    rare = [0] * 8 + [1] * 9 + [2, 3, 4]
    path = parquet(tmp_path / "a.parquet", label=(datasets.Value("int64"), rare))
    for seed in range(6):
        data = load(path, split_seed=seed, validation=5, test=5)
        assert set(data.labels("train").tolist()) == set(range(5))
        assert sorted(v for s in data.splits for v in levels(data, s)) == list(range(20))
        assert (data.count("validation"), data.count("test")) == (5, 5)


def test_a_number_in_every_row_is_no_class(tmp_path: Path) -> None:
    data = load(parquet(tmp_path / "a.parquet", label=(datasets.Value("int64"), list(range(20)))))
    assert data.classes is None and "without classes (column 'label' has a different value" in data.found()[0]


def test_equal_images_are_held_out_together(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": png(i // 2), "path": None} for i in range(40)]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        str(tmp_path / "a.parquet"))
    data = load(tmp_path / "a.parquet")
    parts = [set(levels(data, split)) for split in data.splits]
    assert sum(map(len, parts)) == 20 and len(set().union(*parts)) == 20


def test_a_zip_beside_its_metadata(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(12):
            archive.writestr(f"images/{i}.png", png(i))
    rows = [{"file_name": f"{i}.png", "text": f"number {i}", "label": ["low", "high"][i % 2]} for i in range(12)]
    (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = load(tmp_path)
    assert data.kind == "captioned" and data.class_names == ["high", "low"]
    assert sum(map(data.count, data.splits)) == 12
    assert list(data.split("train").texts) == [f"number {i}" for i in levels(data, "train")]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "99.png", "text": "x"}\n')
    with pytest.raises(UserError, match=r"metadata.jsonl in .* names 1 file that is not in images.zip: 99.png"):
        load(tmp_path)


def test_what_the_library_passes_over_is_named_or_refused(tmp_path: Path) -> None:
    for folder in ("train/10", "train/2", "test/10", "test/2", "preview"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "set" / folder / f"{i}.png").write_bytes(png(i))
    data = load(tmp_path / "set")
    assert data.class_names == ["2", "10"]                       # the library's own order is that of letters
    assert data.left_out[0].startswith("pictures that the datasets library passes over: 4 (preview/0.png, ")
    (tmp_path / "set" / "train").rename(tmp_path / "set" / "good")
    with pytest.raises(UserError, match=r"takes only the folder for test, and leaves out good/10/0\.png, "):
        load(tmp_path / "set")


def test_an_image_folder_leaves_out_what_this_program_drew(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    samples = tmp_path / "runs" / "x" / "samples"
    samples.mkdir(parents=True)
    (samples / "000000064.png").write_bytes(png(99))
    (samples.parent / "summary.json").write_text(json.dumps({"study": "s", "signature": "0"}))
    data = load(tmp_path)
    assert sorted(v for s in data.splits for v in levels(data, s)) == list(range(12))
    assert "runs/x/samples/000000064.png" in data.found()[1]


def test_the_emoji_keep_concepts_apart(shared: Path) -> None:
    data = load(shared / "emoji", size=16, text="{style} emoji of {text}", group="text")
    concepts = {s: {text.split(" emoji of ")[1] for text in data.split(s).texts} for s in data.splits}
    assert data.count("train") + data.count("test") == 6185 and data.count("validation") == 348
    assert not concepts["train"] & concepts["test"] and not concepts["train"] & concepts["validation"]
    assert data.channels == 3 and data.classes == 9
