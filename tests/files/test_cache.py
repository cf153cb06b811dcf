"""What is kept on disk appears whole, and what is damaged is made again."""

import pytest
import torch

from aigc.errors import UserError
from aigc.files.cache import cache_folder, keep_cached, load_cached


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_keeps_and_finds(folder):
    assert load_cached("thing") is None
    keep_cached("thing", {"weights": torch.arange(3), "accuracy": 0.5})
    kept = load_cached("thing")
    assert kept["weights"].tolist() == [0, 1, 2] and kept["accuracy"] == 0.5
    assert [path.name for path in folder.iterdir()] == ["thing.pt"]


def test_a_damaged_entry_counts_as_missing(folder):
    keep_cached("thing", 1.5)
    whole = (folder / "thing.pt").read_bytes()
    for broken in (b"", b"no torch file", whole[: len(whole) // 2]):
        (folder / "thing.pt").write_bytes(broken)
        assert load_cached("thing") is None
    for odd in (1.5, {"value": 1.5}, {"value": 1.5, "checksum": 7}, [1.5]):
        torch.save(odd, folder / "thing.pt")
        assert load_cached("thing") is None


def test_one_changed_number_counts_as_damage(folder):
    value = {"features": torch.arange(64.0), "rest": [torch.tensor([], dtype=torch.bool), None, "a"]}
    keep_cached("thing", value)
    whole = (folder / "thing.pt").read_bytes()
    at = whole.index(torch.tensor([41.0, 42.0]).numpy().tobytes())
    (folder / "thing.pt").write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    assert load_cached("thing") is None
    (folder / "thing.pt").write_bytes(whole)
    kept = load_cached("thing")
    assert kept["features"].tolist() == list(range(64)) and kept["rest"][1:] == [None, "a"]


def test_a_failed_write_leaves_nothing(folder, monkeypatch):
    def full(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left on device.*AIGC_CACHE"):
        keep_cached("thing", 1)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set AIGC_CACHE"):
        cache_folder()
