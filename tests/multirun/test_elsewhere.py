"""Launchers of other packages, and W&B's agents: as far as they can be followed without a cluster or an account."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins

from aigc.config.schema import CONFIG_DIR, register_schemas

from .. import forked
from ..conftest import environment

SWEEP = Path(__file__).resolve().parents[2] / "experiments" / "wandb_sweep" / "sweep.yaml"


@pytest.mark.parametrize("name", ["submitit_slurm", "submitit_local", "ray"])
def test_launchers_of_other_packages_compose_and_are_built(name):
    package = {"ray": "hydra_ray_launcher"}.get(name, "hydra_submitit_launcher")
    pytest.importorskip(f"hydra_plugins.{package}", reason=f"hydra/launcher={name} is an extra")
    slurm = ["hydra.launcher.partition=gpu", "hydra.launcher.gpus_per_node=2", "hydra.launcher.timeout_min=240"]
    words = [f"hydra/launcher={name}", "hydra.sweep.dir=searches", *(slurm if name == "submitit_slurm" else [])]
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=words, return_hydra_config=True)
    launcher = Plugins.instance()._instantiate(cfg.hydra.launcher)
    assert type(launcher).__module__.startswith(f"hydra_plugins.{package}.")
    if name == "submitit_slurm":
        assert launcher.params["partition"] == "gpu" and launcher.params["gpus_per_node"] == 2
        assert launcher.params["submitit_folder"] == "searches/.submitit/%j"


def test_a_launcher_that_is_not_installed_is_named(tmp_path):
    command = [sys.executable, "-m", "aigc.train", "hydra/launcher=ray", "--cfg", "job"]
    done = forked.run(command, env=environment(), cwd=tmp_path)
    if done.returncode == 0:
        pytest.skip("hydra/launcher=ray is installed")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "aigc: 'hydra/launcher=ray' needs an extra package: pip install 'aigc[ray]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_wandb_agents_run_is_a_training_with_the_values_of_the_sweep(tmp_path):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    sweep = load_sweep_config(str(SWEEP))
    chosen = {name: {"value": rule["values"][-1] if "values" in rule else (rule["min"] * rule["max"]) ** 0.5}
              for name, rule in sweep["parameters"].items()}
    given = create_sweep_command_args({"args": chosen})
    parts = {"${env}": ["/usr/bin/env"], "${interpreter}": [sys.executable],
             "${args_no_hyphens}": given["args_no_hyphens"]}
    command = [word for part in create_sweep_command(sweep["command"]) for word in parts.get(part, [part])]
    done = subprocess.run([*command, "--cfg", "job"], env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cfg = yaml.safe_load(done.stdout)
    assert cfg["model"]["loss"] == "relativistic"
    assert cfg["model"]["generator_rate"] == pytest.approx(7.07e-4, rel=1e-3)
    assert cfg["study"] == "wandb_sweep" and cfg["logger"]["wandb"]["offline"] == "auto"
    assert yaml.safe_load((CONFIG_DIR / "metrics" / "classifier.yaml").read_text())["monitor"] is None  # fd_classifier
    assert sweep["metric"] == {"name": "fd_classifier", "goal": "minimize"}
