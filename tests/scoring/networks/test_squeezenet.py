"""SqueezeNet from a local file: its preprocessing, its features and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0

from aigc.errors import UserError
from aigc.scoring.networks.squeezenet import SqueezeNet


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random weights, as .pth and as .safetensors, and the network that they belong to."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = squeezenet1_0(weights=None).eval()
    torch.save(network.state_dict(), folder / "a.pth")
    save_file(network.state_dict(), folder / "a.safetensors")
    return network, folder / "a.pth", folder / "a.safetensors"


@torch.no_grad()
def test_torchvision_preprocessing_is_torchvisions_own(files):
    network, path, _ = files
    images = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    features, logits = SqueezeNet(path, preprocessing="torchvision")(images)
    theirs = SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms(crop_size=224, resize_size=224)(images)
    maps = network.features(theirs)
    assert torch.allclose(features, maps.mean((2, 3)), rtol=1e-3, atol=1e-5)
    assert torch.allclose(logits, network(theirs), rtol=1e-3, atol=1e-5)
    assert features.shape == (2, 512) and logits.shape == (2, 1000) and features.std() > 1e-3


@torch.no_grad()
def test_caffe_preprocessing_takes_means_away_and_scales_nothing(files):
    network, path, _ = files
    images = torch.randint(0, 256, (1, 3, 64, 48), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    x = F.interpolate(images.float(), (227, 227), mode="bilinear", antialias=True)
    expected = network.features(x - torch.tensor([123.0, 117.0, 104.0])[:, None, None]).mean((2, 3))
    one = SqueezeNet(path, preprocessing="caffe")
    assert torch.allclose(one(images)[0], expected, rtol=1e-3, atol=1e-3)
    assert one.facts()["resizer"] == "227 x 227, bilinear, antialiased; caffe preprocessing"
    assert one.score_names() == {"fd": "fd_squeezenet", "kd": "kd_squeezenet", "is": "is_squeezenet"}


def test_the_same_weights_from_either_file(files):
    _, pickled, safe = files
    one, other = (SqueezeNet(path, preprocessing="caffe") for path in (pickled, safe))
    assert one.sha256 == other.sha256 and len(one.sha256) == 64
    assert one.train().training is False and not any(p.requires_grad for p in one.parameters())
    grey = torch.randint(0, 256, (2, 1, 40, 40)).to(torch.uint8)
    assert torch.equal(one(grey)[0], other(grey.repeat(1, 3, 1, 1))[0])


def test_mistakes_are_one_sentence(files, tmp_path):
    with pytest.raises(UserError, match="did you mean 'caffe'"):
        SqueezeNet(files[1], preprocessing="cafe")
    with pytest.raises(UserError, match=r"is not a file: give SqueezeNet 1.0's weights"):
        SqueezeNet(tmp_path / "none.pth", preprocessing="caffe")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights at all")
        with pytest.raises(UserError, match="cannot be read"):
            SqueezeNet(tmp_path / name, preprocessing="caffe")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not hold SqueezeNet 1\.0's weights"):
        SqueezeNet(tmp_path / "other.pth", preprocessing="caffe")
    with pytest.raises(UserError, match=r"not 2 channels: use metrics.network=classifier"):
        SqueezeNet(files[1], preprocessing="caffe")(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))


@torch.no_grad()
def test_the_weights_at_hand_know_what_emoji_show(shared):
    network = SqueezeNet(shared / "weights" / "squeezenet1_0-imagenet.safetensors", preprocessing="caffe")
    names = sorted(path.name for path in (shared / "noto2openmoji" / "testA").iterdir())[::4]
    a, b = (torch.stack([torch.from_numpy(np.array(Image.open(shared / "noto2openmoji" / side / name).convert("RGB")))
                         for name in names]).permute(0, 3, 1, 2) for side in ("testA", "testB"))
    features = [F.normalize(network(side)[0], dim=1) for side in (a, b)]
    alike = features[0] @ features[1].T
    own = alike.diag().mean().item()
    assert own > 0.7 and own > alike.mean().item() + 0.1
    assert (alike.argmax(1) == torch.arange(len(names))).float().mean() > 0.5     # by chance 0.05
