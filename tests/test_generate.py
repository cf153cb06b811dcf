import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from aigc import __version__
from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.errors import RunError, UserError
from aigc.files.written import RECORD, read_record
from aigc.generate import generate
from aigc.images.generating import in_rows, overview
from aigc.images.grids import GAP, LINE, TONE
from aigc.images.recipes import pixels_of, read_recipe
from aigc.models.checkpoints import load_family, run_of
from aigc.models.gan import GAN
from aigc.models.requests import label_of, labels_of
from aigc.training.fit import fit

from .conftest import TINY, compose_train, environment


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of every family, conditioned on labels."""
    made = {}
    for family, shape in TINY.items():
        made[family] = tmp_path_factory.mktemp(family)
        quick = ["metrics=none", "~callbacks.samples", "condition=label", "budget.images=4800"]
        fit(compose_train(*shape, *quick), made[family])
    return made


def make(**options) -> None:
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in options.items()]
        generate(compose("generate", overrides=overrides))


@pytest.mark.parametrize("family", list(TINY))
def test_image_k_is_the_same_whatever_the_batch_size(family, runs, tmp_path):
    make(run=runs[family], n=6, out=tmp_path / "one", seed=5, format="npy", batch_size=6)
    make(run=runs[family], n=4, out=tmp_path / "two", seed=5, format="npy", batch_size=3)
    make(run=runs[family], n=4, out=tmp_path / "other", seed=6, format="npy", batch_size=3)
    one, two, other = (np.load(tmp_path / d / "images.npy") for d in ("one", "two", "other"))
    assert one.shape == (6, 8, 8, 1) and one.dtype == np.uint8
    assert np.abs(one[:4].astype(int) - two).max() <= 1  # to float tolerance, then rounded
    assert np.abs(one[:4].astype(int) - other).max() > 1


def test_pngs_and_a_grid_are_written_and_agree_with_npy(runs, tmp_path):
    make(run=runs["diffusion"], n=5, out=tmp_path / "png", label=3)
    make(run=runs["diffusion"], n=5, out=tmp_path / "npy", label=3, format="npy")
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == [
        *(f"{k:05}.png" for k in range(5)), RECORD, "grid.png"]
    stack = np.load(tmp_path / "npy" / "images.npy")
    for k in range(5):
        picture = Image.open(tmp_path / "png" / f"{k:05}.png")
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), stack[k, ..., 0])


def test_sampler_steps_and_guidance_are_options(runs, tmp_path):
    base = {"run": runs["diffusion"], "n": 2, "format": "npy", "label": 1}
    make(**base, out=tmp_path / "a")
    make(**base, out=tmp_path / "b", sampler="euler", sampler__steps=2)
    make(**base, out=tmp_path / "c", guidance=4)
    a, b, c = (np.load(tmp_path / d / "images.npy").astype(int) for d in "abc")
    assert np.abs(a - b).max() > 1 and np.abs(a - c).max() > 1


def test_labels_go_round_and_are_checked(runs):
    family = load_family(runs["gan"])
    assert labels_of(family, None, 12).tolist() == [*range(10), 0, 1]
    assert labels_of(family, 3, 2).tolist() == [3, 3]
    assert labels_of(family, [1, 2], 3).tolist() == [1, 2, 1]
    for wrong in (10, -1, "three", 1.5):
        with pytest.raises(UserError, match="choose from 0 to 9"):
            labels_of(family, wrong, 1)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three classes of the user's own, whose names are partly numbers."""
    folder = tmp_path_factory.mktemp("pets")
    for k, name in enumerate(("cat", "dog", "1")):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("L", (8, 8), 80 * k + i).save(folder / "data" / name / f"{i}.png")
    data = ["data=image_folder", f"data.path={folder / 'data'}", "data.size=8", "condition=label"]
    quick = ["metrics=none", "budget.images=32", "callbacks.samples.n=12"]
    fit(compose_train(TINY["gan"][0], *TINY["gan"][1:], *data, *quick), folder / "run")
    return folder / "run"


def test_names_of_classes_stand_in_checkpoint_summary_card_and_grids(pets, tmp_path):
    assert torch.load(pets / "checkpoints" / "last.ckpt", weights_only=True)["class_names"] == ["1", "cat", "dog"]
    assert json.loads((pets / "summary.json").read_text())["data"]["class_names"] == ["1", "cat", "dog"]
    card = (pets / "README.md").read_text()
    assert "| classes | 1, cat, dog |" in card and "label=1\n" in card
    make(run=pets, n=12, out=tmp_path / "out")
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    step = 56 + GAP + LINE
    assert grid.shape == (3 * step - GAP, 4 * (56 + GAP) - GAP)
    for row, name in enumerate(("1", "cat", "dog")):                   # each class a row, with its name above
        above = grid[row * step : row * step + LINE]
        assert (above != TONE).any(), name
        assert np.array_equal(above, np.asarray(Image.open(newest(pets / "samples")))[row * step : row * step + LINE])


def newest(folder: Path) -> Path:
    return max(folder.iterdir())


def test_classes_are_asked_for_by_name_or_number(pets, tmp_path):
    make(run=pets, n=2, out=tmp_path / "name", label="dog", format="npy")
    make(run=pets, n=2, out=tmp_path / "list", label="[dog,cat]", format="npy")
    make(run=pets, n=2, out=tmp_path / "cat", label="cat", format="npy")
    name, listed, cat = (np.load(tmp_path / d / "images.npy") for d in ("name", "list", "cat"))
    assert np.array_equal(listed, [name[0], cat[1]]) and not np.array_equal(name, cat)
    family = load_family(pets)
    assert labels_of(family, ["cat", "dog"], 3).tolist() == [1, 2, 1]
    assert labels_of(family, 1, 1).tolist() == [0]                     # a name, not a number
    assert labels_of(family, "all", 4).tolist() == labels_of(family, None, 4).tolist() == [0, 1, 2, 0]
    for wrong, sentence in (("dgo", "did you mean 'dog'?"), (2, "choose from 1, cat, dog"),
                            ("Cat", "did you mean 'cat'?"), ([], "names no class"), ([["cat"]], "is not a class")):
        with pytest.raises(UserError, match=re.escape(sentence)):
            labels_of(family, wrong, 1)


@pytest.mark.parametrize(  # names that are numbers count as names
    ("wanted", "names", "number"),
    [
        ("7", ["1", "7"], 1), (1, ["1", "7"], 0), (0, ["1", "7"], None), (1, ["2", "dog"], None),
        (True, ["false", "true"], 1), (1, ["cat", "dog"], 1), ("0", None, 0), (2, None, None), (-1, None, None),
        ("all", ["all", "none"], 0), (1.5, None, None),
    ],
)
def test_what_a_label_means(wanted, names, number):
    if number is None:
        with pytest.raises(UserError, match="is not a class of this model: choose from"):
            label_of(wanted, 2, names)
    else:
        assert label_of(wanted, 2, names) == number


def test_many_classes_are_told_by_their_number_and_stand_above_each_image(tmp_path):
    names = [f"kind {k}" for k in range(100)]
    with pytest.raises(UserError, match=r"choose from kind 0, .*, kind 19 and 80 more"):
        label_of("zebra", 100, names)
    asked = [{"label": name} for name in names]
    assert not in_rows(asked) and in_rows(asked[:16]) and in_rows([{"text": name} for name in names])
    many = Image.open(io.BytesIO(overview(torch.zeros(20, 1, 56, 56, dtype=torch.uint8), names[:20], rows=False)))
    assert many.size == (5 * (56 + GAP) - GAP, 4 * (56 + GAP + LINE) - GAP)
    pixels = np.asarray(many)
    assert all((pixels[row * (56 + GAP + LINE) :][:LINE, k * (56 + GAP) :][:, :56] != TONE).any()
               for row in range(4) for k in range(5))


def test_a_checkpoint_of_before_names_no_classes_and_is_asked_by_number(runs, tmp_path):
    content = torch.load(runs["gan"] / "checkpoints" / "last.ckpt", weights_only=True)
    del content["class_names"]
    torch.save(content, tmp_path / "old.ckpt")
    family = load_family(tmp_path / "old.ckpt")
    assert family.class_names is None and labels_of(family, "3", 1).tolist() == [3]
    for strange in (["cat"], "cat", {}):
        torch.save({**content, "class_names": strange}, tmp_path / "strange.ckpt")
        with pytest.raises(UserError, match="does not name 10 classes, as many as its GAN knows"):
            load_family(tmp_path / "strange.ckpt")


def test_any_picture_says_how_to_make_it_again(pets, tmp_path):
    make(run=pets, n=3, out=tmp_path / "one", seed=7, label="[cat,dog]", truncation=0.5)
    recipe = read_recipe(tmp_path / "one" / "00001.png")
    sha256 = hashlib.sha256((pets / "checkpoints" / "best.ckpt").read_bytes()).hexdigest()
    pixels = pixels_of(np.asarray(Image.open(tmp_path / "one" / "00001.png"))[..., None])
    assert recipe == {"program": "aigc", "version": __version__, "verb": "generate", "run": f"{pets.parent.name}/run",
                      "checkpoint": "best", "sha256": sha256, "seed": 7, "options": {"truncation": 0.5}, "number": 1,
                      "label": "dog", "pixels": pixels,
                      "batch": {"start": 0, "size": 3, "at_once": 64, "label": ["cat", "dog"]}}
    record = read_record(tmp_path / "one")
    assert record is not None and record.complete and record.facts["options"]["label"] == ["cat", "dog"]
    assert record.facts["sha256"] == sha256 and record.files["00001.png"]["label"] == "dog"
    assert {name: facts["kind"] for name, facts in record.files.items()} == {
        "00000.png": "image", "00001.png": "image", "00002.png": "image", "grid.png": "grid"}
    make(run=pets, n=3, out=tmp_path / "two", seed=7, label="[cat,dog]", truncation=0.5)
    for path in (tmp_path / "one").glob("*.png"):                      # byte for byte
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    Image.new("L", (4, 4)).save(tmp_path / "mine.png")
    assert read_recipe(tmp_path / "mine.png") is None


def test_pictures_of_two_calls_are_never_mixed(pets, tmp_path, capsys):
    out = tmp_path / "x"
    make(run=pets, n=8, out=out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError, match=r"out='.*x' holds 9 files of an earlier generate: .*overwrite=true"):
        make(run=pets, n=3, label="dog", out=out)
    with pytest.raises(UserError, match="not a class of this model"):     # a mistake clears nothing
        make(run=pets, n=3, label="fox", out=out, overwrite="true")
    with pytest.raises(UserError, match="no sampling option 'guidance'"):
        make(run=pets, n=3, guidance=2, out=out, overwrite="true")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    make(run=pets, n=3, label="dog", out=out, overwrite="true")
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "00002.png", RECORD, "grid.png"]
    capsys.readouterr()
    made = []
    for _ in range(2):                                                 # each call a folder of its own, by default
        make(run=pets, n=1)
        made.append(Path(capsys.readouterr().out.strip().removeprefix("1 image in ")))
    assert made[0] != made[1] and made[0].parent == made[1].parent == pets / "generated"
    assert all((folder / "00000.png").exists() for folder in made)
    for folder in (pets, tmp_path, pets / "checkpoints"):
        with pytest.raises(UserError, match="holds other files"):
            make(run=pets, n=1, out=folder, overwrite="true")


@pytest.mark.parametrize("form", ["png", "npy"])
def test_an_interruption_keeps_what_is_made_and_it_can_be_cleared(pets, tmp_path, form, monkeypatch):
    making = GAN.sample

    def interrupted(self, n, *, seeds, **options):
        if interrupted.calls == 3:
            raise KeyboardInterrupt
        interrupted.calls += 1
        return making(self, n, seeds=seeds, **options)

    interrupted.calls = 0
    monkeypatch.setattr(GAN, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(run=pets, n=20, batch_size=2, out=tmp_path / "x", format=form)
    monkeypatch.undo()
    made = sorted(path.name for path in (tmp_path / "x").iterdir())
    record = read_record(tmp_path / "x")
    assert record is not None and not record.complete
    if form == "png":
        assert made == [*(f"{k:05}.png" for k in range(6)), RECORD]
    else:
        assert made == [RECORD, "images.npy"]
        make(run=pets, n=6, batch_size=2, out=tmp_path / "whole", format=form)
        assert np.array_equal(np.load(tmp_path / "x" / "images.npy"), np.load(tmp_path / "whole" / "images.npy"))
    make(run=pets, n=1, out=tmp_path / "x", overwrite="true")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["00000.png", RECORD, "grid.png"]


def test_a_disk_too_small_for_all_images_is_known_at_the_first(pets, tmp_path, monkeypatch):
    asked, making = [], GAN.sample

    def full(descriptor, offset, size):
        asked.append((offset, size))
        raise OSError(28, "No space left on device")

    def counted(self, n, **options):
        counted.calls += 1
        return making(self, n, **options)

    counted.calls = 0
    monkeypatch.setattr(GAN, "sample", counted)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"images\.npy' could not be written \(No space left on device\), nothing was"):
        make(run=pets, n=20, batch_size=2, out=tmp_path / "x", format="npy")
    assert asked == [(128, 20 * 64)] and counted.calls == 1


def test_a_checkpoint_needs_no_config_and_loads_with_weights_only(runs):
    for folder in runs.values():
        path = folder / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        assert content["hyper_parameters"]["size"] is not None
        family = load_family(path)
        assert not family.training and family.progress.images == 4800
    assert run_of(runs["gan"] / "checkpoints" / "last.ckpt") == runs["gan"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"guidance": 2}, "GAN has no sampling option 'guidance'"),
        ({"label": 11}, "label=11 is not a class of this model: choose from 0 to 9"),
        ({"format": "jpg"}, "unsupported format 'jpg': did you mean 'png'?"),
        ({"run": "nowhere"}, "'nowhere' is neither a run folder nor a checkpoint"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"out": "file/x"}, "out='file/x' is a file: choose another folder"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(options, sentence, runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(sentence)):
        make(**{"run": runs["gan"], **options})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert not (runs["gan"] / "generated").exists()


def test_a_mistake_on_the_command_line_is_one_sentence_with_exit_code_2(runs, tmp_path):
    command = [sys.executable, "-m", "aigc.generate", f"run={runs['gan']}", "guidance=2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("aigc: GAN has no sampling option 'guidance'"), done.stderr
    assert not list(tmp_path.iterdir())
