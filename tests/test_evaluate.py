"""`aigc.evaluate`: the numbers of training again, in one pass, with records that say how; folders; and bad input."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from aigc import evaluate as command
from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.data.digits import Digits
from aigc.errors import RunError, UserError
from aigc.evaluate import evaluate, spelled_out
from aigc.images.grids import save_grid
from aigc.models.gan import GAN
from aigc.runs.protocol import differences, facts
from aigc.scoring.evaluations import reserve
from aigc.scoring.job import _translations
from aigc.scoring.networks import efficientnet
from aigc.scoring.networks.classifier import classifier_of
from aigc.scoring.networks.features import real_key
from aigc.scoring.panel import How, Panel
from aigc.scoring.samples import Found
from aigc.scoring.sources import DataSource, FolderSource
from aigc.scoring.target import Target
from aigc.scoring.translation import score_translations
from aigc.training.fit import fit
from tests.training.callbacks.conftest import Inverted, TwoSides
from tests.training.callbacks.test_second_network import stand_in
from tests.training.callbacks.test_translation_scores import scored

from . import forked
from .conftest import TINY, compose_train, environment

N = 120
HOW = How(kd_subsets=2, kd_subset_size=50, neighbours=3, memorisation=False, resamples=20, num_reals=None,
          batch_size=7, seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, scored on N samples at its end."""
    folder = tmp_path_factory.mktemp("gan")
    quick = ["~callbacks.samples", "condition=label", "budget.images=4800", f"metrics.num_samples={N}",
             "metrics.every_images=4800", "metrics.second=null"]
    fit(compose_train(*TINY["gan"], *quick), folder)
    plain = compose_train(*TINY["gan"], *quick)
    (folder / ".hydra").mkdir()
    OmegaConf.save(plain, folder / ".hydra" / "config.yaml")
    return folder


def evaluated(**options) -> dict:
    """The record; without a second network unless it is asked for."""
    register_schemas()
    given = {"second": "null", **options}
    words = [spelled_out(f"{name.replace('__', '.')}={value}") for name, value in given.items()]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        evaluate(compose("evaluate", overrides=words))
    return json.loads(Path(options["out"]).read_text()) if "out" in options else {}


def write(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k:03}.png")
    return folder


def digits(split: str, n: int) -> np.ndarray:
    data = Digits(batch_size=16)
    data.setup()
    return data.images(split, limit=n)[:, 0].numpy()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Digits of the training set, and others that are a little darker."""
    return write(tmp_path / "first", digits("train", 130)), write(tmp_path / "second", digits("test", 110) // 2)


def test_scores_are_those_of_training_and_the_record_says_how(run, tmp_path, capsys):
    record = evaluated(run=run, checkpoint="last", num_samples=N, out=tmp_path / "a.json")
    summary = json.loads((run / "summary.json").read_text())
    found, protocol = record["scores"], record["protocol"]["fd_classifier"]
    for name in ("fd_classifier", "kd_classifier", "is_classifier", "label_accuracy"):
        assert found[name]["value"] == pytest.approx(summary["scores"]["last"][name], rel=1e-4, abs=1e-7), name
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert found["fd_classifier"]["floor"] == pytest.approx(summary["protocol"]["floor"], rel=1e-4)
    own = ("precision", "recall", "density", "coverage", "memorised")
    assert set(found) == {"fd_classifier", "kd_classifier", "is_classifier", "label_accuracy",
                          *(f"{name}_classifier" for name in own)}
    for key in ("network", "network_sha256", "resizer", "num_reals", "data", "data_fingerprint", "split"):
        assert protocol[key] == summary["protocol"][key], key
    assert (protocol["metric"], protocol["num_samples"]) == ("fd_classifier", N)
    assert record["sampling"]["evaluations"] == 1 and record["sampling"]["seconds_per_image"] > 0
    target = record["target"]
    assert (target["kind"], target["checkpoint"], target["images"]) == ("checkpoint", "last", 4800)
    assert len(target["sha256"]) == 64 and record["interval"]["resamples"] == 100 and "torch" in record["versions"]
    printed = capsys.readouterr().out
    assert "95% interval" in printed and "label_accuracy" in printed and "a.json" in printed
    picture = Image.open(tmp_path / "a_neighbours_classifier.png")
    assert picture.size[0] > 5 * 50 and not list(tmp_path.glob(".*"))


def test_a_second_network_sees_what_it_saw_in_training(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    folder = tmp_path / "run"
    cfg = compose_train(*TINY["gan"], "~callbacks.samples", "condition=label", "budget.images=160",
                        f"metrics.num_samples={N}", "metrics.second_images=110", "metrics.kd_subset_size=50")
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    summary = fit(cfg, folder)
    quick = {"run": folder, "checkpoint": "last", "num_samples": N, "resamples": 5, "kd_subset_size": 50}
    record = evaluated(**quick, second="auto", out=tmp_path / "a.json")
    for name in ("fd_efficientnet", "kd_efficientnet", "is_efficientnet", "fd_classifier"):
        score = record["scores"][name]
        assert score["value"] == pytest.approx(summary["scores"]["last"][name], rel=1e-4, abs=1e-7), name
        assert score["low"] < score["value"] < score["high"]
    own, trained = record["protocol"]["fd_efficientnet"], summary["protocol"]
    assert not differences(facts("fd_efficientnet", own), facts("fd_efficientnet", trained))
    assert (own["num_samples"], own["num_reals"]) == (110, 110)
    assert record["scores"]["fd_efficientnet"]["floor"] == pytest.approx(trained["second"]["floor"], rel=1e-4)
    assert "precision_efficientnet" in record["scores"] and "memorised_efficientnet" not in record["scores"]
    for options in ({"second": "null"}, {"metrics": "classifier", "second": "auto"}):
        record = evaluated(**quick, **options, overwrite="true", out=tmp_path / "a.json")
        assert not any("efficientnet" in name for name in record["scores"])
    with pytest.raises(UserError, match=r"second=inception goes beside the run's own network: name all of them in me"):
        evaluated(**quick, metrics="classifier", second="inception")
    with pytest.raises(UserError, match=r"^second=classifier is the first network already"):
        evaluated(**quick, second="classifier")
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)
    record = evaluated(**quick, second="auto", overwrite="true", out=tmp_path / "a.json")
    assert "pip install 'aigc[scores]'" in record["scores_missing"]["fd_efficientnet"]


def test_pictures_have_a_second_network_too(folders, tmp_path, monkeypatch):
    stand_in(monkeypatch)
    quick = {"run": folders[0], "against": folders[1], "resamples": 0, "kd_subset_size": 50}
    record = evaluated(**quick, second="auto", second_images=60, out=tmp_path / "a.json")
    protocol = record["protocol"]["fd_efficientnet"]
    assert (protocol["num_samples"], protocol["num_reals"], protocol["searched"]) == (60, 60, 0)
    assert record["protocol"]["fd_classifier"]["num_samples"] == 130


def test_the_record_goes_into_the_run_and_options_reach_the_sampler(run, monkeypatch):
    asked = []
    monkeypatch.setattr(GAN, "sample", lambda self, n, **options: (asked.append(options), torch.zeros(n, 1, 8, 8))[1])
    evaluated(run=run / "checkpoints" / "best.ckpt", num_samples=4, truncation=0.5, memorisation="false")
    written = list((run / "evaluations").iterdir())
    assert [path.suffix for path in written] == [".json"]
    assert asked[0]["truncation"] == 0.5
    record = json.loads(written[0].read_text())
    assert record["sampling"]["options"] == {"truncation": 0.5} and record["target"]["checkpoint"] == "best"
    assert record["scores_missing"] == {
        "memorised_classifier": "memorisation=false leaves it out",
        "is_classifier": "it needs 100 images, and there are 4",
        **dict.fromkeys([f"{name}_classifier" for name in ("precision", "recall", "density", "coverage")],
                        "it needs more than 5 images on either side, and there are 4")}


def test_several_networks_look_at_every_sample_once(run, tmp_path, monkeypatch):
    made, original = [], GAN.sample

    def second(name, data, device, **options):
        network = classifier_of(data, device)
        network.name = name
        return network

    def counted(self, n, **options):
        made.append(n)
        return original(self, n, **options)

    monkeypatch.setattr("aigc.scoring.target.build_network", second)
    monkeypatch.setattr(GAN, "sample", counted)
    record = evaluated(run=run, metrics="classifier,inception", num_samples=50, batch_size=20, resamples=0,
                       memorisation="false", out=tmp_path / "two.json")
    assert made == [20, 20, 10]
    found = record["scores"]
    assert found["fd_classifier"]["value"] == pytest.approx(found["fd_inception"]["value"], rel=1e-6)
    assert found["fd_classifier"]["low"] is None and record["interval"] is None


@pytest.mark.parametrize("n", [101, 112, 131])
def test_any_number_of_samples_has_intervals(run, tmp_path, n):
    found = evaluated(run=run, num_samples=n, memorisation="false", out=tmp_path / "x.json")["scores"]["is_classifier"]
    assert found["low"] < found["value"] < found["high"] < 20


def test_what_fails_after_scoring_costs_no_scores(run, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("aigc.scoring.job.score_attributes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run=run, num_samples=120, out=tmp_path / "x.json")
    assert "fd_classifier" in json.loads((tmp_path / "x.json").read_text())["scores"]


def test_no_record_replaces_another(folders, tmp_path):
    odd = folders[0].rename(tmp_path / "at_0.5")
    for name in ("at_0.5_evaluation.json", "at_0.5_evaluation_2.json"):
        evaluated(run=odd, against=folders[1], resamples=0, memorisation="false", neighbours=0)
        assert (tmp_path / name).is_file()


def test_names_of_records_are_kept_apart(tmp_path):
    path = tmp_path / "2026.json"
    with reserve(path, numbered=True) as first, reserve(path, numbered=True) as second:    # in the same second
        assert (first.name, second.name) == ("2026.json", "2026_2.json")
        with pytest.raises(UserError, match="another process writes to"), reserve(first):
            pass
    assert not list(tmp_path.iterdir())
    ours = '{"target": {}, "scores": {}, "protocol": {}}'
    path.write_text(ours)
    picture = save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "2026_neighbours_inception.png")
    with reserve(path, numbered=True) as third:
        assert third.name == "2026_2.json"
    with pytest.raises(UserError, match=r"2026\.json exists: .* or give overwrite=true"), reserve(path):
        pass
    with pytest.raises(KeyboardInterrupt), reserve(path, overwrite=True):
        raise KeyboardInterrupt
    assert path.read_text() == ours and picture.exists()
    with reserve(path, overwrite=True) as again:
        new = save_grid(torch.zeros(1, 1, 8, 8), tmp_path / "2026_neighbours_classifier.png")
    assert again == path and new.exists() and not picture.exists()     # it was the old record's
    (tmp_path / "mine.json").write_text('{"scores": [1, 2]}')
    (tmp_path / "new_neighbours_mine.png").write_bytes(b"a picture of the user's")
    for name, sentence in (("mine.json", "is not the record of an evaluation"),
                           ("new.json", "'new_neighbours_mine.png'")):
        with pytest.raises(UserError, match=sentence), reserve(tmp_path / name, overwrite=True):
            pass


def test_grids_are_no_samples(folders, tmp_path, capsys):
    plain = evaluated(run=folders[0], against=folders[1], resamples=0, memorisation="false", neighbours=0,
                      out=tmp_path / "plain.json")
    for folder in folders:
        save_grid(torch.zeros(4, 1, 8, 8), folder / "grid.png")
    capsys.readouterr()
    found = evaluated(run=folders[0], against=folders[1], resamples=0, memorisation="false", neighbours=0,
                      out=tmp_path / "x.json")
    assert found["scores"] == plain["scores"] and found["target"]["images"] == 130
    assert found["target"]["left_out"] == {"grids that aigc drew": ["grid.png"]}
    assert capsys.readouterr().out.count("left out  grids that aigc drew: 1 (grid.png)") == 2
    only = tmp_path / "only"
    save_grid(torch.zeros(4, 1, 8, 8), only / "grid.png")
    with pytest.raises(UserError, match=r"holds only images that are left out \(grids that aigc drew\)"):
        evaluated(run=only, against=folders[1])


def test_large_pictures_come_a_few_at_once(folders, tmp_path, monkeypatch):
    Image.fromarray(np.zeros((1000, 1500), np.uint8)).save(folders[0] / "large.png")
    asked, original = [], FolderSource.batches

    def batches(self, n, batch_size):
        asked.append(batch_size)
        return original(self, n, batch_size)

    monkeypatch.setattr(FolderSource, "batches", batches)
    evaluated(run=folders[0], data="digits", megapixels=3, resamples=0, out=tmp_path / "x.json")
    assert set(asked) == {2}


def test_batch_size_does_not_matter(run, tmp_path):
    one, other = (evaluated(run=run, num_samples=60, batch_size=n, resamples=10, out=tmp_path / f"{n}.json")["scores"]
                  for n in (60, 13))
    for name, score in one.items():
        assert other[name]["value"] == pytest.approx(score["value"], rel=1e-3, abs=1e-5), name


def test_two_folders_need_no_model(folders, tmp_path, capsys):
    first, second = folders
    record = evaluated(run=first, against=second, resamples=10)
    default = tmp_path / "first_evaluation.json"
    record = json.loads(default.read_text())
    assert record["target"]["kind"] == "images" and record["target"]["images"] == 130
    assert record["protocol"]["fd_classifier"]["data"] == "second"
    assert record["protocol"]["fd_classifier"]["num_reals"] == 110
    same = evaluated(run=first, against=first, resamples=0, out=tmp_path / "same.json")["scores"]
    assert same["fd_classifier"]["value"] < 1e-3 * record["scores"]["fd_classifier"]["value"]
    assert same["precision_classifier"]["value"] == same["coverage_classifier"]["value"] == pytest.approx(1)
    assert not [path for path in first.iterdir() if path.suffix != ".png"]


def test_copies_of_training_images_are_memorised(tmp_path):
    copies = write(tmp_path / "copies", digits("train", 150))
    fresh = write(tmp_path / "fresh", digits("test", 150))
    shares = [evaluated(run=folder, data="digits", resamples=0, out=tmp_path / f"{folder.name}.json")["scores"]
              for folder in (copies, fresh)]
    assert shares[0]["memorised_classifier"]["value"] == 1
    assert shares[1]["memorised_classifier"]["value"] < 0.1
    assert shares[1]["memorised_classifier"]["floor"] == 0.01
    twice = write(tmp_path / "twice", np.concatenate([digits("train", 150), digits("train", 9)]))
    record = evaluated(run=copies, against=twice, resamples=0, out=tmp_path / "twice.json")
    assert record["scores"]["memorised_classifier"]["value"] == 1      # however often the reference holds an image
    assert record["protocol"]["memorised_classifier"]["memorised_limit"] > 0.01


def test_a_broken_picture_costs_only_itself(folders, tmp_path, capsys):
    first, second = folders
    whole = (first / "000.png").read_bytes()
    (first / "cut.png").write_bytes(whole[:60])
    (first / "text.png").write_text("no picture")
    with pytest.raises(RunError, match=r"2 pictures .* could not be read: cut.png \(.*; text.png"):
        evaluated(run=first, against=second, resamples=0, out=tmp_path / "x.json")
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["protocol"]["fd_classifier"]["num_samples"] == 130
    assert set(record["target"]["broken"]) == {"cut.png", "text.png"}


def test_pictures_of_many_sizes_and_modes(tmp_path):
    source = tmp_path / "many"
    source.mkdir()
    for k in range(40):
        size = (8 + k % 3, 10)
        Image.fromarray(np.full(size, 6 * k, np.uint8)).convert(("L", "RGB", "RGBA")[k % 3]).save(source / f"{k}.png")
    grey = FolderSource(source, "run", channels=1)
    batches = list(grey.batches(40, 6))
    assert sum(len(batch["image"]) for batch in batches) == 40 and max(len(b["image"]) for b in batches) == 6
    flat = [image for batch in batches for image in batch["image"]]
    assert all(torch.equal(image, again) for image, again in zip(flat, grey.pictures(torch.arange(40)), strict=True))
    assert FolderSource(source, "run").channels == 3
    before = grey.fingerprint
    Image.fromarray(np.zeros((8, 10), np.uint8)).save(source / "39.png")
    assert FolderSource(source, "run").fingerprint != before


def test_translations_score_as_in_training(tmp_path):
    data, model = TwoSides(), Inverted(off=0.25)
    data.setup()
    expected, _ = scored(data, tmp_path, model, final=True, kd_subset_size=50)
    found, network = Found(), classifier_of(data)
    with torch.no_grad():
        score_translations(model, data, [Panel(network, HOW)], found, split="test", limit=None, batch_size=6, seed=0,
                           lpips=None)
    for name, score in found.scores.items():
        if f"test/{name}" in expected:
            assert score.value == pytest.approx(expected[f"test/{name}"], rel=2e-3, abs=1e-6), name
    assert {name.removeprefix("test/") for name in expected if name.startswith("test/")} <= set(found.scores)
    assert found.scores["a2b/fd_classifier"].floor and found.scores["a2b/psnr"].low < found.scores["a2b/psnr"].value
    assert found.protocol["b2a/psnr"]["split"] == "test, a" and "network" not in found.protocol["b2a/psnr"]
    few, how = Found(), replace(HOW, num_reals=5, resamples=0)        # features of five true pairs are not enough
    with torch.no_grad():
        score_translations(model, data, [Panel(network, how)], few, split="test", limit=None, batch_size=6, seed=0,
                           lpips=None)
    assert few.scores["a2b/psnr"].value == found.scores["a2b/psnr"].value and few.scores["a2b/psnr"].low is None
    assert set(found.scores) - set(few.scores) >= {"a2b/similarity_classifier", "b2a/similarity_classifier"}
    assert few.missing["b2a/similarity_classifier"] == "features of 5 of the 20 true pairs are kept"
    names = ("is", "memorised", "precision", "recall", "density", "coverage")
    assert found.missing == {} and set(found.ruled_out) == {f"{d}/{k}_classifier" for d in ("a2b", "b2a")
                                                            for k in names[:2]}
    assert "kernel distance over subsets of 20 images, not 50: one side has no more" in found.notes


def test_translations_of_small_images_say_what_is_missing():
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("evaluate", overrides=["run=x"])
    data, found = TwoSides(counts=(4, 4), size=(8, 10)), Found()
    data.setup()
    with torch.no_grad():
        _translations(cfg, Target(Path("x"), Path("x"), family=Inverted()), data, [Panel(classifier_of(data), HOW)],
                      found, 2, "cpu")
    assert found.missing["ssim"] == "images of 8 x 10 pixels are too small for its window"
    assert found.missing["lpips"].startswith("torch.hub's folder holds no backbone weights")
    apart, loose = TwoSides(counts=(6, 4), pairs=False), Found()
    apart.setup()
    with torch.no_grad():
        _translations(cfg, Target(Path("x"), Path("x"), family=Inverted(one_way=True)), apart,
                      [Panel(classifier_of(apart), HOW)], loose, 2, "cpu")
    assert loose.ruled_out["psnr"] == loose.ruled_out["ssim"] == loose.ruled_out["lpips"] == (
        loose.ruled_out["similarity_classifier"]) == "the images of test are not paired"
    assert loose.missing == {"a2b/floor": "it needs as many training images as samples: 6, and there are 4"}


def test_a_translator_refuses_what_it_cannot_use():
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("evaluate", overrides=["run=x", "against=folder", "sampler=euler", "+options.foo=3"])
    with pytest.raises(UserError, match=r"^against, sampler.name, .*options.foo: a translator is scored on the other"):
        _translations(cfg, Target(Path("x"), Path("x"), family=Inverted()), TwoSides(), [], Found(), 1, "cpu")


def test_real_images_are_looked_at_once_and_again_when_anything_changes(monkeypatch):
    data = Digits(batch_size=16)
    data.setup()
    network = classifier_of(data)
    with torch.no_grad():
        first = Panel(network, HOW)
        first.learn(DataSource(data, "train"))
        first.measure_floor(DataSource(data, "test"), 50)
        again = Panel(network, HOW)
        monkeypatch.setattr(Panel, "see", None)                 # must not be called
        again.learn(DataSource(data, "train"))
        again.measure_floor(DataSource(data, "test"), 50)
    assert again.floors == first.floors and torch.equal(again.real, first.real)
    base = real_key(network, data.fingerprint, "train", "reals", 100)
    names = {base, real_key(network, "other", "train", "reals", 100),
             real_key(network, data.fingerprint, "test", "reals", 100),
             real_key(network, data.fingerprint, "train", "reals", 101)}
    monkeypatch.setattr(network, "sha256", "other")
    names.add(real_key(network, data.fingerprint, "train", "reals", 100))
    monkeypatch.setattr(network, "resizer", "other")
    names.add(real_key(network, data.fingerprint, "train", "reals", 100))
    assert len(names) == 6
    assert Digits(batch_size=16, split_seed=1).sequence != Digits(batch_size=16, split_seed=0).sequence


def test_a_broken_picture_leaves_the_others_in_order(folders):
    before = FolderSource(folders[0], "run")
    (folders[0] / "050_cut.png").write_bytes(b"")
    after = FolderSource(folders[0], "run")
    rows = torch.arange(130)
    assert after.sequence == before.sequence and set(after.failures) == {"050_cut.png"}
    assert all(map(torch.equal, after.pictures(rows), before.pictures(rows)))


def test_an_interruption_leaves_no_record(run, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("aigc.scoring.job.score_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run=run, num_samples=20, out=tmp_path / "none.json")
    assert not list(tmp_path.iterdir())


def test_short_words_are_spelled_out():
    assert spelled_out("metrics=classifier,inception") == "networks=[classifier,inception]"
    assert spelled_out("metrics=[squeezenet]") == "networks=[squeezenet]"
    assert spelled_out("data.root=a") == "++data.root=a" and spelled_out("data=mnist") == "data=mnist"
    assert command.default_out(Target(Path("a.ckpt"), Path("run"))).parent == Path("run/evaluations")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run={folder}"], "is a folder of images: say what to compare them with, data=<data set> or against="),
        (["run={run}", "metrics=inceptio"], "metrics=inceptio is unknown: did you mean 'inception'?"),
        (["run={run}", "metrics=classifier,classifier"], "names classifier twice"),
        (["run={run}", "metrics=squeezenet"], "metrics=squeezenet needs weights.squeezenet=<file>"),
        (["run={run}", "data=shapes"], "a different shape from shapes's (1 x 8 x 8 and 3 x 32 x 32): give data."),
        (["run={run}", "data.split_seeed=1"], "'data' has no option 'split_seeed': did you mean 'split_seed'?"),
        (["run={run}", "num_samples=1"], "num_samples=1 must be at least 2"),
        (["run={run}", "num_sample=5"], "there is no option 'num_sample': did you mean 'num_samples'"),
        (["run={run}", "clip=nowhere"], "clip= scores images by their captions, but this run"),
        (["run=nowhere"], "'nowhere' is neither a run folder nor a checkpoint"),
        (["run={colour}", "data=digits"], "is in colour, but the images it is compared with are grey"),
        (["run={run}", "out=file/x.json"], "the record cannot be written to 'file/x.json'"),
        (["run={run}", "out=file"], "out=file exists and is not the record of an evaluation: choose another name"),
        (["run={run}", "device=gpu"], "device=gpu is unknown: choose auto, cpu, cuda or cuda:<number>"),
        (["run={run}", "device=cuda:9"], "device=cuda:9, but torch sees"),
        (["run={run}", "checkpoint=bset"], "checkpoint=bset is unknown: did you mean 'best'?"),
        (["run={run}", "resamples=1"], "resamples=1 has no spread"),
        (["run={run}", "networks=classifie"], "metrics=classifie is unknown: did you mean 'classifier'?"),
        (["run={run}/.."], "is a folder of runs: give one of them, such as"),
        (["run={folder}/000.png"], "cannot be read as a checkpoint (not a tensor file): give a run folder"),
    ],
)
def test_bad_input_is_one_sentence(overrides, sentence, run, folders, tmp_path, monkeypatch):
    colour = write(tmp_path / "colour", np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8))
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    words = [word.format(run=run, folder=folders[0], colour=colour) for word in overrides]
    options = dict(word.split("=", 1) for word in words)
    if "num_sample" in options:                                  # Hydra's own: in a process
        done = forked.run([sys.executable, "-m", "aigc.evaluate", *words], env=environment(), cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr
        return
    with pytest.raises(UserError) as error:
        evaluated(**{name.replace(".", "__"): value for name, value in options.items()})
    assert sentence in str(error.value)
