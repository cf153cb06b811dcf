"""Pictures in, pictures out, through the real command line: names, sizes, modes, broken files, mistakes."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.edit import edit
from aigc.errors import RunError, UserError
from aigc.files.written import RECORD, read_record
from aigc.images.edited import edited
from aigc.images.pictures import at_side, find_pictures

from . import forked
from .conftest import TINY, compose_train, environment
from .translators import Negative, save


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", "tests")


@pytest.fixture
def run(tmp_path) -> Path:
    save(Negative(3), tmp_path / "run" / "checkpoints" / "last.ckpt")
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Pictures of several sizes, modes and places, one of them broken."""
    folder = tmp_path / "photos"
    (folder / "inner" / "deep").mkdir(parents=True)
    draw = np.random.default_rng(0)

    def noise(*shape):
        return draw.integers(0, 256, shape, dtype=np.uint8)

    for k in range(5):
        Image.fromarray(noise(20, 33, 3)).save(folder / f"{k}.png")
    Image.fromarray(noise(5, 40, 3)).save(folder / "inner" / "low.png")
    Image.fromarray(noise(24, 24)).save(folder / "inner" / "grey.png")
    Image.fromarray(noise(18, 30, 4), "RGBA").save(folder / "inner" / "deep" / "glass.png")
    turned = Image.fromarray(np.tile(np.arange(0, 240, 8, dtype=np.uint8)[:, None, None], (1, 20, 3)))
    exif = turned.getexif()
    exif[0x0112] = 6                                       # to be turned by 90 degrees: 20 x 30 becomes 30 x 20
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nand then nothing")
    (folder / "notes.txt").write_text("no picture")
    return folder


def cli(*overrides: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "aigc.edit", *overrides]
    return forked.run(command, env=environment(), cwd=cwd)


def run_edit(**options) -> None:
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        edit(compose("edit", overrides=[f"{name}={value}" for name, value in options.items()]))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_folder_keeps_names_sizes_and_places_and_broken_files_cost_nothing(run, photos, tmp_path):
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    done = cli("task=translate", f"run={run}", f"images={photos}", "direction=a2b", "out=made", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("aigc: 1 of 10 pictures failed, the other 9 are in 'made':") and "broken.png (" in said
    assert "Traceback" not in done.stderr
    made = tmp_path / "made"
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*") if path.is_file())
    assert names == [*(f"{k}.png" for k in range(5)), RECORD, "comparison.png", "inner/deep/glass.png",
                     "inner/grey.png", "inner/low.png", "turned.jpg", "turned.jpg.json"]
    for name in ("0.png", "4.png", "inner/low.png", "inner/grey.png"):  # also smaller than the network takes
        assert np.array_equal(pixels(made / name), 255 - pixels(photos / name)), name
    glass = Image.open(photos / "inner/deep/glass.png")
    white = Image.alpha_composite(Image.new("RGBA", glass.size, "white"), glass).convert("RGB")
    assert np.array_equal(pixels(made / "inner/deep/glass.png"), 255 - np.asarray(white).astype(int))
    assert Image.open(made / "inner/grey.png").mode == "RGB"  # a colour model's answer
    assert Image.open(made / "turned.jpg").size == (30, 20) and not Image.open(made / "turned.jpg").getexif()
    upright = 255 - pixels(made / "turned.jpg")[10]           # brightness falls from left to right once it is turned
    assert upright[2, 0] > 200 > 40 > upright[-3, 0]
    assert {path: path.read_bytes() for path in before} == before
    shown = Image.open(made / "comparison.png").size
    assert shown == (4 * 130 - 2, 5 * 130 - 2)                # nine pairs, two a row, cells of 128 pixels


def test_a_file_and_a_glob_and_the_default_place(run, photos, tmp_path):
    done = cli(f"run={run}", f"images={photos / '3.png'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (made,) = (run / "edited").iterdir()
    assert done.stdout.strip().endswith(f"1 picture in {made}")
    assert np.array_equal(pixels(made / "3.png"), 255 - pixels(photos / "3.png"))
    found = find_pictures(str(photos / "*" / "**" / "*.png"), tmp_path / "made")
    assert [p.target for p in found] == ["inner/deep/glass.png", "inner/grey.png", "inner/low.png"]


def test_results_of_before_are_no_inputs_and_inputs_are_never_overwritten(photos, monkeypatch):
    (photos / "made").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "made" / "old.png")
    assert all("made" not in str(p.source.relative_to(photos)) for p in find_pictures(str(photos), photos / "made"))
    with pytest.raises(UserError, match="would overwrite"):
        find_pictures(str(photos), photos)
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match="would overwrite"):
        find_pictures("*.png", Path("../photos"))
    os.symlink(photos, photos.parent / "link")
    with pytest.raises(UserError, match="would overwrite"):
        find_pictures(str(photos), photos.parent / "link")


def test_one_name_with_two_endings_gives_two_results(tmp_path):
    for name in ("a.png", "a.gif", "a.ppm"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    targets = [p.target for p in find_pictures(str(tmp_path), tmp_path / "out", "png")]
    assert len(set(targets)) == 3 and "a.png" in targets


def test_a_grey_model_gets_grey_and_gives_grey(photos, tmp_path):
    save(Negative(1), tmp_path / "grey" / "checkpoints" / "last.ckpt")
    run_edit(run=tmp_path / "grey", images=photos / "0.png", out=tmp_path / "made")
    made, luma = Image.open(tmp_path / "made" / "0.png"), Image.open(photos / "0.png").convert("L")
    assert made.mode == "L" and np.array_equal(np.asarray(made), 255 - np.asarray(luma))


def test_side_is_where_the_model_works_and_results_come_back_at_their_own():
    seen = []

    def negative(images):
        seen.append(tuple(images.shape[2:]))
        return -images

    ramp = torch.linspace(-0.9, 0.9, 60).expand(1, 1, 30, 60)
    made = at_side(negative, ramp, 20)
    assert seen == [(20, 40)] and made.shape == ramp.shape
    assert torch.allclose(made[..., 2:-2], -ramp[..., 2:-2], atol=0.02)
    at_side(negative, ramp[..., :7], None)
    assert seen[-1] == (30, 16)


@pytest.mark.parametrize(("side", "size"), [(None, (90, 21)), (20, (90, 21))])
def test_results_may_be_larger_by_a_whole_factor(side, size):
    ramp = torch.linspace(-0.9, 0.9, 30)[:, None].expand(1, 1, 30, 7)
    made = at_side(lambda images: images.repeat_interleave(3, 2).repeat_interleave(3, 3), ramp, side)
    assert made.shape[2:] == size and torch.allclose(made[0, 0, ::3, 0], ramp[0, 0, :, 0], atol=0.15)


def test_batches_are_of_one_size_and_bounded_in_number_and_pixels(tmp_path):
    for k in range(12):
        Image.new("RGB", (40, 10) if k % 3 else (20, 20), (k, k, k)).save(tmp_path / f"{k:02}.png")
    shapes = []

    def same(images, numbers, masks):
        shapes.append((len(images), *images.shape[2:]))
        return images

    def go(**limits):
        shapes.clear()
        pictures = find_pictures(str(tmp_path), tmp_path / "out")
        made = {done.opened.picture.number: done.after.values
                for done in edited(pictures, same, channels=3, failures={}, **limits)}
        assert sorted(made) == list(range(12)) and all((made[k] == k).all() for k in made)
        return sorted(shapes)

    assert go(batch_size=5, pixels=10**6) == [(3, 10, 40), (4, 20, 20), (5, 10, 40)]
    assert go(batch_size=5, pixels=800) == [(2, 10, 40)] * 4 + [(2, 20, 20)] * 2
    assert max(n for n, *_ in go(batch_size=1, pixels=10**6)) == 1


def test_a_picture_too_large_for_the_memory_is_named_and_the_others_are_made(photos, tmp_path):
    save(Negative(3, fail_above=39), tmp_path / "small" / "checkpoints" / "last.ckpt")
    with pytest.raises(RunError, match=r"low\.png \(40 x 5 pixels do not fit into memory, give side=\)"):
        run_edit(run=tmp_path / "small", images=photos / "inner", out=tmp_path / "made")
    assert (tmp_path / "made" / "grey.png").exists()


def zipped(path: Path, files: dict[str, Path | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path


def test_a_zip_keeps_places_never_leads_outside_and_broken_entries_are_named(run, photos, tmp_path, capsys):
    entries = {"0.png": photos / "0.png", "in/deep/1.PNG": photos / "1.png", "../../up.png": photos / "2.png",
               "/root.png": photos / "3.png", "win\\dows.png": photos / "4.png", "in/broken.png": b"no picture",
               "__MACOSX/0.png": b"", "in/.hidden.png": b"", "notes.txt": b"words"}
    pack = zipped(tmp_path / "x.zip", entries)
    with pytest.raises(RunError, match=r"1 of 6 pictures failed, the other 5 are in .*x\.zip/in/broken\.png \("):
        run_edit(run=run, images=pack, out=tmp_path / "there" / "made")
    made = tmp_path / "there" / "made"
    places = {"0.png": 0, "in/deep/1.PNG": 1, "up.png": 2, "root.png": 3, "win/dows.png": 4}
    assert {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()} == {
        *places, "comparison.png", RECORD}
    for name, k in places.items():
        assert np.array_equal(pixels(made / name), 255 - pixels(photos / f"{k}.png")), name
    assert [p.name for p in tmp_path.joinpath("there").iterdir()] == ["made"]
    record = read_record(made)
    assert record is not None and list(record.facts["options"]) and record.files["up.png"]["number"] == 0
    run_edit(run=run, images=zipped(tmp_path / "y.zip", {"a.png": photos / "0.png"}), out=tmp_path / "y")
    assert capsys.readouterr().out.strip() == f"1 picture in {tmp_path / 'y'}"
    (tmp_path / "photo").write_bytes((photos / "0.png").read_bytes())         # named itself, it needs no ending
    run_edit(run=run, images=tmp_path / "photo", out=tmp_path / "z")
    assert np.array_equal(pixels(tmp_path / "z" / "photo.png"), 255 - pixels(photos / "0.png"))


def test_a_protected_a_cut_off_and_an_empty_zip_are_one_sentence(run, photos, tmp_path):
    pack = zipped(tmp_path / "x.zip", {"0.png": photos / "0.png"})
    data = bytearray(pack.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):    # the flag "encrypted", in both headers
        data[data.index(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    (tmp_path / "cut.zip").write_bytes(pack.read_bytes()[:-30])
    zipped(tmp_path / "empty.zip", {"notes.txt": b""})
    for name, sentence in (("locked", "is protected by a password: unpack it"), ("cut", "is not an intact zip"),
                           ("empty", "holds no pictures")):
        with pytest.raises(UserError, match=sentence):
            run_edit(run=run, images=tmp_path / f"{name}.zip", out=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_grids_are_no_input_but_edited_and_generated_pictures_are(run, photos, tmp_path, capsys):
    run_edit(run=run, images=photos / "inner", out=tmp_path / "once")
    capsys.readouterr()
    run_edit(run=run, images=tmp_path / "once", out=tmp_path / "twice")
    assert capsys.readouterr().out.strip() == (
        f"3 pictures in {tmp_path / 'twice'}\nleft out  comparisons that edit drew: 1 (comparison.png)")
    assert np.array_equal(pixels(tmp_path / "twice" / "low.png"), pixels(photos / "inner" / "low.png"))
    run_edit(run=run, images=tmp_path / "once" / "comparison.png", out=tmp_path / "named")
    assert (tmp_path / "named" / "comparison.png").exists()


def test_results_are_not_mixed_with_others_unless_they_are_to_be_cleared(run, photos, tmp_path):
    made = tmp_path / "made"
    run_edit(run=run, images=photos / "inner", out=made)
    with pytest.raises(UserError, match=r"holds 4 files of an earlier edit: choose another folder, or give overwrite"):
        run_edit(run=run, images=photos / "0.png", out=made)
    run_edit(run=run, images=photos / "0.png", out=made, overwrite="true")
    assert sorted(p.relative_to(made).as_posix() for p in made.rglob("*")) == ["0.png", RECORD, "comparison.png"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["direction=b2a"], "Negative was not trained for direction=b2a: choose from a2b"),
        (["images=nowhere"], "images='nowhere' does not exist"),
        (["images=empty"], "images='empty' holds no pictures"),
        (["images='*.bmp'"], "holds no pictures"),
        (["run=nowhere"], "'nowhere' is neither a run folder nor a checkpoint"),
        (["format=gif"], "unsupported format 'gif': choose from keep, png"),
        (["side=0"], "side=0 must be at least 1"),
        (["megapixels=0"], "megapixels=0.0 must be above 0"),
        (["task.function=translte"], "There is no task 'translte': did you mean 'translate'?"),
        (["+task.drection=b2a"], "The task 'translate' has no option 'drection': did you mean 'direction'?"),
        (["task.needs=sampl"], "task.needs=sampl is unknown: did you mean 'sample'?"),
    ],
)
def test_mistakes_are_one_sentence(overrides, sentence, run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    given = {word.split("=")[0]: word for word in (f"run={run}", "images=photos/0.png", "out=made")}
    given |= {word.split("=")[0]: word for word in overrides}
    with pytest.raises(UserError) as caught:
        run_edit(**dict(word.split("=", 1) for word in given.values()))
    assert sentence in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_on_the_command_line_are_one_sentence_with_exit_code_2(run, photos, tmp_path):
    (tmp_path / "file").write_text("")
    where = "out=file/x"
    for word, sentence in ((where, "aigc: out='file/x' is a file: choose another folder"),
                           ("task=translte", "aigc: 'task=translte' does not exist: did you mean 'translate'?"),
                           ("drection=a2b", "aigc: there is no option 'drection': did you mean 'direction'?")):
        done = cli(f"run={run}", f"images={photos / '0.png'}", word, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith(sentence), done.stderr
        assert "Traceback" not in done.stderr


def test_a_run_that_does_not_translate_is_refused(photos, tmp_path):
    from aigc.training.fit import fit

    fit(compose_train(*TINY["gan"], "metrics=none", "~callbacks.samples", "budget.images=16"), tmp_path / "gan")
    with pytest.raises(UserError, match=r"holds a GAN, which makes images from noise: task=translate needs a run of"):
        run_edit(run=tmp_path / "gan", images=photos, out=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_trained_cyclegan_goes_both_ways_at_any_size_alone_as_among_others(photos, tmp_path):
    from aigc.training.fit import fit

    from .families import words

    data = ["data=shapes_unpaired", "data.train=64", "data.validation=40", "data.test=8", "data.size=16"]
    quick = ["metrics=none", "~callbacks.samples", "budget.images=32"]
    fit(compose_train(*words("cyclegan"), *data, *quick), tmp_path / "run")
    (photos / "broken.png").unlink()
    for where, options in {"there": {}, "back": {"direction": "b2a"}, "single": {"batch_size": 1}}.items():
        run_edit(run=tmp_path / "run", images=photos, out=tmp_path / where, **options)
    for source in photos.rglob("*.png"):
        there, back, single = (pixels(tmp_path / d / source.relative_to(photos)) for d in ("there", "back", "single"))
        assert there.shape == back.shape == pixels(source).shape
        assert np.abs(there - single).max() <= 1 and np.abs(there - back).max() > 1


@pytest.mark.parametrize(("options", "recorded", "expected", "said"), [
    ({}, None, (0, 62, 255), "values 0 to 4,095 taken as 12 bits (0 to 4095)"),
    ({"range": "[0,2000]"}, {"integer": [0, 4095]}, (0, 128, 255), "values from 0 (black) to 2000 (white)"),
    ({}, {"integer": [0, 8190]}, (0, 31, 128), "values 0 to 4,095 taken as 0 to 8190, as in the run's data"),
    ({}, {"integer": [0, 2000]}, (0, 128, 255),
     "values 0 to 4,095 taken as 0 to 2000, as in the run's data, which cuts the rest"),
    ({}, {"float": [0, 1], "bytes": [0, 9], "odd": 3}, (0, 62, 255),
     "files of 8 bits from 0 (black) to 9 (white), as in the run's data"),
])
def test_pictures_with_more_than_8_bits_have_one_range(options, recorded, expected, said, run, tmp_path, capsys):
    folder = tmp_path / "deep"
    folder.mkdir()
    for k, level in enumerate((0, 1000, 4095)):                # alone, the second would have ten bits
        Image.fromarray(np.full((20, 20), level, np.uint16)).save(folder / f"{k}.png")
    (folder / "broken.tif").write_bytes(b"II*")
    if recorded is not None:
        (run / "summary.json").write_text(json.dumps({"data": {"range": recorded}}))
    with pytest.raises(RunError, match="1 of 4 pictures failed"):
        run_edit(run=run, images=folder, out=tmp_path / "made", **options)
    assert tuple(255 - pixels(tmp_path / "made" / f"{k}.png")[0, 0, 0] for k in range(3)) == expected
    assert f"values    {said}\n" in capsys.readouterr().out
    white = {62: 4095, 128: 2000, 31: 8190}[expected[1]]
    assert read_record(tmp_path / "made").facts["range"]["integer"] == [0, white]


def test_pictures_of_8_bits_have_the_range_that_is_given_and_no_other(run, photos, tmp_path, capsys):
    Image.new("L", (20, 20), 30).save(photos / "grey.png")
    run_edit(run=run, images=photos / "grey.png", out=tmp_path / "made", range="[0,100]")
    assert 255 - pixels(tmp_path / "made" / "grey.png")[0, 0, 0] == 76
    capsys.readouterr()
    run_edit(run=run, images=photos / "grey.png", out=tmp_path / "plain")
    assert 255 - pixels(tmp_path / "plain" / "grey.png")[0, 0, 0] == 30 and "values" not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^range must be two numbers, \[black, white\]"):
        run_edit(run=run, images=photos / "grey.png", out=tmp_path / "wrong", range="[5,1]")
