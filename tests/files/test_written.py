"""What this program writes is recognized, in folders and in zips, and nothing of the user's is."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from aigc.files.written import RECORD, ours, read_record
from aigc.images.grids import save_grid


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)
    return path


def generated(folder: Path, *names: str, verb: str = "generate", grid: str = "grid.png") -> Path:
    """A folder as generate leaves it."""
    lines = [{"program": "aigc", "verb": verb, "run": "runs/one"}]
    for name in (*names, grid):
        size = picture(folder / name).stat().st_size
        kind = "image" if name != grid else "grid" if verb == "generate" else "comparison"
        lines.append({"name": name, "kind": kind, "size": size})
    lines.append({"status": "complete"})
    (folder / RECORD).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_folder(folder: Path) -> Path:
    """A run folder with what a run draws."""
    for name in ("samples/000000000.png", "samples/000004096_b2a.png", "evaluations/x_neighbours_classifier.png",
                 "wandb/run/files/media/images/samples_1.png", "generated/00000.png", "generated/grid.png"):
        picture(folder / name)
    (folder / "summary.json").write_text(json.dumps({"study": "default", "signature": "ab"}))
    return folder


def found(root: Path, **options) -> dict[str, str]:
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return ours(root, names, **options)


def test_runs_and_generated_folders_among_pictures_are_left_out_each_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = [picture(tmp_path / name) for name in ("a.png", "cats/b.png", "cats/grid.png", "000000001.png")]
    run_folder(tmp_path / "runs" / "one")
    generated(tmp_path / "made", "0.png", "1.png")
    generated(tmp_path / "turned", "cats/b.png", verb="edit", grid="comparison.png")
    reasons = found(Path("."))
    assert not set(reasons) & {path.relative_to(tmp_path).as_posix() for path in mine}
    assert reasons == {
        "made/0.png": "images generated with runs/one", "made/1.png": "images generated with runs/one",
        "made/grid.png": "grids that generate drew",
        "turned/cats/b.png": "pictures edited with runs/one", "turned/comparison.png": "comparisons that edit drew",
        "runs/one/samples/000000000.png": "samples of the run runs/one",
        "runs/one/samples/000004096_b2a.png": "samples of the run runs/one",
        "runs/one/evaluations/x_neighbours_classifier.png": "pictures of evaluations of the run runs/one",
        "runs/one/wandb/run/files/media/images/samples_1.png": "pictures logged to W&B of the run runs/one",
        "runs/one/generated/00000.png": "images generated with the run runs/one",
        "runs/one/generated/grid.png": "images generated with the run runs/one",
    }
    drawings = {name for name in reasons if "samples" in reasons[name] or "pictures of" in reasons[name]
                or "logged" in reasons[name] or name.endswith(("grid.png", "comparison.png"))}
    assert set(found(Path("."), only_drawings=True)) == drawings


def test_a_generated_folder_named_itself_gives_its_images_without_the_grid(tmp_path):
    made = generated(tmp_path / "made", "0.png", "in/1.png")
    picture(made / "mine.png")
    assert set(found(made)) == {"grid.png"} and not found(made / "in")
    run = run_folder(tmp_path / "run")
    assert set(found(run / "generated")) == {"grid.png"}
    assert set(found(run / "samples")) == {"000000000.png", "000004096_b2a.png"}
    assert len(found(run / "wandb")) == 1


def test_what_the_user_put_or_changed_there_is_the_users(tmp_path):
    made = generated(tmp_path / "made", "0.png", "1.png")
    picture(made / "mine.png")
    Image.new("RGB", (40, 40), "red").save(made / "1.png")
    assert set(found(tmp_path)) == {"made/0.png", "made/grid.png"}
    run = run_folder(tmp_path / "run")
    for name in ("samples/cat.png", "photos/000000000.png", "own.png"):
        picture(run / name)
    assert not set(found(run)) & {"samples/cat.png", "photos/000000000.png", "own.png"}
    picture(generated(run / "generated" / "2026", "0.png") / "mine.png")
    assert {"generated/2026/0.png", "generated/2026/grid.png"} == {
        name for name in found(run) if name.startswith("generated/2026")}


def test_a_run_that_only_started_is_told_by_its_configuration_and_other_programs_are_not(tmp_path):
    for folder, config in (("ours", "study: a\nmodel:\n  x: 1\nbudget: {}\n"), ("theirs", "model:\n  x: 1\n")):
        picture(tmp_path / folder / "samples" / "000000000.png")
        (tmp_path / folder / ".hydra").mkdir()
        (tmp_path / folder / ".hydra" / "config.yaml").write_text(config)
    (tmp_path / "theirs" / "summary.json").write_text('["study"]')
    assert set(found(tmp_path)) == {"ours/samples/000000000.png"}


def test_a_grid_copied_elsewhere_says_what_it_is(tmp_path):
    save_grid(torch.zeros(4, 3, 8, 8), tmp_path / "grid.png")
    os.link(tmp_path / "grid.png", tmp_path / "000001024.png")
    os.link(tmp_path / "grid.png", tmp_path / "renamed.png")      # by name and record
    picture(tmp_path / "x_neighbours_a.png")
    picture(tmp_path / "y_neighbours_a.png")
    (tmp_path / "y.json").write_text('{"target": {}, "scores": {}, "protocol": {}}')
    assert set(found(tmp_path)) == {"grid.png", "000001024.png", "y_neighbours_a.png"}


@pytest.mark.parametrize("only_drawings", [False, True])
def test_a_zip_is_as_the_folder_in_it(tmp_path, only_drawings):
    run_folder(tmp_path / "all" / "run")
    generated(tmp_path / "all" / "made", "0.png")
    picture(tmp_path / "all" / "a.png")
    save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "all" / "copied" / "grid.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "all").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "all"))
        names = [name for name in archive.namelist() if name.endswith(".png")]
    there = found(tmp_path / "all", only_drawings=only_drawings)
    assert set(ours(tmp_path / "all.zip", names, only_drawings=only_drawings)) == set(there) and there


def test_a_zipped_generated_folder_gives_its_images(tmp_path):
    made = generated(tmp_path / "made", "0.png", "1.png")
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for path in made.iterdir():
            archive.write(path, path.relative_to(tmp_path))
    assert set(ours(tmp_path / "made.zip", ["made/0.png", "made/1.png", "made/grid.png"])) == {"made/grid.png"}


def test_a_record_is_read_as_far_as_it_was_written(tmp_path):
    made = generated(tmp_path / "made", "0.png", "1.png")
    whole = read_record(made)
    assert whole is not None and whole.complete and list(whole.files) == ["0.png", "1.png", "grid.png"]
    text = (made / RECORD).read_text()
    (made / RECORD).write_text(text[: text.index('"1.png"') + 3])
    cut = read_record(made)
    assert cut is not None and not cut.complete and list(cut.files) == ["0.png"]
    for strange in ("", "nonsense", '{"program": "other"}\n', "[1]\n"):
        (made / RECORD).write_text(strange)
        assert read_record(made) is None
    (made / RECORD).write_bytes(b"\xff\xfe")
    assert read_record(made) is None and read_record(tmp_path / "nowhere") is None
