"""Pictures made again from their own recipes, bit for bit; and recipes of strangers, which make nothing happen."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from aigc.errors import UserError
from aigc.generate import generate
from aigc.images.recipes import LARGEST, in_turn, read_recipe
from aigc.training.fit import fit

from .conftest import TINY, compose_train
from .test_matrix import asked


def make(**options) -> None:
    cfg = asked("generate", device="cpu")
    for name, value in options.items():
        OmegaConf.update(cfg, name, str(value) if isinstance(value, Path) else value)
    generate(cfg)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A short run of a diffusion model with labels."""
    folder = tmp_path_factory.mktemp("study") / "one"
    fit(compose_train(*TINY["diffusion"], "metrics=none", "~callbacks.samples", "condition=label",
                      "budget.images=640"), folder)
    return folder


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> Path:
    """Seven pictures in batches of four, with labels in turn and options."""
    folder = tmp_path_factory.mktemp("made") / "pictures"
    make(run=run, out=folder, n=7, batch_size=4, seed=3, label=[1, 2, 5], **{"sampler.steps": 5, "guidance": 1.5})
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("number", [1, 6])
def test_a_picture_is_made_again_to_the_last_bit_whatever_its_batch(number, made, tmp_path, capsys):
    name = f"{number:05}.png"
    make(recipe=made / name, out=tmp_path / "again")
    assert capsys.readouterr().out.endswith("recipe    the same picture, bit for bit\n")
    assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes(), "its recipe, too"
    assert [path.name for path in tmp_path.glob("again/0*.png")] == [name]
    shutil.copy(made / name, tmp_path / "sent.png")        # without its folder: then the run has to be named
    with pytest.raises(UserError, match=r"was made by the run '.*/one', which is not here: give run=<its folder>"):
        make(recipe=tmp_path / "sent.png", out=tmp_path / "no")


def test_the_run_is_found_where_it_is_and_options_beside_the_recipe_count(run, made, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "runs" / run.parent.name / run.name)
    shutil.copy(made / "00002.png", tmp_path / "sent.png")
    monkeypatch.chdir(tmp_path)
    make(recipe="sent.png", out="again")
    assert np.array_equal(pixels(Path("again/00002.png")), pixels(made / "00002.png"))
    make(recipe="sent.png", run=run, out="changed", guidance=0.5)
    assert "not the same bits, as options were changed" in capsys.readouterr().out
    changed = read_recipe("changed/00002.png")
    assert changed["options"] == {"sampler": {"steps": 5}, "guidance": 0.5} and changed["label"] == "5"
    make(recipe="sent.png", label=7, out="seven")
    assert read_recipe("seven/00002.png")["label"] == "7"
    assert read_recipe("seven/00002.png")["batch"] == {"start": 2, "size": 1, "at_once": 64, "label": ["7"]}
    make(recipe="sent.png", n=2, out="more", **{"sampler.steps": 3})
    assert [read_recipe(f"more/0000{k}.png")["label"] for k in (0, 1)] == ["5", "5"]
    assert read_recipe("more/00001.png")["options"] == {"sampler": {"steps": 3}, "guidance": 1.5}


def test_arrays_have_their_recipe_beside_them(run, tmp_path):
    make(run=run, out=tmp_path / "all", n=3, seed=2, format="npy", **{"sampler.steps": 2})
    make(recipe=tmp_path / "all" / "images.npy", out=tmp_path / "again", format="npy")
    assert np.array_equal(np.load(tmp_path / "all/images.npy"), np.load(tmp_path / "again/images.npy"))
    assert read_recipe(tmp_path / "all" / "images.npy.json") == read_recipe(tmp_path / "again" / "images.npy")


def test_a_checkpoint_that_has_changed_is_told(run, made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for file in (other / "checkpoints").glob("*.ckpt"):
        file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"of sha256 \w{12}, and '.*best\.ckpt' is another one by now \(\w{12}\)"):
        make(recipe=made / "00001.png", run=other, out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def strange(path: Path, recipe: object) -> Path:
    """A PNG with this recipe: a text, or something to be written as JSON."""
    told = PngInfo()
    told.add_text("aigc", recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("L", (4, 4)).save(path, pnginfo=told)
    return path


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"sha256": None}, "its sha256 is NoneType"),
    ({"seed": "1"}, "its seed is no whole number"),
    ({"seed": 10**30}, "its seed is no whole number"),
    ({"verb": "edit"}, r"was made by aigc\.edit: give it to python -m aigc\.edit"),
    ({"verb": "rm"}, "its verb is unknown"),
    ({"number": 99}, "its number lies outside its batch"),
    ({"batch": {"start": 0, "size": 10**9, "at_once": 1}}, "its batch is impossible"),
    ({"batch": {"start": 0, "size": 1}}, "it lacks 'at_once', and may be of an earlier version"),
    ({"batch": {"start": 0, "size": 7, "at_once": 4, "label": "@/etc/passwd"}}, "its label is no list of texts"),
    ({"options": {"out": "/tmp"}}, "an option 'out', which this version lacks"),
    ({"options": {"sampler": "os.system"}}, "its option 'sampler' is of the wrong kind"),
    ({"options": {"rerank_of": "8"}}, "its option 'rerank_of' is of the wrong kind"),
    ({"options": {"rerank": "some/hub"}}, "was made with rerank=some/hub, which is not here: give rerank= beside it"),
    ({"options": {"sampler": {"name": "os.system"}}}, "sampler 'os.system' is in no package that you trust"),
    ({"options": {"sampler": {"guide": "${oc.env:HOME}"}}}, r"no guide '\$\{oc\.env:HOME\}'"),
])
def test_a_strangers_recipe_is_one_sentence_and_leaves_nothing(changes, sentence, run, made, tmp_path):
    recipe = read_recipe(made / "00001.png") | changes
    path = strange(tmp_path / "strange.png", recipe)
    with pytest.raises(UserError, match=sentence) as caught:
        make(recipe=path, run=run, out=tmp_path / "no")
    assert "\n" not in str(caught.value) and not (tmp_path / "no").exists()


def test_what_is_no_recipe_is_one_sentence(made, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "plain.png")
    Image.new("L", (4, 4)).save(tmp_path / "plain.jpg")
    strange(tmp_path / "deep.png", "[" * 100_000)
    strange(tmp_path / "list.png", [1])
    chunk = b"tEXt" + b"aigc\0" + b" " * (LARGEST + 9)
    start = (tmp_path / "plain.png").read_bytes()
    huge = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "huge.png").write_bytes(start[:33] + huge + start[33:])
    (tmp_path / "half.png").write_bytes((made / "00001.png").read_bytes()[:60])
    for path in (made / "grid.png", *(tmp_path / name for name in (
            "plain.png", "plain.jpg", "deep.png", "list.png", "huge.png", "half.png"))):
        with pytest.raises(UserError, match="holds no recipe: give a picture that aigc made"):
            make(recipe=path, out=tmp_path / "no")
    for name in ("there is none.png", "."):
        with pytest.raises(UserError, match="cannot be read"):
            make(recipe=tmp_path / name, out=tmp_path / "no")


def test_words_in_turn_are_the_shortest_that_give_them_all():
    assert in_turn(["a", "b", "a", "b", "a"]) == ["a", "b"] and in_turn(["a", "a"]) == ["a"]
    assert in_turn(["a", "b", "b"]) == ["a", "b", "b"]
