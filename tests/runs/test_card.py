"""The model card: what it says of a run, honestly, whatever became of it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from aigc.config.schema import SCHEMAS
from aigc.runs import card
from aigc.runs.markdown import number
from aigc.runs.summary import read_summary, write_summary
from aigc.training.callbacks.record import Record
from aigc.training.fit import fit
from tests.conftest import TINY, compose_train, environment

QUICK = ["metrics=losses", "metrics.validation_images=50", "metrics.monitor=val/elbo", "metrics.mode=max",
         "callbacks.samples.n=4", "study=cards"]


def trained(folder: Path, *more: str, resumed: bool = False) -> str:
    """The card of a short run of digits by label."""
    cfg = compose_train(*TINY["vae"], *QUICK, "condition=label", *more)
    if not resumed:
        (folder / ".hydra").mkdir(parents=True)
        OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
        typed = OmegaConf.create(["model=vae", "data.text='a, b'", *more])
        OmegaConf.save(typed, folder / ".hydra" / "overrides.yaml")
    fit(cfg, folder, resumed=resumed)
    return (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "2026_vae_digits"
    trained(folder, "budget.images=640", "budget.minutes=null")
    return folder


def test_a_card_says_what_how_and_with_which_data(run):
    text, summary = (run / "README.md").read_text(), read_summary(run)
    assert f"`vae` (VAE) with {summary['parameters']:,} parameters, trained on `digits`, conditioned on class" in text
    (typed,) = (line for line in text.splitlines() if line.startswith("python -m aigc.train model="))
    assert shlex.split(typed)[3:] == ["model=vae", "data.text=a, b", "budget.images=640", "budget.minutes=null"]
    for line in ("| budget | 640 images |", "| images seen | 640 |", "| seed | 1 |", "| images a step | 16 |",
                 f"| machine | {summary['machine']} |", f"signature `{summary['signature']}`",
                 f"| minutes of training | {summary['seconds'] / 60:.2f} |"):
        assert line in text
    assert all(f"{name} {version}" in text for name, version in summary["versions"].items())
    assert f"| `val/elbo` | {number(summary['scores']['last']['val/elbo'])} |" in text
    assert "Training data `digits`: CC BY 4.0." in text
    assert "**This run" not in text


def test_its_pictures_are_there_and_its_front_matter_is_the_hubs(run):
    hub = ModelCard((run / "README.md").read_text())
    links = [part.split(")")[0] for part in hub.text.split("](")[1:]]
    assert [Path(link).name for link in links] == ["000000640.png", "000000640_reconstructions.png"]
    assert all((run / link).is_file() for link in links)
    assert hub.data.pipeline_tag == "unconditional-image-generation" and hub.data.tags[:2] == ["vae", "digits"]
    scores = {result.metric_type: result.metric_value for result in hub.data.eval_results}
    expected = read_summary(run)["scores"]["last"]
    assert scores == {name: pytest.approx(value, abs=1e-6) for name, value in expected.items()}


def test_its_commands_are_the_programs_own(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    card.write(run)
    block = (run / "README.md").read_text().split("## Use")[1].split("```")[1]
    assert block.splitlines()[1:] == [
        f"run={run.name}    # this folder",
        'python -m aigc.generate run="$run" n=64 out=images seed=0 label=0',
        'python -m aigc.evaluate run="$run"',
        'python -m aigc.train resume="$run" budget.images=1280',
    ]
    for line in block.splitlines()[2:]:
        verb, *words = line.removeprefix("python -m aigc.").split()
        names = {word.split("=")[0].split(".")[0] for word in words}
        assert names <= set(SCHEMAS[verb].__dataclass_fields__), line


def test_evaluations_are_added_with_interval_floor_and_protocol(run):
    before = card.write(run).read_text()
    (run / "evaluations").mkdir()
    protocol = {"network": "classifier", "num_samples": 2000, "num_reals": 1455, "data": "digits", "split": "train"}
    record = {
        "made": "2026-11-21T08:00:00", "target": {"checkpoint": "best", "images": 640},
        "scores": {"fd_classifier": {"value": 1.5, "low": 1.25, "high": 1.75, "floor": 0.5},
                   "is_classifier": {"value": 9}},
        "protocol": {"fd_classifier": protocol, "is_classifier": protocol},
        "interval": {"method": "bootstrap", "level": 0.95},
        "sampling": {"evaluations": 1, "seconds_per_image": 0.0005},
        "scores_notes": ["too few"],
        "scores_missing": {"precision_x": "why", "recall_x": "why", "floor": "none held out"},
    }
    (run / "evaluations" / "a.json").write_text(json.dumps(record))
    text = card.write(run).read_text()
    added = text.split("## Evaluation of best after 640 images")[1].split("## Use")[0]
    how = "classifier, 2,000 images, against 1,455 of digits train"
    assert f"| `fd_classifier` | 1.5 | 1.25 to 1.75 | 0.5 | {how} |" in added
    assert "| `is_classifier` | 9 |  |  |" in added
    assert "Intervals: bootstrap, level 0.95. Sampling: 1 network evaluation and 0.0005 seconds an image." in added
    assert added.rstrip().endswith("- too few\n- No `precision_x`, `recall_x`: why\n- No `floor`: none held out")
    assert before.split("## Scores")[0] == text.split("## Scores")[0]
    (run / "evaluations" / "b.json").write_text("{broken")
    assert card.write(run).read_text() == text                   # and costs the card nothing


def test_a_translation_stands_beside_doing_nothing(tmp_path):
    last = {"a2b/fd_x": 53761.0, "a2b/identity/fd_x": 35180.0, "a2b/cycle_l1": 0.5}
    write_summary(tmp_path, status="finished", translates=True, scores={"last": last})
    text = card.write(tmp_path).read_text()
    assert "| `a2b/fd_x` | 53,761 | 35,180 |" in text and "| `a2b/cycle_l1` | 0.5 |  |" in text
    assert 'aigc.edit task=translate run="$run" images=photos' in text and "pipeline_tag: image-to-image" in text


def test_notes_stand_below_the_scores_and_alone_where_there_are_none(tmp_path):
    said = {"scores_notes": ["singular covariance"], "scores_missing": {"is_x": "the network names no classes"}}
    write_summary(tmp_path, status="finished", scores={"last": {"fd_x": 2.0}}, **said)
    end = "- singular covariance\n- No `is_x`: the network names no classes\n\n## Use"
    assert f"Measured with: no protocol recorded.\n\n{end}" in card.write(tmp_path).read_text()
    write_summary(tmp_path, scores={"last": {}})
    assert f"## Scores\n\n{end}" in card.write(tmp_path).read_text()
    write_summary(tmp_path, scores_notes="odd", scores_missing=["odd"])
    assert "## Scores" not in card.write(tmp_path).read_text()


def test_a_second_network_is_named_with_its_protocol(tmp_path):
    second = {"scores": ["fd_y"], "metric": "fd_y", "network": "y", "num_samples": 1000, "floor": 3.5}
    protocol = {"metric": "fd_x", "network": "x", "num_samples": 2000, "data": "digits", "split": "train"}
    write_summary(tmp_path, status="finished", scores={"last": {"fd_x": 1.0}}, protocol={**protocol, "second": second})
    text = card.write(tmp_path).read_text()
    assert "Measured with: x, 2,000 images, digits train. `fd_y` and its like: y, 1,000 images, digits train" in text
    assert "the floor: 3.5." in text


def test_a_resumed_run_says_so(tmp_path):
    trained(tmp_path, "budget.images=320", "budget.minutes=null")
    text = trained(tmp_path, "budget.images=480", "budget.minutes=null", resumed=True)
    assert "| budget | 480 images |" in text and "| images seen | 480 |" in text
    assert "budget.images=480 budget.minutes=null  # after 320 images\n" in text
    assert [again["images"] for again in read_summary(tmp_path)["resumes"]] == [320]


def test_a_failed_run_says_why_and_boasts_no_scores(tmp_path, monkeypatch):
    def out_of_memory(self, *args, **kwargs):
        raise MemoryError("no memory left")

    monkeypatch.setattr(Record, "on_train_batch_end", out_of_memory)
    with pytest.raises(MemoryError):
        trained(tmp_path, "budget.images=320")
    text = (tmp_path / "README.md").read_text()
    assert "**This run failed (no memory left).**" in text and "model-index" not in text
    assert "budget.images=640" not in text                       # what it has not spent need not be more


def test_a_stopped_run_and_one_of_which_nothing_is_known(tmp_path):
    write_summary(tmp_path, status="stopped", reason="SIGTERM", images=64, seconds=3.0)
    assert "**This run was stopped before its budget was spent (SIGTERM).**" in card.write(tmp_path).read_text()
    write_summary(tmp_path, scores=None)
    assert "## Scores" not in card.write(tmp_path).read_text()
    (tmp_path / "summary.json").write_text("{half")
    text = card.write(tmp_path).read_text()
    assert "**This run left no record of how it ended.**" in text and "licence not known here" in text


def test_what_a_person_adds_below_stays_and_a_readme_of_their_own_is_left_alone(tmp_path):
    write_summary(tmp_path, status="stopped", reason="SIGTERM")
    with card.write(tmp_path).open("a") as file:
        file.write("\nMy notes.\n")
    write_summary(tmp_path, status="finished", reason=None)
    text = card.write(tmp_path).read_text()
    assert "**This run" not in text and text.endswith(f"{card.MARK}\n\nMy notes.\n")
    assert card.write(tmp_path).read_text() == text
    (tmp_path / "README.md").write_text("# My project\n")
    assert card.write(tmp_path).read_text() == "# My project\n"
    (tmp_path / "empty").mkdir()
    assert not card.write(tmp_path / "empty").exists()           # no run, no card


def test_writing_a_card_imports_no_torch(run):
    code = f"import sys; from aigc.runs import card; card.write({str(run)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)
