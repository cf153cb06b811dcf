"""Studies: what they write comes from their runs alone, and says what those runs say."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aigc.report import study
from aigc.runs.reading import read_run

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def put(part: str, number: int, recipe: str, fd: float, **facts) -> Path:
    """A finished run of `runs/<part>`, with an evaluation whose distance is `fd`."""
    folder = Path("runs") / part / f"{number}_{recipe}_data"
    for name in (".hydra", "samples", "evaluations"):
        (folder / name).mkdir(parents=True)
    data = facts.pop("data", "mnist")
    summary = {
        "status": "finished", "study": part.split("/")[0], "recipe": recipe, "family": recipe.upper(), "seed": number,
        "images": 1000 * (number + 1), "seconds": 300.0, "images_per_second": 100.0, "parameters": 1234,
        "peak_memory_mb": 500.0, "machine": "a machine, 2 cores", "precision": "bf16-mixed",
        "versions": {"torch": "2.14.1"}, "data": {"name": data}, "scores": facts.pop("scores", {}),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(facts.pop("config", {})))
    lines = [{"images": k, "seconds": 60.0 * k, "fd_classifier": fd * 10 / k} for k in (1, 2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.fromarray(np.full((8, 8), 40 * number, np.uint8)).save(folder / "samples" / "000001000.png")
    protocol = {"network": "classifier", "network_sha256": "ab" * 32, "num_samples": 10000, "num_reals": 55000,
                "resizer": "none", "data": data, "data_fingerprint": data, "split": "train", **facts}
    record = {
        "made": "2026-11-21T08:00:00", "target": {"checkpoint": "last"},
        "scores": {"fd_classifier": {"value": fd, "low": fd - 0.25, "high": fd + 0.25, "floor": 0.125},
                   "label_accuracy": {"value": 0.75}},
        "protocol": {"fd_classifier": protocol, "label_accuracy": protocol},
        "sampling": {"evaluations": 15, "seconds_per_image": 0.002},
    }
    (folder / "evaluations" / "study.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """The studies' scripts, in a folder of their own."""
    monkeypatch.chdir(tmp_path)

    def load(name: str):
        shutil.copytree(EXPERIMENTS / name, tmp_path / "experiments" / name)
        spec = importlib.util.spec_from_file_location(name, tmp_path / "experiments" / name / "study.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def cells(script) -> list[list[str]]:
    """The rows of the tables in the study's README, heads and rules left out."""
    lines = (script.HERE / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [row for row in rows if set(row[0]) != {"-"}]


def test_spreads_and_what_is_shown_of_them():
    assert study.spread([1.0, None, 4.0]) == (2.5, 1.0, 4.0) and study.spread([None]) is None
    assert study.shown([1.0, 4.0]) == "2.5 (1 to 4)" and study.shown([2.0, 2.0]) == "2" and study.shown([]) == ""


def test_scores_of_another_protocol_are_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folders = [put("some/part", k, "gan", 1.0 + k) for k in range(3)]
    odd = put("some/part", 3, "gan", 9.0, num_samples=100)
    bare = put("some/part", 4, "gan", 9.0)
    (bare / "evaluations" / "study.json").unlink()
    runs = study.finished("some")
    assert len(runs) == 5
    found = study.measured(runs, "fd_classifier")
    assert {folder.name: score.value for folder, score in found.items()} == {
        folder.name: 1.0 + k for k, folder in enumerate(folders)}
    said = capsys.readouterr().err
    assert f"{odd.name} was measured differently" in said and f"{bare.name} has not been evaluated" in said


def test_generators_are_compared_by_the_rows_that_their_runs_left(scripts):
    script = scripts("are_generators_equal")
    script.RESULTS.unlink(missing_ok=True)
    shutil.rmtree(script.SAMPLES, ignore_errors=True)
    with pytest.raises(SystemExit, match="holds no run: start without --report"):
        script.report()
    stage = {"stages": {"tokenizer": {"seconds": 120.0}}}
    for number in range(3):
        for family, fd, further in (("gan", 2.0 + number, {}), ("prior", 1.0, stage)):
            folder = put("are_generators_equal/mnist", number, family, fd)
            summary = json.loads((folder / "summary.json").read_text()) | further
            (folder / "summary.json").write_text(json.dumps(summary))
            script.keep("mnist", family, number, read_run(folder))
            shutil.rmtree(folder)                                          # a row needs its run no longer
    script.keep("cifar10-jpeg", "gan", 0, read_run(put("are_generators_equal/cifar10-jpeg", 0, "gan", 50.0)))
    script.report()
    rows = cells(script)
    (head, prior, gan), photo = rows[:3], rows[5:]
    assert dict(zip(head, gan, strict=True)) == {
        "family": "gan", "runs": "3", "minutes": "5.0", "of them its stage's": "", "fd_classifier": "3 (2 to 4)",
        "interval of one run ±": "0.25", "labels right": "0.750", "images seen": "2,000 (1,000 to 3,000)",
        "images/s": "100", "evaluations an image": "15", "ms an image": "2", "parameters": "1,234",
        "memory MiB": "500",
    }
    assert prior[:4] == ["prior", "3", "7.0", "2.0"]                       # better ones first; a stage's minutes count
    assert rows[3:5] == [["prior", "gan"], [f"![{name}](samples/mnist_{name}.png)" for name in ("prior", "gan")]]
    assert (photo[1][0], photo[1][4]) == ("gan", "50")                     # a table a data set
    text = (script.HERE / "README.md").read_text()
    assert "have fd_classifier 0.125" in text and "Measured with: classifier (abababab), 10,000 images" in text
    assert sorted(path.name for path in script.SAMPLES.iterdir()) == [
        "cifar10-jpeg_gan.png", "mnist_gan.png", "mnist_prior.png"]
    curve = script.read()[3]["curve"]                                      # the prior's: after its tokenizer's minutes
    assert curve == [[3.0, 10.0], [4.0, 5.0], [6.0, 2.5]]


def test_a_run_of_a_study_is_trained_once_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, called = put("some", 0, "gan", 1.0), []
    monkeypatch.setattr(study, "_python", lambda *words: called.append(words))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    assert study.run("some", folder, "model=gan").status == "finished" and not called
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "stopped"}))
    with pytest.raises(SystemExit, match="is stopped: the same command goes on with it"):
        study.run("some", folder, "model=gan")
    assert called == [("aigc.train", f"resume={folder}")]


def test_losses_are_ranked_by_their_mean_with_best_median_and_worst(scripts):
    script = scripts("gan_losses")
    for loss, values in {"hinge": (4.0, 1.0, 2.5), "wasserstein": (2.0, 2.0, 2.0)}.items():
        for number, value in enumerate(values):
            put(f"gan_losses/{loss}", number, "gan", value, config={"model": {"loss": loss}})
    script.report()
    assert [row[:6] for row in cells(script)[1:]] == [["wasserstein", "3", "2", "2", "2", "2"],
                                                      ["hinge", "3", "2.5", "1", "2.5", "4"]]
    assert (script.HERE / "curves.png").is_file() and (script.HERE / "samples.png").is_file()


def test_a_search_is_judged_on_seeds_that_it_has_not_seen(scripts):
    script = scripts("hparam_search")
    model = {"generator_rate": 5e-4, "discriminator_rate": 1e-3, "r1": 1.0, "latent": 64,
             "ema_halflife_images": 10000, "decay_from": 0.5}
    put("hparam_search/search", 0, "gan", 0.5)                   # of the search itself: counts for nothing
    config = {"model": model, "batch_size": 64}
    for number in range(2):
        put("hparam_search/recipe", number, "gan", 4.0, config=config, scores={"best": 3.5})
        put("hparam_search/best", number, "gan", 3.0 - number, config={**config, "model": {**model, "latent": 32}},
            scores={"best": 1.0 + number})
    jobs = [{"number": 0, "score": None}, {"number": 1, "score": 0.75}, {"number": 2, "score": 0.9}]
    (Path("runs") / "hparam_search" / "search" / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    script.report()
    rows = {row[0]: row[1:] for row in cells(script)}
    assert rows["the recipe"][:3] == ["2", "4", "3.5"]
    assert rows["best of 3 trials"][:3] == ["2", "2.5 (2 to 3)", "1.5 (1 to 2)"]
    assert rows["`model.latent`"] == ["64", "32"] and rows["`model.generator_rate`"] == ["0.0005", "0.0005"]
    assert "number 1, had 0.75 with its own seed" in (script.HERE / "README.md").read_text()


@pytest.mark.parametrize("name", ["gan_losses", "hparam_search"])
def test_without_runs_nothing_is_written(scripts, name):
    script = scripts(name)
    before = (script.HERE / "README.md").read_bytes()
    with pytest.raises(SystemExit, match=f"no finished run in runs/{name}: start without --report"):
        script.report()
    assert (script.HERE / "README.md").read_bytes() == before
