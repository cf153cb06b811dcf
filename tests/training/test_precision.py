"""`trainer.precision=auto` on a CPU: what is faster there, by a measurement that changes nothing else."""

import logging
from types import SimpleNamespace

import pytest
import torch

from aigc.config.targets import instantiate
from aigc.files.cache import cache_folder
from aigc.models.family import Family
from aigc.runs.summary import read_summary
from aigc.training import fit as training
from aigc.training import precision
from aigc.training.precision import OnePrecision, measure_precision, settle_precision
from tests.conftest import TINY, compose_train

FACTS = {"bf16_ms", "float32_ms", "what", "rounds", "calm", "faster", "processor", "torch", "threads", "layers",
         "seconds", "from_cache"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "CALM", 0.0)         # other tests run beside this one


def prepared(*overrides):
    cfg = compose_train("condition=none", *overrides)
    data = training.prepare_data(cfg, training.check_compatible(cfg).accepts)
    facts = {"channels": data.channels, "size": tuple(data.size), "classes": data.classes, "condition": cfg.condition}
    return instantiate(cfg.model, "model", **facts), data


def taking(bf16, float32):
    return lambda model, data: {"bf16_ms": bf16, "float32_ms": float32, "what": "a step", "rounds": 3, "calm": True}


def kept():
    return sorted(path.name for path in cache_folder().glob("precision-*"))


@pytest.mark.parametrize("name", ["gan", "vae", "diffusion"])
def test_a_measurement_leaves_weights_random_numbers_and_progress_alone_and_is_made_once(name, monkeypatch):
    model, data = prepared(*TINY[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = measure_precision(model, data)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.progress.batches == model.progress.images == 0 and data.trainer is None
    assert set(found) == FACTS and not found["from_cache"]
    assert found["bf16_ms"] > 0 and found["float32_ms"] > 0 and found["what"].startswith("a step of ")
    assert found["layers"].get("Conv2d", 0) > 0 and found["threads"] == 1
    again = measure_precision(model, data)
    assert again == {**found, "from_cache": True} and len(kept()) == 1


def test_what_is_kept_belongs_to_the_processor_the_torch_the_threads_and_the_layers(monkeypatch):
    monkeypatch.setattr(precision, "_measure", taking(1.0, 2.0))
    model, data = prepared(*TINY["vae"])
    measure_precision(model, data)
    assert measure_precision(model, data)["from_cache"]
    for change in (
        lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
        lambda: monkeypatch.setattr(torch, "__version__", "0.1"),
        lambda: monkeypatch.setattr(precision.torch, "get_num_threads", lambda: 7),
    ):
        change()
        assert not measure_precision(model, data)["from_cache"]
    wider, _ = prepared(*TINY["vae"], "model.hidden=24")
    assert not measure_precision(wider, data)["from_cache"]
    assert len(kept()) == 5
    assert "at most AVX2" in precision.processor()


@pytest.mark.parametrize(("bf16", "float32", "faster"), [
    (1.0, 2.0, "bf16-mixed"), (0.58, 0.94, "bf16-mixed"), (0.94, 0.71, "32-true"), (1.0, 1.02, "32-true"),
])
def test_bf16_only_where_it_is_clearly_faster(bf16, float32, faster, monkeypatch):
    monkeypatch.setattr(precision, "_measure", taking(bf16, float32))
    model, data = prepared(*TINY["vae"])
    chosen, measured = settle_precision("auto", "cpu", model, data)
    assert chosen == measured["faster"] == faster
    assert settle_precision("32", "cpu", model, data) == ("32-true", None)
    assert settle_precision("bf16", "cpu", model, data) == ("bf16-mixed", None)


def test_times_taken_beside_others_are_used_but_not_kept(monkeypatch):
    seen = []

    def busy(model, data):
        seen.append(torch.get_num_threads())
        return {**taking(1.0, 2.0)(model, data), "calm": False}

    monkeypatch.setattr(precision, "_measure", busy)
    model, data = prepared(*TINY["vae"])
    torch.set_num_threads(2)
    try:
        found = measure_precision(model, data)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [2, 1] and found["faster"] == "bf16-mixed" and found["threads"] == 2 and not kept()


class Noted(Family):
    """Notes what its steps compute in, and of how many images."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 8)
        self.hparams.update(classes=10)

    def training_step(self, batch, batch_idx):
        NOTES.append((torch.is_autocast_enabled("cpu"), len(batch["image"])))
        return {"loss": self.layer(batch["image"].flatten(1)).square().mean()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


NOTES: list = []


def test_steps_alternate_between_both_on_equal_batches():
    _, data = prepared(*TINY["vae"])
    NOTES.clear()
    found = precision._steps(Noted(), data)
    counted = NOTES[-2 * found["rounds"]:]
    assert counted == [(k % 2 == 1, 16) for k in range(len(counted))] and len(counted) >= 4
    assert all(not low for low, _ in NOTES[: len(NOTES) - len(counted)])     # a larger batch is felt for in float32


def test_large_models_are_measured_by_their_layers_and_so_is_what_cannot_be_copied(monkeypatch):
    model, data = prepared(*TINY["gan"])
    monkeypatch.setattr(precision, "WORK", 1e6)
    monkeypatch.setattr(precision, "_steps", lambda model, data: 1 / 0)
    monkeypatch.setattr(precision, "HOPELESS", 1e9)
    assert measure_precision(model, data)["what"] == "its 4 largest kinds of layers"
    monkeypatch.setattr(precision, "LARGE", 0)
    monkeypatch.setattr(precision, "_steps", None)
    assert precision._measure(model, data)["float32_ms"] > 0


def test_a_resumed_run_keeps_its_precision_and_says_what_would_be_chosen_here(monkeypatch, caplog):
    monkeypatch.setattr(precision, "_measure", taking(2.0, 1.0))
    model, data = prepared(*TINY["vae"])
    with caplog.at_level(logging.INFO):
        assert settle_precision("auto", "cpu", model, data, before="bf16-mixed")[0] == "bf16-mixed"
    assert "bf16-mixed, as this run began; a new run would choose 32-true here" in caplog.text
    assert settle_precision("auto", "cpu", model, data, before="16-mixed")[0] == "32-true"      # began on a GPU
    assert settle_precision("32", "cpu", model, data, before="bf16-mixed")[0] == "32-true"      # as typed


def test_all_ranks_take_over_what_rank_0_has_chosen(monkeypatch):
    monkeypatch.setattr(precision, "_measure", lambda *_: pytest.fail("only rank 0 measures"))
    model, data = prepared(*TINY["vae"])
    assert settle_precision("auto", "cpu", model, data, first=False) == ("32-true", None)
    own = precision._plugin("32-true")
    strategy = SimpleNamespace(broadcast=lambda value, src: "bf16-mixed", precision_plugin=own)
    OnePrecision().setup(SimpleNamespace(strategy=strategy, precision="32-true"), model, "fit")
    assert strategy.precision_plugin.precision == "bf16-mixed"
    with strategy.precision_plugin.train_step_context():
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16 and torch.is_autocast_enabled("cpu")


def test_a_run_says_what_was_measured_and_trains_as_if_nothing_had_been(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "GAIN", 1e9)                 # float32 whatever comes out
    weights = []
    for wanted in ("auto", "32"):
        cfg = compose_train(*TINY["vae"], "metrics=none", "budget.images=64", f"trainer.precision={wanted}")
        folder = tmp_path / wanted
        training.fit(cfg, folder)
        weights.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        summary = read_summary(folder)
        assert summary["precision"] == "32-true"
        if wanted == "auto":
            assert set(summary["precision_measured"]) == FACTS
            assert summary["precision_measured"]["faster"] == "32-true"
        else:
            assert "precision_measured" not in summary
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
