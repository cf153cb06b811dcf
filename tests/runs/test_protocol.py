import json

import pytest

from aigc.report.comparison import Comparison
from aigc.runs.catalogue import higher_is_better
from aigc.runs.protocol import alike, describe, differences, facts, scores_of
from aigc.runs.reading import read_run, read_runs
from tests.report.made import PROTOCOL, evaluate, make_run


@pytest.mark.parametrize(
    ("name", "change", "same"),
    [
        ("fd_classifier", {"num_samples": 10000}, False),
        ("fd_classifier", {"network_sha256": "cd" * 32}, False),
        ("fd_classifier", {"data_fingerprint": "f" * 16}, False),
        ("fd_classifier", {"resizer": "299 x 299"}, False),
        ("fd_classifier", {"split": "test"}, False),
        ("fd_classifier", {"seed": 5, "floor": 0.2, "network_accuracy": 0.5, "data": "renamed"}, True),
        ("fd_classifier", {"kd_subsets": 100, "is_splits": 5}, True),
        ("kd_classifier", {"kd_subsets": 100}, False),
        ("is_classifier", {"is_splits": 5, "kd_subsets": 100}, False),
        ("fd_classifier", {"num_samples_final": 10000}, True),
        ("final/fd_classifier", {"num_samples_final": 10000}, False),
        ("psnr", {"network_sha256": "cd" * 32, "num_samples": 10000}, True),
        ("psnr", {"data_fingerprint": "f" * 16}, False),
    ],
)
def test_scores_compare_when_all_that_bears_on_them_is_equal(name, change, same):
    found = differences(facts(name, PROTOCOL), facts(name, {**PROTOCOL, **change}))
    assert (not found) is same, found


def test_what_differs_is_said_in_words_and_a_missing_fact_counts():
    a, b = facts("fd_classifier", PROTOCOL), facts("fd_classifier", {**PROTOCOL, "num_samples": 10000})
    assert differences(a, b) == ["images generated (2000 and 10000)"]
    del b["num_samples"]
    assert differences(a, b) == ["images generated (2000 and not stated)"]
    assert describe(PROTOCOL) == "classifier (abababab), 2,000 images, against 1,500 of digits train"


@pytest.mark.parametrize(
    ("name", "higher"),
    [("fd_classifier", False), ("fid", False), ("is_classifier", True), ("is", True), ("label_accuracy", True),
     ("test/a2b/psnr", True), ("a2b/identity/similarity_squeezenet", True), ("a2b/cycle_l1", False), ("lpips", False),
     ("attributes/seen/all", True), ("recall_classifier", True), ("memorised_classifier", False), ("val/loss", False),
     ("val/elbo", True), ("val/reconstruction", True), ("val_accuracy", True), ("PSNR", True), ("test/top5_acc", True),
     ("reconstruction_loss", False), ("fd_clip", False), ("fd_is", False), ("val/bits_per_dim", False)],
)
def test_which_way_a_score_is_better(name, higher):
    assert higher_is_better(name) is higher


def test_a_runs_scores_are_the_best_of_training_and_what_evaluations_say(tmp_path):
    folder = make_run(tmp_path / "a", fd=1.5)
    scores = scores_of(read_run(folder))
    assert [score.value for score in scores["fd_classifier"]] == [1.5]
    evaluate(folder, "quick", 9.0, 4, {"steps": 4})
    evaluate(folder, "recipe", 1.4, 40)
    scores = scores_of(read_run(folder))
    assert [score.value for score in scores["fd_classifier"]] == [9.0, 1.5, 1.4]        # the last stands for the run
    assert (scores["fd_classifier"][-1].low, scores["fd_classifier"][-1].high) == (pytest.approx(1.3), 1.5)


def test_an_evaluation_of_another_checkpoint_does_not_stand_for_the_run(tmp_path):
    folder = make_run(tmp_path / "a", fd=1.0)
    evaluate(folder, "1", 1.1, 40)
    evaluate(folder, "2", 3.0, 40, checkpoint="last")
    scores = scores_of(read_run(folder))["fd_classifier"]
    assert [(score.value, score.checkpoint) for score in scores] == [(3.0, "last"), (1.0, "best"), (1.1, "best")]
    evaluate(folder, "3", 0.9, 40, images=12800)        # best is the last of all: 12,800 images
    evaluate(folder, "4", 5.0, 40, images=6400)         # and was another before the run went on
    scores = scores_of(read_run(folder))["fd_classifier"]
    assert [score.value for score in scores] == [3.0, 5.0, 1.0, 1.1, 0.9]
    assert [score.checkpoint for score in scores] == ["last", "an earlier best", "best", "best", "best"]


def test_a_running_runs_scores_come_from_its_log(tmp_path):
    run = read_run(make_run(tmp_path / "a", fd=1.5, status="running"))
    run.summary = {"status": "running"}
    run.history.append({"step": 210, "images": 13440, "seconds": 63.0, "loss": 0.1})
    scores = scores_of(run)
    assert set(scores) == {"val/loss", "fd_classifier", "label_accuracy"}
    assert scores["fd_classifier"][0].value == 1.5


def test_each_run_gets_the_score_that_compares_with_most_others(tmp_path):
    runs = [make_run(tmp_path / "a", fd=1.0), make_run(tmp_path / "b", fd=2.0, num_samples=10000),
            make_run(tmp_path / "c", fd=3.0, num_samples=10000)]
    evaluate(runs[1], "as_a", 2.5, 10)
    evaluate(runs[2], "as_a", 3.5, 10)
    chosen, numbers, protocols = alike("fd_classifier", [scores_of(read_run(run))["fd_classifier"] for run in runs])
    assert [score.value for score in chosen] == [1.0, 2.5, 3.5] and numbers == [0, 0, 0] and len(protocols) == 1
    chosen, numbers, protocols = alike("fd_classifier", [scores_of(read_run(runs[0]))["fd_classifier"][:1], [],
                                                         scores_of(read_run(runs[2]))["fd_classifier"][:1]])
    assert numbers == [0, -1, 1] and chosen[1] is None
    assert [score.facts["num_samples"] for score in protocols] == [2000, 10000]


SECOND = {"scores": ["fd_efficientnet", "kd_efficientnet"], "metric": "fd_efficientnet", "network": "efficientnet",
          "network_sha256": "ef" * 32, "network_weights": "packaged", "resizer": "224 x 224", "num_samples": 1000,
          "num_reals": 900, "floor": 0.3}


def with_second(folder, value=5.0, **protocol):
    """A run with a second network's score."""
    make_run(folder, **{"second": SECOND, "network_weights": "canonical digits", **protocol})
    summary = json.loads((folder / "summary.json").read_text())
    summary["scores"]["last"]["fd_efficientnet"] = value
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_second_networks_scores_compare_by_its_own_protocol(tmp_path):
    folders = [with_second(tmp_path / "a", 5.0), with_second(tmp_path / "b", 6.0, network_sha256="cd" * 32),
               with_second(tmp_path / "c", 7.0, second={**SECOND, "num_samples": 500})]
    found = [scores_of(read_run(folder)) for folder in folders]
    _, numbers, _ = alike("fd_efficientnet", [scores["fd_efficientnet"] for scores in found])
    assert numbers == [0, 0, 1]
    _, numbers, _ = alike("fd_classifier", [scores["fd_classifier"] for scores in found])
    assert numbers == [0, 1, 0]
    (score,) = found[0]["fd_efficientnet"]
    assert describe(score.shown) == "efficientnet (efefefef), 1,000 images, against 900 of digits train, 224 x 224"
    evaluate(folders[0], "later", 1.0, 10, checkpoint="last")
    path = folders[0] / "evaluations" / "later.json"
    record = json.loads(path.read_text())
    flat = {key: value for key, value in {**PROTOCOL, **SECOND}.items() if key != "scores"}
    record["scores"]["fd_efficientnet"] = {"value": 4.9, "low": 4.8, "high": 5.0, "floor": 0.3}
    record["protocol"]["fd_efficientnet"] = flat
    path.write_text(json.dumps(record))
    training, later = scores_of(read_run(folders[0]))["fd_efficientnet"]
    assert not differences(training.facts, later.facts) and later.low == 4.8


def test_runs_from_before_networks_had_an_origin_or_a_second_one_compare_by_their_weights(tmp_path):
    """Protocols without `network_weights` and `second`: the hash says whether it is the same network."""
    make_run(tmp_path / "old", fd=1.0)
    with_second(tmp_path / "new")
    with_second(tmp_path / "retrained", network_sha256="cd" * 32, network_weights="trained here")
    comparison = Comparison(read_runs(tmp_path))
    letters = dict(zip(comparison.labels, comparison.columns[0].letters, strict=True))
    assert letters == {"old": "A", "new": "A", "retrained": "B"}
    assert comparison.columns[0].warnings == ["fd_classifier: A and B were not measured alike, they differ in weights "
                                              "of the feature network (abababab and cdcdcdcd)"]
    comparison = Comparison(read_runs(tmp_path), "fd_efficientnet")
    letters = dict(zip(comparison.labels, comparison.columns[0].letters, strict=True))
    assert letters == {"old": "", "new": "A", "retrained": "A"} and not comparison.columns[0].warnings


@pytest.mark.parametrize("second", ["text", 5, ["fd_classifier"], {"scores": "fd_classifier"}, {"scores": None}, {}])
def test_a_second_network_that_is_none_is_left_out(second):
    assert facts("fd_classifier", {**PROTOCOL, "second": second}) == facts("fd_classifier", PROTOCOL)
