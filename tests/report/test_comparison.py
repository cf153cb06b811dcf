import json
import re

import pytest

from aigc.errors import UserError
from aigc.report.comparison import SILENT, Comparison, differing, facts, own_settings, remarks, written
from aigc.report.page import content
from aigc.report.table import text
from aigc.runs.entry import Run
from aigc.runs.protocol import why_missing
from aigc.runs.reading import find_runs, read_run, read_runs

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
    assert "1 of 4 runs has no fd_classifier" in below
    narrow = text(comparison, 100)
    assert max(map(len, narrow.splitlines()[2:10])) <= 100
    for value in ("1", "2", "3"):
        assert re.search(rf"\s{value}\s+[AB]\s", narrow)


def test_a_narrow_terminal_keeps_names_and_spares_columns(tmp_path):
    names = [f"2026-11-21_04-{k:02d}-24_diffusion_mnist" for k in range(3)]
    for k, name in enumerate(names):
        make_run(tmp_path / name, fd=3.0 - k, rate=k, overrides=(f"model.rate={k}",))
    comparison = Comparison(read_runs(tmp_path))
    wide, narrow = text(comparison), text(comparison, 80)
    assert all(name in wide for name in names) and "model.rate=1" in wide
    lines = narrow.splitlines()[2:6]
    assert max(map(len, lines)) <= 80 and not {"settings", "parameters", "images/s"} & {*lines[0].split()}
    assert [line.split()[0] for line in lines[1:]] == [f"…{k:02d}-24_diffusion_mnist" for k in (2, 1, 0)]
    assert [line.split()[-3:] for line in lines[1:]] == [[fd, "1.0", "12,800"] for fd in ("1", "2", "3")]


def test_which_way_is_better_is_what_the_runs_say_that_go_by_it(tmp_path):
    folders = [make_run(tmp_path / str(k), fd=float(k)) for k in range(3)]
    for folder in folders:
        with (folder / ".hydra" / "config.yaml").open("a") as file:
            file.write("metrics: {monitor: fd_classifier, mode: max}\n")
    comparison = Comparison([read_run(folder) for folder in folders])
    assert comparison.columns[0].higher and comparison.order() == [2, 1, 0]
    assert "fd_classifier: more is better" in text(comparison)


def test_scores_that_are_no_numbers_come_last(tmp_path):
    values = (2.0, float("nan"), 1.0, float("inf"), 3.0, float("nan"), 0.5)
    runs = [read_run(make_run(tmp_path / str(k), fd=value)) for k, value in enumerate(values)]
    assert Comparison(runs).order()[:4] == [6, 2, 0, 4]


def test_runs_as_they_stood_at_equal_images_or_minutes(tmp_path):
    """Scores at 6,400 and 12,800 images (30 and 60 s); the short run has 3,200 and 6,400."""
    long = make_run(tmp_path / "long", fd=2.0)
    make_run(tmp_path / "short", fd=3.0, lines=10)
    evaluate(long, "later", 1.0, 10)
    runs = read_runs(tmp_path)

    def stood(*at):
        comparison = Comparison(runs, at=at)
        told = [facts(run) for run in comparison.runs]
        return [(score.value if score else None, fact["images"], fact["minutes"])
                for score, fact in zip(comparison.columns[0].scores, told, strict=True)]

    assert stood("images", 6400) == [(4.0, 6400, 0.5), (3.0, 6400, 0.5)]
    assert stood("images", 6350) == stood("images", 6400)               # a step more: a budget ends in one
    assert stood("seconds", 45) == [(4.0, 6400, 0.5), (None, 6400, 0.5)]        # the short one never got so far
    assert stood("images", 12800) == [(2.0, 12800, 1.0), (None, 6400, 0.5)]
    comparison = Comparison(runs, at=("seconds", 45))
    assert [sorted(run.samples["samples"]) for run in comparison.runs] == [[0, 6400], [0, 3200, 6400]]
    assert comparison.columns[0].letters == ["A", ""]
    assert text(comparison).startswith(f"2 runs in {tmp_path} at 0.75 minutes\n")
    data = content(comparison, grids=10, thumbnail=50, points=1000, shown=2)
    assert data["title"].endswith(" at 0.75 minutes") and data["scores"]["fd_classifier"]["values"][1] is None


def test_scores_of_different_checkpoints_are_said(tmp_path):
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", num_samples=500)
    evaluate(one, "a", 1.5, 10)
    assert Comparison(read_runs(tmp_path)).columns[0].warnings[1:] == []
    evaluate(two, "a", 3.0, 10, checkpoint="last")          # measured like the other one, so it stands for the run
    comparison = Comparison(read_runs(tmp_path))
    assert [score.value for score in comparison.columns[0].scores] == [1.5, 3.0]
    assert comparison.columns[0].warnings == [
        "fd_classifier: the runs' scores are not of the same checkpoint: best of 1, last of 1"]


def test_a_run_whose_files_come_and_go_is_read(tmp_path):
    folder = make_run(tmp_path / "a", status="running")
    (folder / "summary.tmp").symlink_to(folder / "gone")
    assert written(read_run(folder)) > 0


def test_runs_of_other_programs_compare_by_what_looks_like_a_score_and_say_what_is_not_known(tmp_path):
    def other(name, data, **summary):
        line = {"step": 5, "seconds": 3.0, "epoch": 5, "lr": 0.1, "images_per_second": 9.0, "loss": 1.0, "psnr": 20.0}
        return Run(tmp_path / name, name, source="wandb", data=data, history=[line], summary=summary)

    runs = [other("a", "cifar", seconds="12 s", images=True), other("b", "mnist"), other("c", "mnist")]
    comparison = Comparison(runs)
    assert {column.name for column in comparison.columns} == {"psnr", "loss"} and comparison.columns[0].name == "psnr"
    assert facts(runs[0])["minutes"] == pytest.approx(0.05) and facts(runs[0])["images"] is None
    assert comparison.columns[0].letters == ["B", "A", "A"]
    assert comparison.columns[0].warnings == [
        "psnr: A and B were not measured alike, they differ in data (mnist and cifar)",
        "psnr: how A was measured is not stated",
    ]


def test_intervals_stand_beside_evaluated_scores(tmp_path):
    folder = make_run(tmp_path / "one", fd=2.0)
    evaluate(folder, "e", 2.0, 10)
    assert "2 [1.9, 2.1]" in text(Comparison([read_run(folder)]))


def test_names_of_two_runs_never_agree(tmp_path):
    for study in ("a", "b"):
        make_run(tmp_path / study / "same")
    assert Comparison([read_run(folder) for folder in find_runs(tmp_path)]).labels == ["a/same", "b/same"]


def test_what_the_records_note_and_lack_is_said_once_for_all(tmp_path):
    folders = [make_run(tmp_path / name, fd=fd) for name, fd in (("one", 1.0), ("two", 2.0), ("three", 3.0))]
    for k, folder in enumerate(folders):
        summary = json.loads((folder / "summary.json").read_text())
        summary["scores_notes"] = ["few images"]
        if k:
            del summary["scores"]["last"]["label_accuracy"]
            summary["scores_missing"] = {"label_accuracy": "made without labels", "is_classifier": "never wanted here"}
        (folder / "summary.json").write_text(json.dumps(summary))
    comparison = Comparison(read_runs(tmp_path))
    lack = "three, two: no label_accuracy: made without labels"
    assert remarks(comparison, comparison.columns) == ["all runs: few images", lack]
    assert "note: all runs: few images" in text(comparison) and "label_accuracy" not in text(comparison)
    assert f"note: {lack}" in text(Comparison(read_runs(tmp_path), "label_accuracy"))
    assert content(comparison, grids=0, thumbnail=8, points=9, shown=1)["warnings"] == ["all runs: few images", lack]


@pytest.mark.parametrize(("name", "reason"), [
    ("psnr", "a"), ("a2b/psnr", "a"), ("test/b2a/psnr", "b"), ("test/a2b/fd_x", None), ("a2b/floor", "c"),
    ("b2a/floor", None), ("final/fd_x", "d"), ("a2b/identity/psnr", "a"),
])
def test_the_reason_of_a_missing_score_is_its_own_or_that_of_its_kind(name, reason):
    assert why_missing(name, {"psnr": "a", "test/psnr": "b", "a2b/floor": "c", "final/fd_x": "d"}) == reason


def test_minutes_of_the_runs_that_a_run_stands_on_count_at_equal_minutes(tmp_path):
    alone, staged = make_run(tmp_path / "alone"), make_run(tmp_path / "staged", fd=0.5)       # a minute each
    summary = json.loads((staged / "summary.json").read_text())
    summary["stages"] = {"tokenizer": {"family": "VQGAN", "images": 640, "seconds": 45.0}}
    (staged / "summary.json").write_text(json.dumps(summary))
    evaluate(staged, "own", 0.4, 1.0, seconds=60.0)
    runs = [read_run(alone), read_run(staged)]
    assert runs[1].stages == {"tokenizer": 45.0} and runs[1].evaluations[0]["target"]["seconds"] == 105.0
    assert [facts(run)["minutes"] for run in runs] == [1.0, 1.75]
    assert [facts(run)["images_per_second"] for run in runs] == [213.3, 213.3]
    early = Comparison(runs, "fd_classifier", ("seconds", 60.0))
    values = {run.name: score and score.value for run, score in zip(runs, early.columns[0].scores, strict=True)}
    assert values == {"alone": 1.0, "staged": None}                        # 15 seconds of its own: no score yet
    late = Comparison(runs, "fd_classifier", ("seconds", 76.0)).columns[0].scores[1]
    assert late is not None and late.value == 1.0                          # the one in its middle
    assert "staged: 0.8 of its minutes are its tokenizer's" in remarks(early, early.columns)
