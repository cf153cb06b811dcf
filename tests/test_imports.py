"""What imports what: rooms only rooms below, without circles; and what a process imports, most of its start-up."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.object_type import ObjectType

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.config.untrusted import CheckedLoader
from aigc.data.digits import read_digits

from .conftest import environment

SOURCE = Path(__file__).parents[1] / "aigc"
ROOMS = [room.split() for room in (  # from the lowest; the verbs stand on all of them
    "errors wording noise", "files", "config", "networks", "conditions", "losses", "diffusion", "data", "runs",
    "report", "cli", "models", "images", "editing", "scoring", "training", "apps", "multirun",
)]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

CODE = """
import runpy, sys
from hydra._internal import config_repository

made = []
before = config_repository.CachingConfigRepository.__init__

def counted(self, delegate):
    made.append(delegate)
    before(self, delegate)

config_repository.CachingConfigRepository.__init__ = counted
sys.argv = {words!r}
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("imported", *sorted(name for name in sys.modules if name.partition(".")[0] == name))
print("copies", len(made))
"""


def ran(folder, module, *words):
    """The output of a module run as a program, the packages it imported, and its copies of Hydra's sources."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(words=[module, *words], module=module)],
        capture_output=True, text=True, cwd=folder, env=environment(),
    )
    assert done.returncode == 0, done.stderr
    said, _, rest = done.stdout.rpartition("imported ")
    imported, _, copies = rest.partition("\ncopies ")
    return said, set(imported.split()), int(copies)


@cache
def imports():
    """The modules of the package that each of them imports, at its top or inside functions, by dotted name."""
    files = {module_of(path): path for path in SOURCE.rglob("*.py")}
    found = {}
    for module, path in files.items():
        used = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} imports a neighbour without the name of its room"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                used |= {name if name in files else str(node.module) for name in names}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
        found[module] = {name for name in used if name in files}
    return found


def module_of(path):
    return ".".join(["aigc", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


def level_of(module):
    room = module.split(".")[1]
    return LEVEL.get(room, len(ROOMS))


def test_rooms_import_only_rooms_below_them():
    upward = [f"{module} imports {used}" for module, uses in imports().items() for used in uses
              if "aigc" not in (module, used) and level_of(module) < level_of(used)]
    assert not upward
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= set(LEVEL), "a new room needs its place in ROOMS"


def test_no_module_imports_itself_over_others():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_walk_sees_imports_inside_functions():
    assert "aigc.models.checkpoints" in imports()["aigc.generate"] and len(imports()) > 150


def test_files_are_short_enough_to_be_read_at_once():
    lines = {module_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert {module: n for module, n in lines.items() if n > 400} == {}
    verbs = [path.stem for path in SOURCE.glob("*.py") if (SOURCE.parent / "conf" / f"{path.stem}.yaml").is_file()]
    assert {"train", "generate", "edit", "evaluate", "compare"} <= set(verbs)
    assert {verb: n for verb in verbs if (n := lines[f"aigc.{verb}"]) > 100} == {}
    assert lines["aigc.train"] < 60


@pytest.mark.parametrize("verb", ["train", "generate", "edit", "evaluate", "compare"])
def test_help_and_cfg_import_no_torch_and_write_nothing(verb, tmp_path):
    for words in (["--help"], ["--cfg", "job"]):
        said, imported, copies = ran(tmp_path, f"aigc.{verb}", *words)
        assert ("runs: " if verb == "compare" else "seed: ") in said
        assert not imported & {"torch", "lightning", "torchmetrics", "numpy", "PIL", "sklearn", "wandb"}
        assert copies <= 2      # Hydra's own way is one for each of a hundred groups that --help lists
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_groups_that_hydra_finds():
    register_schemas()
    path = create_config_search_path(str(CONFIG_DIR))
    ours, hydras = CheckedLoader(path), ConfigLoaderImpl(path)
    for group in ("", "model", "data", "hydra", "hydra/launcher", "nothing"):
        for kind in (ObjectType.CONFIG, ObjectType.GROUP):
            assert ours.get_group_options(group, kind) == hydras.get_group_options(group, kind)
    found = ours.get_group_options("model", config_name="train", overrides=["hydra.searchpath=[]"])
    assert found == hydras.get_group_options("model", config_name="train") and "gan" in found


def test_a_run_imports_no_package_that_it_has_no_use_for(tmp_path):
    _, imported, _ = ran(
        tmp_path, "aigc.train", "model=dcgan", "data=digits", "condition=none", "metrics=none", "logger=none",
        "trainer=cpu", "trainer.precision=32-true", "batch_size=8", "budget.minutes=null", "budget.images=16",
        "hydra.run.dir=run",
    )
    assert "torch" in imported and (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    heavy = {"datasets", "diffusers", "gradio", "itables", "kornia", "open_clip", "optuna", "pandas", "plotly",
             "sklearn", "timm", "wandb"}
    assert not imported & heavy


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images, digits = read_digits()
    theirs = load_digits()
    assert np.array_equal(images, theirs.images) and np.array_equal(digits, theirs.target)
    assert images.shape == (1797, 8, 8) and digits.dtype == np.int64 and images.min() == 0 and images.max() == 16
