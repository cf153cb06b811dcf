"""Scores: what they say, when they are taken, and that taking them changes nothing."""

import inspect
import json

import lightning as L
import pytest
import torch

from aigc.config.targets import instantiate
from aigc.data.scenes import COLUMNS, Scenes, caption
from aigc.data.shapes import Shapes
from aigc.errors import RunError, UserError
from aigc.files.cache import cache_folder
from aigc.images.streams import items
from aigc.noise import SeededNoise
from aigc.scoring.networks.oracle import oracle_of
from aigc.scoring.samples import Found, Sampling, score_attributes
from aigc.scoring.scores import attributes
from aigc.training.callbacks.record import Record
from aigc.training.callbacks.scores import Scores
from tests.training.callbacks.conftest import Copies, Lines, alone, in_two_processes

FEW = {"network": "classifier", "every_images": 100, "num_samples": 120, "batch_size": 50, "validation_images": 70,
       "kd_subsets": 2, "kd_subset_size": 100}


def test_good_samples_score_well_and_bad_ones_do_not(trainer):
    good = Scores(**FEW).score(trainer, Copies())
    blurred = Scores(**FEW).score(trainer, Copies(spread=0.8))
    assert good["label_accuracy"] > 0.97
    assert good["fd_classifier_over_floor"] < 1.3 < 2 < blurred["fd_classifier_over_floor"]
    assert good["kd_classifier"] < blurred["kd_classifier"]
    assert good["is_classifier"] > 6


def test_label_accuracy_counts_what_was_asked_for(trainer):
    wrong = Scores(**{**FEW, "num_samples": 400}).score(trainer, Copies(wrong=0.6745))  # half of |N(0, 1)| is below
    assert wrong["label_accuracy"] == pytest.approx(0.5, abs=0.08)
    assert "label_accuracy" not in Scores(**FEW).score(trainer, Copies(condition="none"))


def test_labels_are_balanced_or_as_in_the_data(trainer, monkeypatch):
    counts = {}
    for balanced in (True, False):
        model, seen = Copies(), []
        monkeypatch.setattr(model, "sample", lambda n, condition, seeds, seen=seen: (
            seen.append(condition), torch.randn(n, 1, 8, 8))[1])
        Scores(**FEW, balanced=balanced).score(trainer, model)
        counts[balanced] = torch.bincount(torch.cat(seen), minlength=10).tolist()
    assert counts[True] == [12] * 10
    data = torch.cat([batch["label"] for _, batch in items(trainer.datamodule, "train", 120, batch_size=120)])
    assert counts[False] == torch.bincount(data, minlength=10).tolist()


def test_batch_size_does_not_matter(trainer):
    one, other = (Scores(**{**FEW, "batch_size": n}).score(trainer, Copies(spread=0.1)) for n in (120, 32))
    for name in ("fd_classifier", "kd_classifier", "is_classifier", "label_accuracy", "val/brightness"):
        assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name


class Renderer(Copies):
    """Renders single objects by its seeds, unasked; a share `empty` of its images shows bare ground."""

    def __init__(self, *, empty=0.0):
        super().__init__(condition="none")
        self.scenes, self.empty = Scenes(3, "test", size=(32, 32)), empty

    def sample(self, n, *, condition=None, seeds=None, **options):
        made = self.scenes.images(torch.tensor([seed % 3000 for seed in seeds]))
        bare = torch.tensor([seed % 1000 < 1000 * self.empty for seed in seeds])
        made[bare] = made[bare, :, :1, :1]
        return made.float() / 127.5 - 1


def test_clear_shapes_are_counted_in_training_and_in_an_evaluation_alike(tmp_path):
    data = Shapes(batch_size=16, split_seed=3, size=32, train=20, validation=10, test=400, heldout=10)
    data.setup()
    ask = {**ATTRIBUTES, "attribute_samples": 400}
    assert Scores(**ask).score(alone(data, tmp_path), Renderer())["attributes/clear"] >= 0.995
    model = Renderer(empty=0.25)
    share = Scores(**ask).score(alone(data, tmp_path), model)["attributes/clear"]
    assert share == pytest.approx(0.75, abs=0.06)
    found, how = Found(), Sampling(n=400, batch_size=64, seed=0, split="train", balanced=True, options={})
    score_attributes(model, data, found, how, resamples=50, n=400)
    score = found.scores["attributes/clear"]
    assert score.value == pytest.approx(share, abs=1e-6)
    error = (share * (1 - share) / 400) ** 0.5
    assert score.high - score.low == pytest.approx(2 * 1.96 * error, rel=0.35)
    assert found.protocol["attributes/clear"]["network_sha256"] == oracle_of(data).sha256


class Draughtsman(Copies):
    """Renders what a caption says, as the data would; a share `wrong` of its images shows the next colour."""

    def __init__(self, *, wrong=0.0):
        super().__init__(condition="text", wrong=wrong)
        scenes = [(Scenes(3, split, objects="mixed", size=(32, 32)), torch.arange(3000)) for split in
                  ("test", "heldout")]
        self.attributes = torch.cat([one.attributes(index) for one, index in scenes])
        self.rows = {caption(row): k for k, row in enumerate(self.attributes)}
        self.images = torch.cat([one.images(index) for one, index in scenes])

    def sample(self, n, *, condition=None, seeds=None, **options):
        self.asked.append(condition)
        rows = [self.rows[text] for text in condition]
        slips = SeededNoise(seeds)(1).abs()[:, 0] < self.hparams.wrong
        for k in slips.nonzero()[:, 0].tolist():
            rows[k] = next(row for row, found in enumerate(self.attributes) if found[0] == 1 and
                           found[3] != self.attributes[rows[k]][3] and found[4] == self.attributes[rows[k]][4])
        return self.images[rows].float() / 127.5 - 1


def mixed_scenes():
    data = Shapes(batch_size=16, objects="mixed", split_seed=3, size=32, train=200, validation=50, test=120,
                  heldout=120)
    data.setup()
    return data


@pytest.fixture(scope="module")
def scenes():
    return mixed_scenes()


def reader_of_renders():
    """`read_back` by the renders' own pixels in place of the oracle, whose training is tested elsewhere."""
    model = Draughtsman()
    known = {image.numpy().tobytes(): k for k, image in enumerate(model.images)}

    def read(data, images):
        return model.attributes[[known.get(image.numpy().tobytes(), 0) for image in images.cpu()]]

    return read


@pytest.fixture
def quick_oracle(monkeypatch):
    monkeypatch.setattr(attributes, "read_back", reader_of_renders())


ATTRIBUTES = {**FEW, "network": None, "num_samples": None, "validation_images": 0, "attribute_samples": 120}


def test_attributes_of_right_images_are_all_right(scenes, quick_oracle, tmp_path):
    model = Draughtsman()
    found = Scores(**ATTRIBUTES).score(alone(scenes, tmp_path), model)
    own = {"all", "all_single", "all_pair", *COLUMNS} - {"background"}        # of which captions say nothing
    assert set(found) == {f"attributes/{split}/{name}" for split in ("seen", "heldout") for name in own}
    assert all(value == 1 for value in found.values())
    order = [text for split in ("test", "heldout") for _, batch in items(scenes, split, 120, batch_size=120)
             for text in batch["text"]]
    assert [text for part in model.asked for text in part] == order


def test_attributes_of_wrong_images_are_counted(scenes, quick_oracle, tmp_path):
    found = Scores(**ATTRIBUTES).score(alone(scenes, tmp_path), Draughtsman(wrong=0.6745))
    assert found["attributes/seen/all"] == pytest.approx(0.5, abs=0.12)
    assert found["attributes/seen/shape"] == 1 and found["attributes/seen/colour"] == found["attributes/seen/all"]
    single = scenes.attributes("test")[:, 0] == 1
    share = single.float().mean().item()
    assert found["attributes/seen/all"] == pytest.approx(
        share * found["attributes/seen/all_single"] + (1 - share) * found["attributes/seen/all_pair"], abs=1e-6)


class Narrator(Copies):
    """Renders what a rich caption was said of, or with `denied`, the picture of the next caption in its split."""

    def __init__(self, data, *, denied=False):
        super().__init__(condition="text")
        self.shown = {}
        for split in ("test", "heldout", "templates"):
            pictures = data.images(split).roll(int(denied), 0)
            self.shown |= dict(zip(data.texts(split), pictures, strict=True))

    def sample(self, n, *, condition=None, seeds=None, **options):
        return torch.stack([self.shown[text] for text in condition]).float() / 127.5 - 1


def test_rich_captions_are_judged_by_kind_in_three_splits(tmp_path):
    data = Shapes(batch_size=16, language="rich", objects="mixed", split_seed=3, train=20, validation=10, test=120,
                  heldout=120)
    data.setup()
    kinds = {f"all_{kind}" for kind in ("one", "two", "three", "count", "negation")}
    names = {"count", "size", "colour", "shape", "relation", "negation", "all"} | kinds
    right = Scores(**ATTRIBUTES).score(alone(data, tmp_path), Narrator(data))
    assert set(right) == {f"attributes/{split}/{name}" for split in ("seen", "heldout", "templates") for name in names}
    assert min(right.values()) >= 0.95
    wrong = Scores(**ATTRIBUTES).score(alone(data, tmp_path), Narrator(data, denied=True))
    for split in ("seen", "heldout", "templates"):
        assert wrong[f"attributes/{split}/all"] < 0.2 < wrong[f"attributes/{split}/negation"] < 0.9
        kept = torch.tensor([wrong[f"attributes/{split}/{kind}"] for kind in sorted(kinds)])
        asked = data.asked({"seen": "test"}.get(split, split))[:, 0]
        shares = torch.stack([(asked == k).float().mean() for k in (3, 4, 0, 2, 1)])      # kinds in sorted order
        assert float(kept @ shares) == pytest.approx(wrong[f"attributes/{split}/all"], abs=1e-5)


def test_attributes_need_captions_and_data_that_read(scenes, quick_oracle, trainer, tmp_path):
    assert Scores(**ATTRIBUTES).score(alone(scenes, tmp_path), Copies(condition="none")) == {}
    assert Scores(**ATTRIBUTES).score(trainer, Copies()) == {}


def test_samples_follow_the_captions_of_the_split(scenes, tmp_path):
    model = Draughtsman()
    model.rows |= {caption(row): k for k, row in enumerate(scenes.attributes("train"))}
    found = Scores(**{**FEW, "num_samples": 60}).score(alone(scenes, tmp_path), model)
    first = next(items(scenes, "train", 60, batch_size=50))[1]["text"]
    assert model.asked[0] == first and "label_accuracy" not in found and found["fd_classifier"] > 0


def test_held_out_losses_are_means_over_images(trainer):
    scores = Scores(**FEW).score(trainer, Copies())
    batches = list(trainer.datamodule.eval_dataloader("validation", limit=70, batch_size=50))
    images = torch.cat([batch["image"] for batch in batches]).float() / 127.5 - 1
    assert [len(batch["image"]) for batch in batches] == [50, 20]
    assert scores["val/brightness"] == pytest.approx(images.mean().item(), rel=1e-5)
    assert scores["val/rows"] == pytest.approx((50 * 50 + 20 * 20) / 70)


def test_scoring_changes_nothing(trainer):
    model, scores = Copies(), Scores(**FEW)
    scores.prepare(trainer, model)
    model.progress.start()
    torch.manual_seed(5)
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        first = scores.score(trainer, model)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes and not all(modes)
    assert all(asked[1:] == (False, False, False) for asked in model.asked)
    assert model.progress.seconds < 0.5  # the clock stood still
    torch.rand(3)
    assert scores.score(trainer, model) == first
    assert not any(isinstance(value, torch.nn.Module) and value is scores.network for value in model.modules())


def test_protocol_says_how(trainer):
    scores = Scores(**FEW)
    assert scores.protocol == {}
    scores.prepare(trainer, Copies())
    protocol, data = scores.protocol, trainer.datamodule
    json.dumps(protocol)
    assert scores.monitor == protocol["metric"] == "fd_classifier"
    assert protocol["network"] == "classifier" and len(protocol["network_sha256"]) == 64
    assert protocol["network_accuracy"] > 0.97 and protocol["resizer"].endswith("bilinear, antialiased")
    assert (protocol["num_samples"], protocol["num_reals"], protocol["split"]) == (120, data.count("train"), "train")
    assert (protocol["data"], protocol["data_fingerprint"]) == (data.name, data.fingerprint)
    assert protocol["floor"] > 0 and protocol["kd_subset_size"] == 100 and protocol["is_splits"] == 10


def test_floor_needs_as_many_test_images(trainer):
    few = Scores(**{**FEW, "num_samples": trainer.datamodule.count("test") + 1})
    scores = few.score(trainer, Copies())
    assert few.protocol["floor"] is None and "fd_classifier_over_floor" not in scores
    assert scores["fd_classifier"] > 0


def test_what_the_users_choices_rule_out_is_recorded_and_not_said(trainer, caplog):
    n = trainer.datamodule.count("test")
    few = Scores(**{**FEW, "num_samples": n + 1}, num_samples_final=n + 2)
    with caplog.at_level("INFO"):
        few.on_train_start(trainer, Copies(condition="none"))
    said = {f"{prefix}fd_classifier_over_floor": f"it needs as many test images as samples: {k}, and there are {n}"
            for prefix, k in (("", n + 1), ("final/", n + 2))}
    assert few.facts()["scores_missing"] == {**said, "label_accuracy": "the images are made without labels"}
    assert [line for line in caplog.messages if line.startswith("no ")] == [f"no {k}: {said[k]}" for k in said]
    other = Scores(**{**FEW, "split": "test"})
    other.prepare(trainer, Copies())
    assert (other.missing, other.ruled_out) == (
        {}, {"fd_classifier_over_floor": "no test images are held out of the reference"})


def test_real_side_is_looked_at_once(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path / "cache"))
    options = {**FEW, "num_reals": 300}
    fresh = Scores(**options)
    expected = fresh.score(trainer, Copies())
    assert fresh.protocol["num_reals"] == 300
    kinds = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir())
    assert kinds == ["floor", "reals"]                  # the classifier of digits is in the package
    assert fresh.protocol["network_weights"] == "canonical digits"
    again = Scores(**options)
    with monkeypatch.context() as patch:
        patch.setattr("aigc.scoring.sources.FamilySource.batches", None)    # must not be asked for
        assert again.score(trainer, Copies()) == expected
    other = Scores(**{**options, "num_reals": 200})
    other.prepare(trainer, Copies())
    assert len(list((tmp_path / "cache").glob("reals-*"))) == 2


def test_a_run_that_is_resumed_through_other_weights_decides_anew_what_is_best(trainer, tmp_path, caplog):
    trainer.default_root_dir = str(tmp_path)
    for recorded, best in ((None, 0.5), ("0" * 64, None)):
        scores = Scores(**FEW)
        scores.load_state_dict({"scored_images": 100, "latest": {}, "best": 0.5, "history": []})
        protocol = {"network_sha256": recorded or scores.build(trainer, Copies()).sha256}
        (tmp_path / "summary.json").write_text(json.dumps({"protocol": protocol}))
        caplog.clear()
        scores.build(trainer, Copies())
        assert scores.best == best
        assert ("used other weights of classifier (00000000, now " in caplog.text) == (recorded is not None)


def test_more_samples_at_the_end_stay_apart(trainer):
    model, scores = Copies(spread=0.1), Scores(**FEW, num_samples_final=170)
    usual = scores.score(trainer, model)
    final = scores.score(trainer, model, final=True)
    assert {name: final[name] for name in usual} == usual  # the first 120 of the 170
    assert final["final/fd_classifier"] != usual["fd_classifier"]
    assert 0 < scores.protocol["floor_final"] != scores.protocol["floor"] > 0


def test_best_follows_monitor_and_mode(trainer):
    scores = Scores(**FEW, monitor="label_accuracy", mode="max")
    found = []
    for wrong in (2.0, 0.0, 1.0):
        scores.score(trainer, Copies(wrong=wrong))
        found.append((scores.is_best, scores.best == scores.latest["label_accuracy"]))
    assert found == [(True, True), (True, True), (False, False)]
    assert [line["label_accuracy"] for line in scores.history][1] == scores.best
    with pytest.raises(UserError, match="did you mean 'fd_classifier'"):
        Scores(**FEW, monitor="fd_clasifier").score(trainer, Copies())


def test_scores_are_logged_with_the_step(trainer):
    model, scores = Copies(), Scores(**FEW)
    model.progress.images, model.progress.batches = 640, 40
    latest = scores.score(trainer, model)
    assert trainer.loggers[0].lines == [(40, latest)] and scores.latest == latest
    assert scores.history[0]["images"] == scores.scored_images == 640


def test_without_a_network_only_losses(trainer):
    scores = Scores(**{**FEW, "network": None})
    assert set(scores.score(trainer, Copies())) == {"val/brightness", "val/noise", "val/rows"}
    assert scores.protocol == {} and scores.best is None and not scores.is_best


def test_infinite_samples_end_the_run_in_one_sentence(trainer):
    with pytest.raises(RunError, match="samples became infinite or NaN after 0 images"):
        Scores(**FEW).score(trainer, Copies(spread=float("nan")))


@pytest.mark.parametrize(("options", "sentence"), [
    ({"network": "inceptoin"}, "did you mean 'inception'"),
    ({"mode": "least"}, "choose from max, min"),
    ({"num_samples": 1}, "num_samples must be a whole number of at least 2"),
    ({"every_images": 0.5}, "every_images must be a whole number"),
    ({"num_samples_final": 100}, "num_samples_final must be a whole number of at least 120"),
])
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Scores(**{**FEW, **options})


@pytest.mark.parametrize("name", ["classifier", "inception", "dinov2"])
def test_recipes_are_complete(name, composed):
    recipe = composed(f"metrics={name}").metrics
    assert instantiate(recipe, "metrics").network_name == name
    options = set(inspect.signature(Scores).parameters)
    options -= {"classifier": {"preprocessing"}, "dinov2": {"preprocessing"}}.get(name, set())
    assert set(recipe) - {"_target_"} == options
    assert not composed("metrics=none").metrics


def test_losses_alone_need_no_samples(composed, trainer):
    scores = instantiate(composed("metrics=losses").metrics, "metrics")
    assert set(scores.score(trainer, Copies())) == {"val/brightness", "val/noise", "val/rows"}
    with pytest.raises(UserError, match=r"needs metrics\.num_samples"):
        Scores(**{**FEW, "num_samples": None})


def test_squeezenet_needs_its_weights_and_their_preprocessing(composed):
    with pytest.raises(UserError, match=r"network=squeezenet needs metrics.weights=<file>"):
        instantiate(composed("metrics=squeezenet").metrics, "metrics")
    with pytest.raises(UserError, match=r"needs metrics.preprocessing=caffe\|torchvision"):
        Scores(**{**FEW, "network": "squeezenet", "weights": "a.pth"})
    recipe = composed("metrics=squeezenet", "metrics.weights=a.pth").metrics
    assert set(recipe) - {"_target_"} == set(inspect.signature(Scores).parameters)


# ---- in a run ----


class Stop(L.Callback):
    def __init__(self, batches, interrupted=None):
        self.batches, self.interrupted = batches, interrupted

    def on_train_batch_end(self, trainer, pl_module, *args):
        if pl_module.progress.batches >= self.batches:
            pl_module.progress.interrupted = self.interrupted
            trainer.should_stop = True


def train(folder, batches, *, checkpoint=None, interrupted=None, **options):
    torch.manual_seed(0)
    model, lines = Copies(), Lines()
    scores = Scores(**{**FEW, "num_samples": 20, "validation_images": 0, **options})
    trainer = L.Trainer(
        default_root_dir=str(folder), max_epochs=-1, accelerator="cpu", logger=[lines], limit_val_batches=0,
        callbacks=[Record(seed=0), Stop(batches, interrupted), scores], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )
    from aigc.data.digits import Digits

    trainer.fit(model, datamodule=Digits(batch_size=16), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return [line["images"] for line in scores.history], scores, model


def test_every_boundary_and_the_end_are_scored_once(tmp_path):
    images, *_ = train(tmp_path, 21)  # 336 images
    assert images == [112, 208, 304, 336]
    images, *_ = train(tmp_path, 26, checkpoint=tmp_path / "last.ckpt")  # 416 images
    assert images == [112, 208, 304, 336, 400, 416]


def test_an_interrupted_run_is_not_scored_and_loses_nothing(tmp_path):
    images, scores, _ = train(tmp_path, 7, interrupted="SIGTERM")  # stopped at the very step that crosses 100
    assert images == []
    assert scores.missing["final scores"] == (
        "the run was interrupted after 112 images, but these scores are from 0")
    images, scores, _ = train(tmp_path, 9, checkpoint=tmp_path / "last.ckpt")
    assert images == [128, 144]
    assert scores.best == min(line["fd_classifier"] for line in scores.history)


def test_scoring_leaves_training_as_it_is(tmp_path):
    often, rarely = (train(tmp_path / str(n), 12, every_images=n)[2].state_dict() for n in (16, 100000))
    assert all(torch.equal(often[name], rarely[name]) for name in often)


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path, trainer):
    ranks = in_two_processes(tmp_path, "samples")
    for path in cache_folder().glob("[rf]*-classifier-*.pt"):  # one process looks at the real side for itself
        path.unlink()
    alone = Scores(**FEW, num_samples_final=130, num_reals=200)
    expected = alone.score(trainer, Copies(spread=0.1), final=True)
    assert ranks[0]["scores"] == ranks[1]["scores"]
    assert set(ranks[0]["scores"]) == set(expected)
    for name, value in expected.items():
        assert ranks[0]["scores"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert 0 < ranks[0]["asked"] < 130 and ranks[0]["asked"] + ranks[1]["asked"] == 130  # the work was shared


@pytest.mark.slow
def test_two_processes_read_attributes_as_one(tmp_path, scenes, quick_oracle):
    ranks = in_two_processes(tmp_path, "attributes")
    expected = Scores(**ATTRIBUTES).score(alone(scenes, tmp_path), Draughtsman(wrong=0.6745))
    assert ranks[0]["scores"] == ranks[1]["scores"] and 0 < expected["attributes/seen/all"] < 1
    assert ranks[0]["scores"] == pytest.approx(expected)
    assert 0 < ranks[0]["asked"] < 240 and ranks[0]["asked"] + ranks[1]["asked"] == 240  # 120 of either split


@pytest.mark.slow
def test_two_processes_log_the_mean_of_their_losses(tmp_path):
    first, second = in_two_processes(tmp_path, "losses")
    assert first["lines"] == second["lines"] == [{"loss": 2.5, "penalty": 15.0}]  # 1, 2 and 3, 4; once 10 and 20
    assert first["open"] == second["open"] == {"loss": [3.0, 4.0]}                # what a checkpoint keeps
    assert first["resumed"] == second["resumed"] == {"loss": 4.0}
    assert first["broken"] == second["broken"] and "loss became nan" in first["broken"]


def test_a_family_that_makes_no_images_is_scored_by_its_own_losses(trainer, monkeypatch):
    monkeypatch.setattr(Copies, "makes_images", classmethod(lambda cls: False))
    scores = Scores(**{**FEW, "validation_images": 20, "attribute_samples": 5})
    assert set(scores.score(trainer, Copies(), final=True)) == {"val/brightness", "val/noise", "val/rows"}
    assert scores.ruled_out == {"fd_classifier": "the family makes no images: its own losses are its scores"}
    assert scores.best is None and not scores.missing
