"""The family tree of a folder, from nothing but its pictures."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from aigc.errors import UserError
from aigc.images.lineage import family_of, lines_of, page_of
from aigc.images.recipes import beside, png
from aigc.lineage import lineage


def made(path: Path, value: int, *parents: Path, **recipe) -> Path:
    """A picture that says so of itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"name": one.name, "sha256": hashlib.sha256(one.read_bytes()).hexdigest()} for one in parents]
    whole = {"verb": "edit", "task": "inpaint", "run": "a/b", "seed": 3, "parents": listed, **recipe}
    image = np.full((4, 4, 1), value, np.uint8)
    if path.suffix == ".png":
        path.write_bytes(png(image, whole))
    else:
        Image.fromarray(image[..., 0]).save(path)
        path.with_name(beside(path.name)).write_text(json.dumps(whole))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A picture with two children and a grandchild of both; another one with a child; a grandchild of a stranger."""
    Image.new("L", (9, 9), 7).save(tmp_path / "one.png")
    first = made(tmp_path / "in" / "first.jpg", 1, tmp_path / "one.png", text="a <b>red</b> cat")
    second = made(tmp_path / "second.png", 2, tmp_path / "one.png", number=4)
    made(tmp_path / "both.png", 3, first, second)
    gone = made(tmp_path / "gone.png", 4, tmp_path / "one.png")
    made(tmp_path / "orphan.png", 5, gone)
    gone.unlink()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / ".hidden").mkdir()
    Image.new("L", (9, 9), 8).save(tmp_path / ".hidden" / "x.png")
    return tmp_path


def test_the_tree_is_told_once_and_parents_that_are_gone_are_named(folder):
    assert lines_of(family_of(folder)) == [
        "broken.png  (given)",
        "gone.png  (not here)",
        "└─ orphan.png  (inpaint by a/b seed 3)",
        "one.png  (given)",
        "├─ second.png  (inpaint by a/b seed 3 number 4)",
        "│  └─ both.png  (inpaint by a/b seed 3)",
        "└─ in/first.jpg  (inpaint by a/b 'a <b>red</b> cat' seed 3)",
        "   └─ both.png  (inpaint by a/b seed 3)",
    ]


def test_the_page_loads_nothing_and_shows_each_picture_once(folder, capsys):
    page = page_of(family_of(folder), "tree")
    assert page.count("data:image/png;base64,") == 5 and "http" not in page and "<script" not in page
    assert "&lt;b&gt;red&lt;/b&gt;" in page
    cfg = OmegaConf.create({"images": str(folder), "out": str(folder / "tree.html"), "overwrite": False})
    lineage(cfg)
    assert "in " in capsys.readouterr().out and (folder / "tree.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="exists: choose another name, or give overwrite=true"):
        lineage(cfg)
    with pytest.raises(UserError, match=r"is no page: give a name that ends in \.html"):
        lineage(OmegaConf.merge(cfg, {"out": str(folder / "tree.pdf")}))


def test_long_lines_of_descent_and_odd_recipes_are_told(tmp_path):
    last = made(tmp_path / "00000.png", 0)
    for k in range(1, 1200):
        last = made(tmp_path / f"{k:05}.png", 0, last, number=k)
    assert len(lines_of(family_of(tmp_path))) == 1200 and len(page_of(family_of(tmp_path), "x")) > 1200
    made(tmp_path / "odd" / "a.png", 9, parents="none", seed=[1], run={"x": 1}, task=7)
    made(tmp_path / "odd" / "b.png", 8, parents=[3, {"name": 1, "sha256": 2}, {}])
    assert len(lines_of(family_of(tmp_path / "odd"))) == 2


@pytest.mark.parametrize("name", ["there is none", "one.png", ".hidden/empty"])
def test_what_is_no_folder_of_pictures_is_one_sentence(name, folder):
    (folder / ".hidden" / "empty").mkdir()
    with pytest.raises(UserError, match=r"images='.*' (is no folder|holds no pictures)"):
        family_of(folder / name)
