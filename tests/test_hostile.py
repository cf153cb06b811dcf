"""Run folders, experiment files and checkpoints of strangers, for every verb: nothing in them runs.

Each payload would make the file `marker`; a test fails if it is there, or if more than one sentence comes out.
"""

import importlib
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from aigc.config.untrusted import read_config, settled
from aigc.errors import UserError

from .conftest import compose_train


class Payload:
    """A pickle of it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
    """Runs a verb in `tmp_path`; returns its exit code and what it said on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "do-not-tell")
    monkeypatch.delenv("AIGC_ALLOW_TARGETS", raising=False)

    def call(name: str, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"aigc.{name}", *words])
        handlers, GlobalHydra.instance()._hydra = list(logging.getLogger().handlers), None
        code = 0
        try:
            importlib.import_module(f"aigc.{name}").main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.getLogger().handlers[:] = handlers
        return code, capsys.readouterr().err

    return call


def refused(done: tuple[int, str], sentence: str, marker: Path) -> None:
    """Asserts exit code 2, one sentence with these words, and no marker."""
    code, said = done
    last = said.strip().splitlines()[-1]
    assert code == 2 and last.startswith("aigc: ") and sentence in last, said
    assert "Traceback" not in said and len([line for line in said.splitlines() if line.startswith("aigc: ")]) == 1
    assert not marker.exists(), "the payload ran"
    assert "do-not-tell" not in said


def run_folder(folder: Path, checkpoint: object = None, **changes: object) -> Path:
    """A run folder with a composed configuration, some of it changed, and a checkpoint."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    cfg = compose_train("model=vae")
    OmegaConf.set_struct(cfg, False)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True, merge=False)
    (folder / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (folder / "summary.json").write_text('{"status": "stopped"}')
    torch.save(checkpoint if checkpoint is not None else {"x": 1}, folder / "checkpoints" / "last.ckpt")
    return folder


def load(marker: Path) -> dict[str, object]:
    """The node that once ran a pickle's command."""
    pickled = marker.with_name("payload.pkl")
    pickled.write_bytes(pickle.dumps(Payload(marker)))
    return {"_target_": "lightning.fabric.utilities.cloud_io._load", "path_or_url": str(pickled),
            "weights_only": False}


@pytest.mark.parametrize("place", ["model", "data", "trainer", "metrics", "callbacks__x", "logger__x",
                                   "data__validation", "model__network"])
def test_training_is_not_resumed_from_a_configuration_that_calls_something(place, tmp_path, verb):
    marker = tmp_path / "marker"
    node = load(marker)
    if place == "trainer":
        node |= {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32"}
    folder = run_folder(tmp_path / "run", **{place: node})
    done = verb("train", f"resume={folder}")
    words = "_target_" if place != "data__validation" else "takes no object"
    refused(done, words, marker)


def parts(**changes: object) -> dict[str, object]:
    """A checkpoint, some of it changed."""
    whole = {"family": "aigc.models.vae.VAE", "state_dict": {}, "hyper_parameters": {}, "progress": {}}
    return {**whole, **changes}


CHECKPOINTS = {
    "pickle": (lambda marker: Payload(marker), "cannot be read as a checkpoint (not a tensor file)"),
    "inside": (lambda marker: parts(hyper_parameters={"x": Payload(marker)}), "cannot be read as a checkpoint"),
    "function": (lambda marker: parts(family="os.system", hyper_parameters={"command": f"touch {marker}"}),
                 "family=os.system is not allowed there"),
    "loader": (lambda marker: parts(family="lightning.fabric.utilities.cloud_io._load"), "is private"),
    "class": (lambda marker: parts(family="lightning.LightningModule"),
              "family=lightning.LightningModule is not allowed"),
    "data": (lambda marker: parts(family="aigc.data.digits.Digits"), "is not allowed there"),
    "no name": (lambda marker: parts(family=5), "is not a checkpoint of aigc"),
    "wrong": (lambda marker: parts(hyper_parameters={"nonsense": 1}), "does not fit VAE as installed"),
    "huge": (lambda marker: parts(hyper_parameters={"channels": 1, "size": [10**9, 10**9], "widths": [10**9]}),
             "does not fit VAE as installed"),
    "keys": (lambda marker: parts(hyper_parameters={5: 1}), "does not fit VAE as installed"),
    "list": (lambda marker: [1, 2], "is not a checkpoint of aigc"),
    "text": (lambda marker: "text", "is not a checkpoint of aigc"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("name", ["generate", "edit", "evaluate"])
def test_a_hostile_checkpoint_is_refused_by_every_verb_that_loads_one(name, kind, tmp_path, verb):
    make, sentence = CHECKPOINTS[kind]
    marker = tmp_path / "marker"
    folder = run_folder(tmp_path / "run", make(marker))
    (tmp_path / "pictures").mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    more = [f"images={tmp_path / 'pictures'}"] if name == "edit" else []
    refused(verb(name, f"run={folder}", "device=cpu", *more), sentence, marker)


@pytest.mark.parametrize("verbs", ["train", "evaluate"])
@pytest.mark.parametrize(("text", "sentence"), [
    ("model: !!python/object/apply:os.system ['touch marker']", "cannot be read"),
    ("model: !!python/name:os.system", "cannot be read"),
    ("- a\n- list", "cannot be read (it is not a mapping)"),
    ("model: 5", "cannot be read ('model' is not a mapping)"),
    ("model: {a: [", "cannot be read"),
    ("\x00\x01", "cannot be read"),
    ("study: ${oc.env:SECRET}\nmodel: {}", "reads the environment variable SECRET"),
    ("study: ${oc.decode:${oc.env:SECRET}}\nmodel: {}", "reads the environment variable SECRET"),
    ("name: SECRET\nstudy: ${oc.env:${name}}\nmodel: {}", "reads the environment variable SECRET"),
    ("dot: oc\nstudy: ${${dot}.env:SECRET}\nmodel: {}", "reads the environment variable SECRET"),
    ("study: ${nothing}\nmodel: {}", "cannot be used"),
    ("study: ${nothing:1}\nmodel: {}", "cannot be used"),
])
def test_a_saved_configuration_runs_nothing_and_reads_no_secret(verbs, text, sentence, tmp_path, verb):
    folder = run_folder(tmp_path / "run", parts())
    (folder / ".hydra" / "config.yaml").write_text(text)
    words = [f"resume={folder}"] if verbs == "train" else [f"run={folder}", "device=cpu"]
    refused(verb(verbs, *words), sentence, tmp_path / "marker")


def test_a_run_folder_reads_the_variables_that_our_recipes_read(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_DATA", "/data")
    folder = run_folder(tmp_path / "run", data={"root": "${oc.env:AIGC_DATA,x}/mnist", "batch_size": "${batch_size}"})
    path = folder / ".hydra" / "config.yaml"
    data = settled(read_config(path), path, batch_size=7).data
    assert data == {"root": "/data/mnist", "batch_size": 7}
    assert OmegaConf.create({"x": "${oc.env:HOME}"}).x, "the guard is gone afterwards"


def test_a_run_folder_fetches_our_own_data_to_their_own_place_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_DATA", str(tmp_path / "data"))
    own = OmegaConf.to_container(compose_train("model=pix2pix", "data=facades").data, resolve=True)
    hostile = {
        "ours": (own, True),
        "elsewhere": ({**own, "root": str(tmp_path / ".config" / "autostart")}, False),
        "another": ({**own, "archive": {**own["archive"], "url": "http://evil.example/x.zip"}}, False),
        "address": ({**own, "archive": "http://evil.example/x.zip"}, False),
        "mnist": ({**OmegaConf.to_container(compose_train("data=mnist").data, resolve=True), "root": "/etc"}, False),
    }
    for name, (data, fetched) in hostile.items():
        path = run_folder(tmp_path / name, data=data) / ".hydra" / "config.yaml"
        assert settled(read_config(path), path).data.download is fetched, name


def test_an_evaluation_does_not_download_what_a_strangers_run_names(tmp_path, monkeypatch):
    from aigc.data import download
    from aigc.data.preparing import prepare_data
    from aigc.models.pix2pix import Pix2Pix

    monkeypatch.setattr(download, "_download", lambda *_: pytest.fail("it was fetched"))
    data = OmegaConf.to_container(compose_train("model=pix2pix", "data=facades").data, resolve=False)
    data |= {"root": str(tmp_path / "startup"), "archive": {**data["archive"], "url": "http://evil.example/x.zip"}}
    path = run_folder(tmp_path / "run", data=data) / ".hydra" / "config.yaml"
    with pytest.raises(UserError, match=r"startup does not exist and data.download=false"):
        prepare_data(settled(read_config(path), path), Pix2Pix.accepts)
    assert not (tmp_path / "startup").exists()


SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
EXPERIMENTS = {
    "callback": ("hydra:\n  callbacks:\n    x:\n      _target_: pathlib.Path.touch\n      self: marker\n",
                 "hydra.callbacks.x may not name pathlib.Path.touch"),
    "environment": ("hydra:\n  job:\n    env_set: {AIGC_ALLOW_TARGETS: os, LD_PRELOAD: x.so}\n",
                    "hydra.job.env_set.AIGC_ALLOW_TARGETS is not supported"),
    "logging": ("hydra:\n  job_logging:\n    formatters:\n      x: {(): os.system, command: touch marker}\n",
                "hydra.job_logging may not name os.system"),
    "import": ("hydra:\n  job_logging:\n    handlers:\n      x: {class: logging.StreamHandler, stream: ext://evil.x}\n",
               "hydra.job_logging names ext://evil.x"),
    "log file": ("hydra:\n  hydra_logging:\n    handlers:\n      x: {class: logging.FileHandler, filename: marker}\n",
                 "hydra.hydra_logging writes to marker"),
    "launcher": ("hydra:\n  launcher:\n    _target_: os.system\n    command: touch marker\n",
                 "hydra.launcher._target_ may not name os.system"),
    "in launcher": ("hydra:\n  launcher:\n    max_parallel:\n      _target_: os.system\n      command: touch marker\n",
                    "hydra.launcher.max_parallel may not name os.system"),
    "sweeper": ("hydra:\n  sweeper:\n    params:\n      _target_: os.system\n      command: touch marker\n",
                "hydra.sweeper.params may not name os.system"),
    "chosen": (f"hydra:\n  launcher:\n    _target_: {SUBMITIT}\n    setup: [touch marker]\n",
               "hydra/launcher is chosen by a file"),
    "record": ("hydra:\n  output_subdir: ../elsewhere\n", "hydra.output_subdir=../elsewhere lies outside"),
    "model": ("model:\n  _target_: os.system\n", "model._target_=os.system is not allowed there"),
    "nested": ("data:\n  validation: {_target_: os.system, command: touch marker}\n", "takes no object"),
    "yaml": ("model: !!python/object/apply:os.system [touch marker]\n", "cannot be read"),
    "broken": ("model: [\n", "cannot be read"),
    "list": ("- a\n", ""),
    "top": ("sed: 5\n", "there is no option 'sed'"),
}


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_a_hostile_experiment_file_is_refused(kind, tmp_path, verb):
    text, sentence = EXPERIMENTS[kind]
    (tmp_path / "theirs" / "experiment").mkdir(parents=True)
    (tmp_path / "theirs" / "experiment" / "x.yaml").write_text(f"# @package _global_\n{text}")
    for more in ([], ["-m"]) if kind in ("callback", "launcher", "in launcher", "sweeper", "chosen") else ([],):
        done = verb("train", "--config-dir", str(tmp_path / "theirs"), "experiment=x", "data=digits", *more)
        refused(done, sentence, tmp_path / "marker")


def test_compare_reads_run_folders_and_runs_nothing(tmp_path, verb):
    pytest.importorskip("plotly")
    marker = tmp_path / "marker"
    folder = run_folder(tmp_path / "runs" / "<script>alert(1)</script>", Payload(marker), model=load(marker),
                        study="${oc.env:SECRET}")
    (folder / "metrics.jsonl").write_text('{"images": 1, "seconds": 1, "</script><b>": 2}\n')
    (folder / "summary.json").write_text(
        '{"status": "finished", "images": 1, "seconds": 1, "study": "<img src=x onerror=alert(1)>",'
        ' "scores": {"last": {"<i>fd": 1.0}, "best": 1.0, "monitor": "<i>fd", "mode": "min"}}')
    (folder / ".hydra" / "overrides.yaml").write_text("!!python/object/apply:os.system ['touch marker']")
    for words in ([], ["out=report.html"]):
        code, said = verb("compare", "runs=runs", *words)
        assert code == 0 and "Traceback" not in said, said
    page = (tmp_path / "report.html").read_text()
    assert "do-not-tell" not in page and not marker.exists()
    for tag in ("<script>alert(1)", "<img src=x", "</script><b>", "<i>fd"):
        assert tag not in page
