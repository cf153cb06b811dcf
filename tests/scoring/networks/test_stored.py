"""Networks as files: the canonical ones of the package, and classifiers that are handed on."""

import json
import logging
from pathlib import Path

import pytest
import torch

from aigc.data.digits import Digits
from aigc.data.scenes import Scenes
from aigc.data.shape_language import KINDS, RichScenes, fulfilled
from aigc.data.shapes import Shapes
from aigc.data.vision import Vision
from aigc.errors import UserError
from aigc.scoring.networks import stored
from aigc.scoring.networks.classifier import classifier_of, trained_classifier
from aigc.scoring.networks.oracle import agreement, shapes_oracle
from aigc.scoring.networks.registry import build_network
from aigc.scoring.networks.stored import canonical_list, canonical_of, read, read_canonical
from tests.scoring.networks.test_classifier import made
from tests.scoring.threads import by_one_and_two

CANONICAL = {  # another hash is another scale: scores that were published by the old one no longer compare
    "digits": "6bdcd50a7e3d8c8bb4c63093e71ddeb68b847582d695872f3d507cb0268b392b",
    "mnist": "03cbfc8975dd7be6e05a1040fff9f36aa245800be1a7a83714b5ed576702a342",
    "oracle": "1188a731ac641b66b5071409b87a202d471c7c44667fd9efede183e77bb839a6",
    "oracle_rich": "c8febc9109c0d1bd69950fc3114f7cb4c4a060a7499b87c51e41ed8cdedce95c",
    "shapes": "beac0053ea8972d16269009d825ae0e2290c75300c192cfc5a31a08399d24d7c",
}
FEW = {"batch_size": 100, "train": 400, "validation": 1, "test": 400, "heldout": 1}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def standard(name, shared: Path | None = None, **options):
    """A data set of which there is a canonical classifier, set up."""
    data = {
        "shapes": lambda: Shapes(**{**FEW, **options}),
        "digits": lambda: Digits(**{"batch_size": 100, **options}),
        "mnist": lambda: Vision("mnist", **{"batch_size": 100, "root": str(shared), "download": False, **options}),
    }[name]()
    data.setup()
    return data


def test_the_package_holds_these_networks_and_each_is_small():
    assert {name: facts["sha256"] for name, facts in canonical_list().items()} == CANONICAL
    files = {path.stem: path.stat().st_size for path in stored.FOLDER.glob("*.safetensors")}
    assert set(files) == set(CANONICAL) and max(files.values()) < 450_000
    for facts in canonical_list().values():
        assert {"torch", "processor", "threads", "dtype"} <= set(facts["made"])


@pytest.mark.parametrize(("name", "least"), [("shapes", 0.999), ("digits", 0.98), ("mnist", 0.994)])
def test_the_canonical_classifier_scores_its_data_without_training(name, least, request, empty_cache, caplog):
    data = standard(name, request.getfixturevalue("shared") if name == "mnist" else None)
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        network = build_network("classifier", data, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state) and not caplog.records
    assert network.sha256 == CANONICAL[name] == network.facts()["network_sha256"]
    assert network.facts()["network_weights"] == f"canonical {name}" and network.accuracy >= least
    images, labels = data.images("test", limit=1000), data.labels("test", limit=1000)
    right = (network(images)[1].argmax(1) == labels).float().mean().item()
    assert right >= least - 0.01
    assert not empty_cache.exists() or not any(empty_cache.iterdir())


@pytest.mark.parametrize(("name", "options", "wanted"), [
    ("shapes", {}, "shapes"), ("shapes", {"split_seed": 7, "train": 30}, "shapes"),
    ("shapes", {"objects": "mixed", "caption_background": True}, "shapes"), ("shapes", {"size": 24}, None),
    ("shapes", {"size": [32, 48]}, None), ("digits", {"split_seed": 3, "test": 0.3, "seed": 5}, "digits"),
    ("digits", {"size": 16}, None), ("digits", {"channels": 3}, None),
])
def test_it_belongs_to_what_the_images_are_not_to_how_they_are_cut(name, options, wanted):
    assert canonical_of(standard(name, **options)) == wanted


def test_other_data_have_none(monkeypatch):
    assert canonical_of(made(shape=(1, 8, 8), labelled=True)) is None
    shapes = standard("shapes")
    assert canonical_of(shapes) == "shapes"
    monkeypatch.setattr("aigc.data.scenes.VERSION", 99)         # they are drawn in another way now
    assert canonical_of(shapes) is None


def test_a_canonical_network_that_was_changed_or_lost_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"digits\.safetensors is missing or damaged: install aigc again"):
        read_canonical("digits")
    whole = read(Path(stored.__file__).parent / "weights" / "digits.safetensors")
    weights = {**whole.weights, "head.bias": whole.weights["head.bias"] + 1e-3}
    (tmp_path / "digits.safetensors").write_bytes(stored.encode(weights, whole.facts))
    with pytest.raises(UserError, match=r"has been changed \(sha256 [0-9a-f]{12} instead of 6bdcd50a7e3d\)"):
        read_canonical("digits")


def moved(images):
    """Images that are not the reference: shifted by a pixel, and darker."""
    return images.roll(1, 3).float().mul(0.8).to(torch.uint8)


@pytest.mark.parametrize("name", ["shapes", "digits", "mnist"])
def test_one_thread_and_two_give_the_same_distance(name, request):
    data = standard(name, request.getfixturevalue("shared") if name == "mnist" else None)
    real, fake = (data.images(split, limit=400) for split in ("train", "test"))
    found = by_one_and_two(classifier_of(data), real, moved(fake), batches=(400, 150), near=fake,      # near: a floor
                           kd_subsets=5, kd_subset_size=100)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0][0] > found[0][-1] > 0


def test_the_canonical_oracle_reads_what_is_drawn(empty_cache, caplog):
    with caplog.at_level(logging.INFO):
        oracle = shapes_oracle((32, 32))
    assert oracle.sha256 == CANONICAL["oracle"] and not caplog.records
    for split in ("test", "heldout"):
        scenes, index = Scenes(3, split, objects="mixed"), torch.arange(400)
        assert agreement(oracle.read(scenes.images(index)), scenes.attributes(index))["all"] >= 0.995


@pytest.mark.parametrize("split", ["test", "heldout", "templates"])
def test_the_oracle_of_rich_captions_tells_what_is_fulfilled(split, empty_cache, caplog):
    with caplog.at_level(logging.INFO):
        oracle = shapes_oracle((32, 32), language="rich")
    assert oracle.sha256 == CANONICAL["oracle_rich"] and not caplog.records
    scenes, index = RichScenes(3, split), torch.arange(600)
    found, claims = oracle.read(scenes.images(index)), scenes.claims(index)
    shares = fulfilled(found, claims)
    assert {f"all_{kind}" for kind in KINDS} < set(shares) and min(shares.values()) >= 0.98     # each kind of caption
    strange = fulfilled(found.roll(1, 0), claims)["all"]
    assert strange < 0.2                                                # of another picture it is seldom true
    dropped = scenes.images(index).roll(16, 3)                          # halves change sides
    assert fulfilled(oracle.read(dropped), claims)["relation"] < 0.7


# ---- handed on ----


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory):
    """A classifier that was trained elsewhere: its file, the data, and the network."""
    patch, data = pytest.MonkeyPatch(), made(shape=(1, 12, 12), labelled=True)
    folder = tmp_path_factory.mktemp("elsewhere")
    with patch.context() as context:
        context.setenv("AIGC_CACHE", str(folder))
        network = trained_classifier(data)
    (path,) = folder.iterdir()
    return path, data, network


def test_a_trained_classifier_is_handed_on_as_a_file(handed_on, empty_cache, caplog):
    path, data, network = handed_on
    assert network.origin == "trained here" and path.suffix == ".safetensors" and data.name in path.name
    with caplog.at_level(logging.INFO):
        again = build_network("classifier", data, torch.device("cpu"), weights=str(path))
    assert again.origin == "given" and again.sha256 == network.sha256 and again.accuracy == network.accuracy
    pixels = data.images("test")
    assert torch.equal(again(pixels)[0], network(pixels)[0]) and not caplog.records
    assert not empty_cache.exists()


def test_given_weights_of_other_cuts_of_the_data_are_used_and_said(handed_on, caplog):
    path, _, _ = handed_on
    other = made(shape=(1, 12, 12), labelled=True)
    other.fingerprint = "another"
    assert classifier_of(other, weights=str(path)).origin == "given"
    assert f"metrics.weights={path} was trained on made with other images or cuts" in caplog.text


@pytest.mark.parametrize(("change", "sentence"), [
    ({"channels": 3}, "was trained for made with channels 1, and made has 3: give the file for this data, or none"),
    ({"size": (12, 16)}, r"with size \[12, 12\], and made has \[12, 16\]"),
    ({"classes": 5}, "with classes 2, and made has 5"),
    ({"class_names": ["cat", "dog"]}, r"with class names None, and made has \['cat', 'dog'\]"),
])
def test_weights_that_belong_to_other_data_are_refused_in_one_sentence(change, sentence, handed_on):
    path, _, _ = handed_on
    other = made(shape=(1, 12, 12), labelled=True)
    for name, value in change.items():
        setattr(other, name, value)
    with pytest.raises(UserError, match=sentence):
        classifier_of(other, weights=str(path))


def test_files_that_hold_no_classifier_are_refused_in_one_sentence(handed_on, tmp_path):
    path, data, _ = handed_on
    with pytest.raises(UserError, match="there is no such file"):
        classifier_of(data, weights=str(tmp_path / "none.safetensors"))
    (tmp_path / "text.safetensors").write_text("no network")
    with pytest.raises(UserError, match="damaged, or not a network that aigc trained"):
        classifier_of(data, weights=str(tmp_path / "text.safetensors"))
    with pytest.raises(UserError, match="holds the network oracle, not a classifier"):
        classifier_of(data, weights=str(stored.FOLDER / "oracle.safetensors"))
    found = read(path)
    less = {name: value for name, value in found.weights.items() if name != "head.bias"}
    (tmp_path / "less.safetensors").write_bytes(stored.encode(less, found.facts))
    with pytest.raises(UserError, match=r"is damaged \(its weights do not have the sha256 that it states\)"):
        classifier_of(data, weights=str(tmp_path / "less.safetensors"))
    without = {name: fact for name, fact in found.facts.items() if name != "sha256"}
    (tmp_path / "less.safetensors").write_bytes(stored.encode(less, without))
    with pytest.raises(UserError, match="does not hold the weights of a Classifier of this version"):
        classifier_of(data, weights=str(tmp_path / "less.safetensors"))
    nan = {**found.weights, "head.bias": found.weights["head.bias"] * torch.nan}
    (tmp_path / "nan.safetensors").write_bytes(stored.encode(nan, without))
    with pytest.raises(UserError, match=r"nan\.safetensors holds NaN or infinite weights: give another file"):
        classifier_of(data, weights=str(tmp_path / "nan.safetensors"))


def test_what_a_file_says_of_itself(handed_on):
    from safetensors import safe_open

    path, data, network = handed_on
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["aigc"])
    assert facts == {"network": "classifier", "version": 3, "data": "made", "channels": 1, "size": [12, 12],
                     "classes": 2, "class_names": None, "fingerprint": data.fingerprint, "accuracy": network.accuracy,
                     "sha256": network.sha256}
