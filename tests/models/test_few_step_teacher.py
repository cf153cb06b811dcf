"""Few-step models that a run teaches: they start as it, keep its identity alone, and refuse what does not fit."""

import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.models.checkpoints import load_family, read_checkpoint
from aigc.networks.fingerprint import state_sha256
from aigc.runs.resume import resumed_config
from aigc.training.fit import fit
from tests.conftest import TINY, compose_train
from tests.models.test_diffusion import CONF, batch_of
from tests.models.test_few_step import METHODS, tiny
from tests.test_resume import assert_same

QUICK = ["metrics=none", "~callbacks.samples", "log_every=7"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A short run of diffusion; treat it as read-only."""
    folder = tmp_path_factory.mktemp("teacher")
    fit(compose_train(*TINY["diffusion"], *QUICK, "condition=label", "budget.images=640"), folder)
    return folder


def configured(teacher, images, *more):
    return compose_train("model=few_step", *TINY["diffusion"][1:], *QUICK, "condition=label", "model.decay_from=1.0",
                         f"budget.images={images}", f"model.teacher={teacher}", *more)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_starts_as_its_teacher_exactly(teacher, method):
    taught, model = load_family(teacher), tiny(method, classes=10, awake=False, teacher=str(teacher))
    x, t, labels = torch.randn(6, 1, 8, 8), torch.rand(6), torch.arange(6)
    wanted = taught.predict(taught.ema, x, t, labels)
    lengths = [()] if method == "consistency" else [(torch.zeros(6),), (torch.rand(6),)]
    for network in (model.network.eval(), model.ema):
        for length in lengths:
            assert torch.equal(model.predict(network, x, t, labels, None, *length), wanted)
    assert torch.equal(model.moments, taught.moments) and float(model.moments[0]) > 0
    if method == "shortcut":
        given = {"condition": [1, 2], "seeds": [3, 4], "sampler": "heun", "steps": 3, "guidance": 2.0}
        assert torch.equal(model.eval().sample(2, **given), taught.sample(2, **given))
    kept = model.hparams["teacher"]
    assert kept["sha256"] == state_sha256(taught.ema.network.state_dict()) == model.teacher.fingerprint
    assert (kept["run"], kept["trained"]["images"]) == (teacher.name, 640) and kept["trained"]["seconds"] > 0
    assert model.hparams["network"] == taught.hparams["network"]
    assert model.teacher.borrowed is None


def test_a_quarter_learns_from_two_steps_when_tuning_and_an_eighth_from_scratch(teacher):
    for given, count in (({"classes": 10, "teacher": str(teacher)}, 16), ({}, 8)):
        model, seen = tiny(**given), []
        model.network.register_forward_hook(lambda _, given, made, seen=seen: seen.append(int((given[4] > 0).sum())))
        model.training_step(batch_of(64), 0)
        assert seen == [count]
    published = OmegaConf.load(CONF / "size" / "few_step_gpu.yaml").model
    assert published.methods.shortcut == {"base": 128, "tuning": 0.25, "weight": 1.0}
    assert published.weight_decay == 0.1 and OmegaConf.load(CONF / "size" / "diffusion_gpu.yaml").model.muon_lr == 0


def trained(teacher, folder, images, *more):
    cfg = configured(teacher, images, *more)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return fit(cfg, folder)


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_is_known_by_its_identity_and_may_go(teacher, method, tmp_path):
    more = [f"model.method={method}", "model.methods.consistency.stages=1"]    # no schedule by the budget
    shutil.copytree(teacher, tmp_path / "taught")
    whole = trained(teacher, tmp_path / "whole", 256, *more)
    before = trained(tmp_path / "taught", tmp_path / "broken", 128, *more)
    shutil.rmtree(tmp_path / "taught")
    words = ["budget.images=256"]
    typed = compose_train("model=few_step", *TINY["diffusion"][1:], *QUICK, *words)
    cfg = resumed_config(typed, tmp_path / "broken", words)
    after = fit(cfg, tmp_path / "broken", resumed=True)
    assert after["images"] == 256 and after["parts"] == before["parts"] == whole["parts"]
    assert after["signature"] == before["signature"]
    one, two = (read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "broken"))
    for key in ("state_dict", "optimizer_states"):
        assert_same(one[key], two[key], key)
    assert str(tmp_path) not in str(two["hyper_parameters"])
    assert not any("teacher" in name for name in two["state_dict"])
    kept, taught = two["hyper_parameters"]["teacher"], load_family(teacher)
    assert kept["run"] == "taught" and kept["sha256"] == whole["parts"]["teacher"]
    size = sum(value.numel() for name, value in two["state_dict"].items() if name.startswith("network."))
    further = size - sum(p.numel() for p in taught.network.parameters())
    assert further == (0 if method == "consistency" else 2 * 16 * 17), "the second clock, and no copy of the teacher"
    assert load_family(tmp_path / "broken").sample(2, condition=[1, 2], seeds=[1, 2], steps=2).isfinite().all()


def test_any_process_can_teach_and_latents_are_the_teachers(teacher, tmp_path):
    fit(compose_train(*TINY["vae"], *QUICK, "condition=none", "budget.images=300"), tmp_path / "vae")
    latent = ["model.latent_network.width=16", "model.latent_network.blocks=1", "condition=none"]
    inside = f"model.first_stage={tmp_path / 'vae'}"
    fit(compose_train(*TINY["diffusion"], *QUICK, *latent, "budget.images=128", inside), tmp_path / "latent")
    taught = load_family(tmp_path / "latent")
    summary = trained(tmp_path / "latent", tmp_path / "student", 128, "condition=none")
    model = load_family(tmp_path / "student")
    assert model.shape == (4, 1, 1) and set(summary["parts"]) == {"first_stage", "teacher"}
    assert summary["parts"]["first_stage"] == taught.first_stage.fingerprint
    assert float(model.first_stage.scale) == float(taught.first_stage.scale) > 0
    assert model.sample(2, seeds=[1, 2], steps=1).shape == (2, 1, 8, 8)
    small = [*TINY["diffusion"][1:], *QUICK, "condition=label", "budget.images=128"]
    fit(compose_train("model=edm", *small), tmp_path / "edm")
    trained(tmp_path / "edm", tmp_path / "jump", 128)
    model = load_family(tmp_path / "jump")
    assert (model.hparams.process, model.hparams.prediction) == ("edm", "edm")
    assert float(model.points({"steps": 2, "spacing": "own"})[0, 1]) == pytest.approx(80, rel=1e-3)
    with pytest.raises(UserError, match=r"model\.method=meanflow learns velocities of flow matching: choose"):
        fit(configured(tmp_path / "edm", 320, "model.method=meanflow"), tmp_path / "no")


def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path):
    fit(compose_train(*TINY["vae"], *QUICK, "condition=none", "budget.images=100"), tmp_path / "vae")
    for source, more, sentence in (
        (tmp_path / "nowhere", (), "neither a run folder nor a checkpoint"),
        (tmp_path / "vae", (), r"holds a VAE: model\.teacher needs a run of Diffusion"),
        (teacher, ("condition=none",), r"condition of model\.teacher is label, here it is none: choose what it was"),
        (teacher, (f"model.first_stage={tmp_path / 'vae'}",), r"model\.first_stage is that of model\.teacher: leave"),
    ):
        with pytest.raises(UserError, match=sentence):
            fit(configured(source, 320, *more), tmp_path / "no")
    for stranger in ({"sha256": 3}, {"sha256": "x"}, {"sha256": "x", "options": 3}):
        with pytest.raises(UserError, match=r"model\.teacher is neither a run nor what a checkpoint keeps of one"):
            tiny(teacher=stranger)
