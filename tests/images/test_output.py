"""A folder is written by one call at a time, nothing of the user's is replaced, and a record knows every file."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aigc.errors import RunError, UserError
from aigc.files.written import RECORD, read_record
from aigc.images.output import claim

from ..conftest import environment


def written(out: Path, *names: str, **options) -> Path:
    with claim(out, **options) as output:
        output.facts = {"verb": "generate", "run": "runs/one"}
        for name in names:
            output.write(name, name.encode(), kind="image")
    return output.folder


def content(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["cat.png", "notes.txt", "deep/er/cat.png", RECORD])
def test_a_folder_with_anything_of_the_users_is_refused_and_left_as_it_is(tmp_path, name, overwrite):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"holds (other files|an aigc\.jsonl that cannot be read)"):
        written(tmp_path, "a.png", overwrite=overwrite)
    assert content(tmp_path) == {name} and (tmp_path / name).read_text() == "mine"


def test_hidden_files_and_empty_folders_are_in_nobodys_way(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in (".gitkeep", "Thumbs.db"):
        (tmp_path / name).touch()
    written(tmp_path, "a.png")
    written(tmp_path, "b.png", overwrite=True)
    assert content(tmp_path) == {".gitkeep", "Thumbs.db", "b.png", RECORD}


def test_overwriting_clears_what_the_record_lists_and_nothing_else(tmp_path):
    out = written(tmp_path / "out", "a.png", "in/deep/b.png", "c.png")
    with pytest.raises(UserError, match=r"holds 3 files of an earlier generate: choose another folder, or give over"):
        written(out, "d.png")
    (out / "mine.png").write_text("added")
    (out / "c.png").write_text("changed")
    os.symlink("a.png", out / "link.png")
    with pytest.raises(UserError, match=r"not written by this program, or changed since \('c.png', 'link.png', 'mine"):
        written(out, "d.png", overwrite=True)
    assert (out / "mine.png").read_text() == "added" and (out / "c.png").read_text() == "changed"
    for name in ("mine.png", "c.png", "link.png"):                     # moved away, as the sentence says
        os.rename(out / name, tmp_path / name)
    written(out, "d.png", overwrite=True)
    assert content(out) == {"d.png", RECORD} and not (out / "in").exists()


def test_a_strangers_record_clears_nothing_outside_its_folder(tmp_path):
    out = written(tmp_path / "out", "a.png")
    for name in ("mine.txt", "out/.hidden"):
        (tmp_path / name).write_text("mine")
    facts = {"size": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    with (out / RECORD).open("a") as file:
        for name in ("../mine.txt", str(tmp_path / "mine.txt"), ".hidden", "x/../../mine.txt", "a\0b", ""):
            file.write(json.dumps({"name": name, **facts}) + "\n")
        file.write("[" * 99_999 + "\n")
    assert set(read_record(out).files) == {"a.png"}
    written(out, "b.png", overwrite=True)
    assert content(tmp_path) == {"mine.txt", "out/.hidden", "out/b.png", f"out/{RECORD}"}


def test_nothing_is_made_or_cleared_before_the_first_file(tmp_path):
    with pytest.raises(ValueError, match="a wrong option"), claim(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / RECORD).exists()                # held against others meanwhile
        raise ValueError("a wrong option")
    assert not list(tmp_path.iterdir())
    out = written(tmp_path / "out", "a.png")
    with pytest.raises(ValueError, match="a wrong option"), claim(out, overwrite=True):
        raise ValueError("a wrong option")
    assert content(out) == {"a.png", RECORD} and read_record(out).complete


def test_two_at_once_do_not_share_a_folder(tmp_path):
    for _ in range(2):                                                 # a new folder, then one to be cleared
        with claim(tmp_path / "out", overwrite=True) as output:
            with pytest.raises(UserError, match="is being written by another process"):
                written(tmp_path / "out", "b.png", overwrite=True)
            output.facts = {"verb": "generate"}
            output.write("a.png", b"a")
        assert content(tmp_path / "out") == {"a.png", RECORD}
    with claim(tmp_path / "by time", numbered=True) as first, claim(tmp_path / "by time", numbered=True) as second:
        assert (first.folder, second.folder) == (tmp_path / "by time", tmp_path / "by time_2")


def test_a_killed_process_leaves_a_record_of_what_it_wrote_and_of_what_it_was_writing(tmp_path):
    script = ("import os; from pathlib import Path; from aigc.images.output import claim\n"
              "with claim(Path('out')) as output:\n"
              "    output.facts = {'verb': 'generate'}\n"
              "    output.write('a.png', b'whole')\n"
              "    with output.file('b.png') as file:\n"
              "        file.write(b'half'); file.flush(); os._exit(9)\n")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment(), check=False)
    out = tmp_path / "out"
    assert content(out) == {"a.png", ".b.png.tmp", RECORD}
    record = read_record(out)
    assert list(record.files) == ["a.png", "b.png"] and not record.complete
    (out / "b.png").write_text("the user's")
    with pytest.raises(UserError, match=r"\('b.png'\)"):
        written(out, "c.png", overwrite=True)
    (out / "b.png").unlink()
    written(out, "c.png", overwrite=True)
    assert content(out) == {"c.png", RECORD}


def test_the_record_ends_with_how_it_ended(tmp_path):
    with claim(tmp_path / "out") as output:
        output.facts = {"verb": "edit", "seed": 3}
        output.write("日本.png", b"picture", kind="image", number=0)
        output.ending = {"failed": {"x.png": "broken"}}
    lines = [json.loads(line) for line in (tmp_path / "out" / RECORD).read_text().splitlines()]
    assert lines[0]["program"] == "aigc" and lines[0]["verb"] == "edit" and lines[0]["seed"] == 3
    size, sha256 = 7, hashlib.sha256(b"picture").hexdigest()
    assert lines[-2] == {"name": "日本.png", "kind": "image", "number": 0, "size": size, "sha256": sha256}
    assert lines[-1] == {"status": "complete", "failed": {"x.png": "broken"}}
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "cut") as output:
        output.write("a.png", b"a")
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "cut" / RECORD).read_text().splitlines()[-1]) == {"status": "interrupted"}


@pytest.mark.parametrize("where", ["file", "file/in", "link"])
def test_what_cannot_be_a_folder_is_one_sentence(tmp_path, where):
    (tmp_path / "file").touch()
    os.symlink("nowhere", tmp_path / "link")
    with pytest.raises(UserError, match=rf"out='.*{where}' is a file: choose another folder"):
        written(tmp_path / where, "a.png")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_the_current_folder_is_a_folder_as_others(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"out='\.' holds other files \('mine.txt'\)"):
        written(Path("."), "a.png")
    (tmp_path / "mine.txt").unlink()
    written(Path("."), "a.png")
    assert content(tmp_path) == {"a.png", RECORD}


def test_a_full_disk_leaves_whole_files_and_one_sentence(tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == "c.png":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"c\.png' could not be written \(No space left on device\), 2 files were "
                                       r"written"):
        written(tmp_path / "out", "a.png", "b.png", "c.png")
    monkeypatch.undo()
    assert content(tmp_path / "out") == {"a.png", "b.png", RECORD}
    written(tmp_path / "out", "d.png", overwrite=True)
    assert content(tmp_path / "out") == {"d.png", RECORD}
