import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from aigc.checkpoints import load_family
from aigc.config import CONFIG_DIR, register_schemas
from aigc.errors import UserError
from aigc.generate import default_out, generate, labels_of
from aigc.training import fit

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
    assert sorted(p.name for p in (tmp_path / "png").iterdir()) == [*(f"{k:05}.png" for k in range(5)), "grid.png"]
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


def test_a_checkpoint_needs_no_config_and_loads_with_weights_only(runs):
    for folder in runs.values():
        path = folder / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        assert content["hyper_parameters"]["size"] is not None
        family = load_family(path)
        assert not family.training and family.progress.images == 4800
    assert default_out(runs["gan"] / "checkpoints" / "last.ckpt") == runs["gan"] / "generated"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run={gan}", "guidance=2"], "GAN has no sampling option 'guidance'"),
        (["run={gan}", "label=11"], "label=11 is no class of this model: choose from 0 to 9"),
        (["run={gan}", "format=jpg"], "format 'jpg' is not written here"),
        (["run=nowhere"], "'nowhere' is neither a run folder nor a checkpoint"),
        (["n=3"], "the option 'run' is needed"),
        (["run={gan}", "out=file/x"], "could not be written to 'file/x'"),
    ],
)
def test_bad_input_is_one_sentence(overrides, sentence, runs, tmp_path):
    (tmp_path / "file").write_text("")
    words = [word.format(**runs) for word in overrides]
    command = [sys.executable, "-m", "aigc.generate", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.strip().splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert not (runs["gan"] / "generated").exists()
