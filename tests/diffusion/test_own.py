"""A user's own sampler and guide, as docs/own-parts.md shows them: one file and one YAML, used through the verbs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import COMMON, TINY, environment
from tests.documents import ROOT, blocks

PAGE = ROOT / "docs" / "own-parts.md"


def aigc(verb, *words, cwd, **variables):
    """Runs a verb in a process of its own; returns it."""
    env = {**environment(), **variables, "PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, "-m", f"aigc.{verb}", *words], cwd=cwd, env=env, capture_output=True,
                          text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("own")
    (made / "mypackage").mkdir()
    (made / "conf" / "sampler").mkdir(parents=True)
    (made / "mypackage" / "parts.py").write_text(next(b for b in blocks(PAGE, "python") if "def first_order" in b))
    (made / "conf" / "sampler" / "mine.yaml").write_text(next(b for b in blocks(PAGE, "yaml") if "first_order" in b))
    return made


def pictures(folder):
    return np.stack([np.array(Image.open(path)) for path in sorted(folder.glob("0*.png"))]).astype(int)


def test_a_sampler_and_a_guide_of_ones_own_train_generate_and_evaluate(folder):
    allowed = {"AIGC_ALLOW_TARGETS": "mypackage"}
    own = ["--config-dir", "conf"]
    done = aigc("train", *own, *COMMON, *TINY["diffusion"], "+sampler@model.sampler=mine",
                "condition=label", "metrics=none", "~callbacks.samples", "budget.images=320", "hydra.run.dir=run",
                cwd=folder, **allowed)
    assert done.returncode == 0, done.stderr
    made = {}
    for name, words in {
        "recipe": [], "named": [*own, "sampler=mine"], "off": [*own, "sampler=mine", "sampler.strength=0.0"],
        "ddim": ["sampler=ddim", "sampler.steps=20", "options.strength=0.0"],
        "half": ["sampler=ddim", "sampler.steps=20", "options={guide: mypackage.parts.mirrored, strength: 0.5}"],
    }.items():
        done = aigc("generate", *words, "run=run", "n=3", f"out={name}", cwd=folder, **allowed)
        assert done.returncode == 0, done.stderr
        made[name] = pictures(folder / name)
    for same, other in (("recipe", "named"), ("off", "ddim"), ("named", "half")):
        assert np.abs(made[same] - made[other]).max() <= 1, (same, other)
    assert np.abs(made["named"] - made["named"][:, :, ::-1]).max() <= 1, "a mirror image of itself"
    assert np.abs(made["off"] - made["off"][:, :, ::-1]).max() > 3
    refused = aigc("generate", "run=run", "n=1", cwd=folder, AIGC_ALLOW_TARGETS="")
    assert refused.returncode == 2
    assert "in no package that you trust" in refused.stderr
