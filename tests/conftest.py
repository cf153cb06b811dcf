"""What every test stands on: one thread, caches of its own, no account, and small configurations."""

from tests import isolation  # isort: skip  # first: what follows reads the environment

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from aigc.config.schema import CONFIG_DIR, register_schemas

from .families import words

pytest_configure = isolation.pytest_configure
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COMMON = ["data=digits", "trainer=cpu", "trainer.precision=32", "logger=none", "batch_size=16"]
TINY = {name: words(name) for name in ("gan", "vae", "diffusion")}   # for tests of what all share


@pytest.fixture(autouse=True)
def _alone() -> None:
    """What Lightning, or a careless test, left in this process."""
    torch.set_num_threads(1)
    for name in isolation.ALONE:
        os.environ.pop(name, None)


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the checkout; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("the real data (../shared/data) are not on this machine")
    return SHARED


def compose_train(*overrides: str, common: bool = True) -> DictConfig:
    """A complete training configuration, as `python -m aigc.train` would compose it."""
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[*(COMMON if common else []), *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@pytest.fixture
def composed() -> Callable[..., DictConfig]:
    return compose_train


def once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make(folder)` fills, once for all workers: the first to ask makes it, and nobody changes it."""
    folder = isolation.HOME / "made" / name
    folder.parent.mkdir(exist_ok=True)
    made = folder.with_suffix(".made")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)          # of one who failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def python_train(*overrides: str) -> list[str]:
    """The command line of a training run in a process of its own."""
    return [sys.executable, "-m", "aigc.train", *overrides]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process: this checkout on its path, one thread."""
    root = str(Path(__file__).resolve().parents[1])
    return {**os.environ, isolation.CHILD_VARIABLE: "yes", "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **extra}
