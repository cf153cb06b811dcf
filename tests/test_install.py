"""Setting up: what pip's configuration knows of indexes reaches uv, pip does what uv cannot, and wheels are whole."""

import importlib.util
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from aigc.data import huggingface
from aigc.errors import UserError


@pytest.fixture
def install(monkeypatch):
    spec = importlib.util.spec_from_file_location("install", Path(__file__).parents[1] / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in (*module.HANDED_ON.values(), "UV_INDEX_STRATEGY"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_pips_indexes_reach_uv_and_the_users_own_settings_stay(install, monkeypatch):
    listed = ":env:.find-links='/wheels'\nglobal.index-url='https://a.example/simple'\n" \
             "global.extra-index-url='file:///b file:///c'\nglobal.timeout='3'\n"
    told = {"UV_FIND_LINKS": "/wheels", "UV_DEFAULT_INDEX": "https://a.example/simple",
            "UV_INDEX": "file:///b file:///c", "UV_INDEX_STRATEGY": "unsafe-best-match"}
    assert install.indexes(listed) == told
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://mine.example")
    del told["UV_DEFAULT_INDEX"]
    assert install.indexes(listed) == told
    assert install.indexes("global.timeout='3'\n") == {}


@pytest.mark.parametrize(
    ("fails", "tried", "code"),
    [("none", ["uv", "by uv"], 0), ("getting uv", ["uv", "by pip"], 0), ("by uv", ["uv", "by uv", "by pip"], 0),
     ("by", ["uv", "by uv", "by pip"], 2)],
)
def test_pip_does_what_uv_cannot(fails, tried, code, install, monkeypatch):
    said = []
    monkeypatch.setattr(install, "stage", lambda what, *_, **__: said.append(what) or fails not in what.split(",")[0])
    assert install.main(".[dev]") == code
    assert len(said) == len(tried) and all(word in what for word, what in zip(tried, said, strict=True))


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package 'datasets': pip install 'aigc\[huggingface\]'"):
        huggingface.library()


ROOT = Path(__file__).parents[1]


def test_wheels_hold_every_module_configuration_and_canonical_network(tmp_path):
    wheels = pytest.importorskip("hatchling.builders.wheel")
    (wheel,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT) for folder in ("aigc", "hydra_plugins") for path in (ROOT / folder).rglob("*")}
    wanted |= {Path("aigc") / path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*")}
    files = {str(path) for path in wanted if path.suffix in (".py", ".yaml", ".safetensors", ".json", ".css", ".html",
                                                             ".js")}
    assert {"aigc/scoring/networks/weights/canonical.json", "aigc/scoring/networks/weights/shapes.safetensors",
            "aigc/conf/train.yaml"} <= files
    assert not files - held
    assert {name.split("/")[0] for name in held if "dist-info" not in name} == {"aigc", "hydra_plugins"}


def test_source_distributions_hold_what_their_makefile_calls(tmp_path):
    sources = pytest.importorskip("hatchling.builders.sdist")
    (archive,) = sources.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert {"Makefile", "tools/install.py", "constraints.txt", "pyproject.toml", "README.md", "conf/train.yaml",
            "aigc/scoring/networks/weights/mnist.safetensors"} <= held
