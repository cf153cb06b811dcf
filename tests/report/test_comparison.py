import re

import pytest

from aigc.errors import UserError
from aigc.report.comparison import SILENT, Comparison, differing, facts, own_settings, written
from aigc.report.runs import find_runs, read_run, read_runs
from aigc.report.table import text

from .made import evaluate, make_run


@pytest.fixture
def runs(tmp_path):
    """Four runs: one measured otherwise, one that is not scored yet."""
    make_run(tmp_path / "a" / "one", fd=3.0, overrides=("model=gan", "model.rate=0.001"))
    make_run(tmp_path / "a" / "two", fd=2.0, family="VAE", rate=0.1, overrides=("model=vae", "model.rate=0.1"), seed=2)
    make_run(tmp_path / "b" / "three", fd=1.0, num_samples=10000, overrides=("model=gan",))
    bare = make_run(tmp_path / "b" / "four", lines=0, overrides=("model=gan",), status="running")
    (bare / "summary.json").write_text('{"status": "running", "family": "GAN"}')
    return read_runs(tmp_path)


@pytest.fixture
def comparison(runs):
    return Comparison(runs)


def test_runs_are_sorted_by_score_one_protocol_after_the_other(comparison):
    assert [comparison.labels[k] for k in comparison.order()] == ["a/two", "a/one", "b/three", "b/four"]
    column = comparison.columns[0]
    assert column.name == "fd_classifier" and not column.higher
    assert dict(zip(comparison.labels, column.letters, strict=True)) == {
        "a/one": "A", "a/two": "A", "b/three": "B", "b/four": ""}
    assert column.warnings == [
        "fd_classifier: A and B were not measured alike, they differ in images generated (2000 and 10000)"]


def test_any_score_can_be_the_one_and_an_unknown_one_is_refused(runs):
    assert Comparison(runs, "label_accuracy").columns[0].higher
    with pytest.raises(UserError, match=r"no run has a score 'fd_clasifier': did you mean 'fd_classifier'"):
        Comparison(runs, "fd_clasifier")


def test_what_differs_between_the_settings(comparison, runs):
    assert set(comparison.settings) == {"seed", "model.rate"}
    assert [run.name for run in runs] == ["one", "two", "four", "three"]
    assert comparison.settings["model.rate"] == [0.001, 0.1, 0.001, 0.001]


def test_keys_that_most_runs_have_come_first_and_equal_ones_are_left_out():
    found = differing([{"a": 1, "b": 1, "same": 0}, {"b": 2, "same": 0, "logger.x": 1}, {}])
    assert found == {"b": [1, 2, None], "a": [1, None, None]}


def test_settings_in_the_table_are_what_was_typed_for_some_runs(runs):
    assert own_settings(runs) == ["model.rate=0.001 seed=1", "model.rate=0.1 seed=2", "seed=1", "seed=1"]


def test_status_says_why_and_whether_a_running_run_is_silent(runs):
    running = next(run for run in runs if run.status == "running")
    now = written(running)
    assert facts(running, now + SILENT / 2)["status"] == "running"
    assert facts(running, now + 7200)["status"] == "running, silent for 2.0 h"
    running.status, running.summary["reason"] = "failed", "loss became nan"
    assert facts(running)["status"] == "failed: loss became nan"
    assert facts(running)["minutes"] is None


def test_the_table_is_aligned_and_says_how_scores_were_measured(comparison, tmp_path):
    lines = text(comparison).splitlines()
    assert lines[0] == f"4 runs in {tmp_path}"
    head, *rows = lines[2:7]
    assert [row.split()[0] for row in rows] == ["a/two", "a/one", "b/three", "b/four"]
    start = head.index("fd_classifier")
    assert [row[start : start + len("fd_classifier")].strip() for row in rows] == ["2", "3", "1", ""]
    assert all(row[head.index("status") :].startswith(("finished", "running")) for row in rows)
    below = "\n".join(lines[7:])
    assert "fd_classifier: less is better" in below
    assert "A  classifier (abababab), 2,000 images, against 1,500 of digits train" in below
    assert "warning: fd_classifier: A and B were not measured alike" in below
    assert "1 of 4 runs have no fd_classifier" in below
    narrow = text(comparison, 100)
    assert max(map(len, narrow.splitlines()[2:10])) <= 100
    for value in ("1", "2", "3"):
        assert re.search(rf"\s{value}\s+[AB]\s", narrow)


def test_intervals_stand_beside_evaluated_scores(tmp_path):
    folder = make_run(tmp_path / "one", fd=2.0)
    evaluate(folder, "e", 2.0, 10)
    assert "2 [1.9, 2.1]" in text(Comparison([read_run(folder)]))


def test_names_of_two_runs_never_agree(tmp_path):
    for study in ("a", "b"):
        make_run(tmp_path / study / "same")
    assert Comparison([read_run(folder) for folder in find_runs(tmp_path)]).labels == ["a/same", "b/same"]
