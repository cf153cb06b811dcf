import json
import subprocess
import sys

import pytest

from aigc.report.comparison import Comparison
from aigc.runs.catalogue import ENTRIES, Entry, described, entry_of, higher_is_better, measures, recorded, register
from aigc.runs.protocol import differences, facts
from aigc.runs.reading import read_runs
from tests.report.made import PROTOCOL, make_run


@pytest.mark.parametrize(
    ("name", "entry"),
    [("fd_classifier", "fd_*"), ("test/a2b/identity/fd_squeezenet", "fd_*"), ("final/fid", "fid"), ("FID", "fid"),
     ("fd_classifier_over_floor", "fd_*_over_floor"), ("attributes/heldout/colour", "attributes/*"), ("psnr", "psnr"),
     ("b2a/psnr", "psnr"), ("val/iwae", "val/iwae"), ("val/bits_per_word", "val/bits_per_word"),
     ("fd_x/y", None), ("val/own", None), ("top5_acc", None)],
)
def test_a_score_has_the_entry_that_describes_it_best(name, entry):
    found = entry_of(name)
    assert (found and found.name) == entry


def test_an_entry_goes_through_a_record_unchanged():
    entries = recorded(json.loads(json.dumps({"catalogue": described(["a2b/fd_classifier", "psnr", "unknown"])})))
    assert entries == {name: ENTRIES[name] for name in ("fd_*", "psnr")}
    assert described(["psnr"])["psnr"] == {
        "better": "more", "bounds": [0, 100], "unit": "dB", "reads": ["images", "pairs"],
        "facts": ["data_fingerprint", "split", "psnr"]}


@pytest.mark.parametrize("held", [None, 5, {"x": 3}, {"x": {}}, {"x": {"better": "big"}}, {"x": {"better": []}},
                                  {"x": {"better": "less", "reads": ["tea leaves"]}}])
def test_what_is_no_entry_is_left_out(held):
    assert recorded({"catalogue": held}) == {}


def test_two_scores_have_no_name_in_common():
    with pytest.raises(ValueError, match=r"fd_\* is in the catalogue already"):
        register(Entry("fd_*", "more"))
    register(ENTRIES["fd_*"])


def test_runs_compare_by_the_entry_that_they_recorded(tmp_path):
    """Direction and facts of a score that nothing but the records knows, even where its name suggests the opposite."""
    told = {"better": "more", "reads": ["features"], "facts": ["data_fingerprint", "split", "depth"]}
    for name, value, depth in (("a", 1.0, 3), ("b", 2.0, 3), ("c", 9.0, 4)):
        folder = make_run(tmp_path / name, depth=depth)
        summary = json.loads((folder / "summary.json").read_text())
        summary["scores"]["last"]["error_tiny"] = value
        (folder / "summary.json").write_text(json.dumps({**summary, "catalogue": {"error_*": told}}))
    comparison = Comparison(read_runs(tmp_path), "error_tiny")
    column = comparison.columns[0]
    assert column.higher and column.scores[0].entry.name == "error_*" and not higher_is_better("error_tiny")
    assert dict(zip(comparison.labels, column.letters, strict=True)) == {"a": "A", "b": "A", "c": "B"}
    assert [comparison.labels[k] for k in comparison.order()] == ["b", "a", "c"]
    known = {"error_*": Entry("error_*", "more", facts=("depth",))}
    assert facts("error_tiny", {**PROTOCOL, "depth": 3}, known) == {"depth": 3, "data_fingerprint": "digits"}
    assert not differences(facts("fd_tiny", {**PROTOCOL, "depth": 3}, known), facts("fd_tiny", PROTOCOL))


def test_which_scores_say_how_good_pictures_are():
    pictures = ("fd_classifier", "fid", "label_accuracy", "psnr", "val_accuracy")
    others = ("val/elbo", "val/loss", "a2b/cycle_l1", "lr")
    assert all(map(measures, pictures)) and not any(map(measures, others))


def test_what_reads_scores_does_without_torch():
    readers = "aigc.runs.card, aigc.report.table, aigc.multirun.search.objectives"
    code = f"import sys, {readers}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
