"""DINOv2 from a local file, with random weights: its class token, both layouts of its files, and what it refuses."""

import pytest
import torch
from torch import nn

from aigc.errors import UserError
from aigc.scoring.networks.dinov2 import DEVIATION, MEAN, DINOv2

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=224).eval()


@pytest.fixture(scope="module")
def ours(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("dino") / "timm.pth"
    torch.save(network.state_dict(), path)
    return DINOv2(str(path))


@torch.no_grad()
def test_features_are_the_class_token_of_normalised_images(network, ours):
    images = torch.randint(0, 256, (2, 3, 40, 30), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    features, logits = ours(images)
    large = nn.functional.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    scaled = (large - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    torch.testing.assert_close(features, network.forward_features(scaled)[:, 0])
    assert features.shape == (2, 384) and logits.shape == (2, 0) and ours.num_features == 384
    assert torch.equal(ours(images[:, :1])[0], ours(images[:, :1].repeat(1, 3, 1, 1))[0])
    assert ours.score_names()["fd"] == "fd_dinov2" and len(ours.sha256) == 64


def test_metas_own_layout_is_read(network, ours, tmp_path):
    """Meta's files also hold a mask token, and positions of 37 x 37 patches."""
    state = {**network.state_dict(), "mask_token": torch.zeros(1, 384)}
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    assert DINOv2(str(path)).sha256 == ours.sha256


def test_missing_and_wrong_files_are_one_sentence(tmp_path, monkeypatch):
    torch.save({"cls_token": torch.zeros(1, 1, 100)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not hold DINOv2's weights.*dinov2_vits14_pretrain.pth"):
        DINOv2(str(tmp_path / "other.pth"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"metrics=dinov2 needs weights.*metrics.weights=<file>"):
        DINOv2()
