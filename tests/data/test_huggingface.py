"""The `datasets` library behind one option: parquet and image folders, columns found or named."""

import io
import json
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
            "label": list(range(9))}
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(rows, features=datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64")})).to_parquet(str(path))
    with pytest.raises(UserError, match=r"2 of 9 images .*: train\[2\] \(not an image\), train\[5\] \("):
        load(path)
    data = load(path, skip_broken=True)
    assert data.labels("train").tolist() == levels(data, "train") and not {2, 5} & set(levels(data, "train"))


def test_missing_corrupt_and_misnamed_are_one_sentence_each(tmp_path: Path) -> None:
    good = parquet(tmp_path / "good.parquet", label=(datasets.Value("int64"), [-1, *range(19)]))
    (tmp_path / "torn.parquet").write_bytes(good.read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    datasets.Dataset.from_dict({"words": ["a", "b"]}).to_parquet(str(tmp_path / "words.parquet"))
    for path, options, words in (
        (tmp_path / "nowhere.parquet", {}, "does not exist"),
        (tmp_path / "torn.parquet", {}, "is damaged or of no kind"),
        (tmp_path / "empty", {}, "is damaged or of no kind"),
        ("nobody/has-this", {}, "cannot be loaded from the Hub"),
        (tmp_path / "words.parquet", {}, r"no column of images .*\(it has words\): name it with data.image"),
        (good, {"image": "imge"}, "no column 'imge' for data.image: did you mean 'image'"),
        (good, {"text": "a {stile}"}, "no column 'stile' for data.text"),
        (good, {}, "labels from -1 to 18"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load(path, **options)
        assert "\n" not in str(caught.value)


def test_the_emoji_keep_concepts_apart(shared: Path) -> None:
    data = load(shared / "emoji", size=16, text="{style} emoji of {text}", group="text")
    concepts = {s: {text.split(" emoji of ")[1] for text in data.split(s).texts} for s in data.splits}
    assert data.count("train") + data.count("test") == 6185 and data.count("validation") == 348
    assert not concepts["train"] & concepts["test"] and not concepts["train"] & concepts["validation"]
    assert data.channels == 3 and data.classes == 9
