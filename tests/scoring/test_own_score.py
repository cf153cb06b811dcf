"""A score from outside the package, one file: measured in training and in an evaluation, compared by its own entry."""

import json

import pytest
from omegaconf import OmegaConf

from aigc.errors import UserError
from aigc.report.comparison import Comparison
from aigc.runs.catalogue import ENTRIES
from aigc.runs.reading import read_runs
from aigc.scoring.scores import registry
from aigc.scoring.suite import Suite
from aigc.training.callbacks.scores import Scores
from aigc.training.fit import fit
from tests.conftest import TINY, compose_train
from tests.scoring.test_suite import Network, cloud
from tests.test_evaluate import evaluated

SOURCE = '''
from aigc.runs.catalogue import Entry
from aigc.scoring.scores.registry import score


@score(Entry("loss_of_spread_*", "more", bounds=(0, None), reads=("features",), facts=("data_fingerprint", "order")),
       order=2)
def spread(features, logits, real):
    return (features.std(0).mean() / real.std(0).mean()).item()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module outside the package, which registers a score."""
    name = f"spread_{tmp_path.name}".replace("-", "_")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "parts"))
    monkeypatch.setenv("AIGC_ALLOW_TARGETS", name)
    registry.chosen(())                                                 # imports the package's own
    before, entries = list(registry.SCORES), dict(ENTRIES)
    yield name
    registry.SCORES[:] = before
    ENTRIES.clear()
    ENTRIES.update(entries)


def test_only_a_suite_that_names_its_module_measures_it(own):
    assert registry.load([own], "metrics.extra") == (own,)
    suite = Suite(Network(), extra=[own])
    suite.add_real(cloud(200))
    features = 2 * cloud(150, seed=1)
    expected = (features.std(0).mean() / cloud(200).std(0).mean()).item()
    scores = suite.compute(features, cloud(150, seed=2))
    assert list(scores) == ["fd_tiny", "kd_tiny", "is_tiny", "loss_of_spread_tiny"]
    assert scores["loss_of_spread_tiny"] == expected and suite.protocol(150)["order"] == 2
    other = Suite(Network())
    other.add_real(cloud(200))
    assert list(other.compute(features, cloud(150, seed=2))) == ["fd_tiny", "kd_tiny", "is_tiny"]


def test_a_module_must_be_allowed_and_register_a_score(own, monkeypatch):
    for name, allowed, words in (
        (own, "", f"metrics.extra={own} is not allowed: name its package in the environment variable AIGC_ALLOW"),
        ("os; import x", own, "is not allowed"), ("nowhere_at_all", "nowhere_at_all", "does not exist"),
        ("json.decoder", "json", "registers no score"),
    ):
        monkeypatch.setenv("AIGC_ALLOW_TARGETS", allowed)
        with pytest.raises(UserError, match=words):
            Scores(network="classifier", every_images=100, batch_size=50, num_samples=50, extra=[name])


def test_training_and_an_evaluation_measure_it_and_runs_compare_by_its_entry(own, tmp_path):
    """Its direction is its entry's, although its name begins with `loss`."""
    quick = ["~callbacks.samples", "budget.images=800", "metrics.num_samples=60", "metrics.every_images=800",
             "metrics.second=null", f"metrics.extra=[{own}]"]
    run = tmp_path / "runs" / "first"
    fit(compose_train(*TINY["gan"], *quick), run)
    (run / ".hydra").mkdir()
    OmegaConf.save(compose_train(*TINY["gan"], *quick), run / ".hydra" / "config.yaml")
    summary = json.loads((run / "summary.json").read_text())
    value = summary["scores"]["last"]["loss_of_spread_classifier"]
    assert value > 0 and summary["protocol"]["order"] == 2
    assert summary["catalogue"]["loss_of_spread_*"]["better"] == "more"
    (run / "evaluations").mkdir()
    record = evaluated(run=run, checkpoint="last", num_samples=60, extra=f"[{own}]",
                       out=run / "evaluations" / "a.json")
    found = record["scores"]["loss_of_spread_classifier"]
    assert found["value"] == pytest.approx(value, rel=1e-4) and 0 <= found["low"] < found["value"] < found["high"]
    assert found["floor"] > 0 and record["catalogue"]["loss_of_spread_*"]["reads"] == ["features"]
    ENTRIES.pop("loss_of_spread_*")                                     # as for who only reads the records
    column = Comparison(read_runs(tmp_path / "runs"), "loss_of_spread_classifier").columns[0]
    assert column.higher and column.letters == ["A"] and set(column.scores[0].facts) == {"data_fingerprint", "order"}
    assert not [entry for entry in ENTRIES.values() if entry.fits("loss_of_spread_classifier")]
