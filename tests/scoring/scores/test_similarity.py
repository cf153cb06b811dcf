"""PSNR, SSIM and LPIPS of pairs: against closed forms and torchmetrics."""

import pytest
import torch
from torchvision.models import get_model

from aigc.errors import UserError
from aigc.scoring.scores.similarity import MOST_PSNR, check_lpips, lpips_at_hand, psnr, ssim


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(40, 200, (3, 3, 36, 40), generator=generator).to(torch.uint8)
    return images, (images.int() + torch.randint(-30, 31, images.shape, generator=generator)).to(torch.uint8)


def test_psnr_is_that_of_the_squared_error():
    black = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    other = torch.stack([black[0], black[0] + 255, black[0] + 5])
    found = psnr(other, black)
    assert found[0] == MOST_PSNR and found[1] == 0
    assert found[2].item() == pytest.approx(34.1514, abs=1e-4)       # 20 log10(255 / 5)


def test_psnr_and_ssim_agree_with_torchmetrics(pairs):
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    whole = PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3))(pairs[0].float(), pairs[1].float())
    assert psnr(*pairs).mean().item() == pytest.approx(whole.item(), rel=1e-5)
    found = ssim(*pairs)
    for k in range(3):
        one = StructuralSimilarityIndexMeasure(data_range=255.0)(*(x[k : k + 1].float() for x in pairs))
        assert found[k].item() == pytest.approx(one.item(), rel=1e-4)
    assert ssim(pairs[0], pairs[0]).tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """SqueezeNet 1.1 with random weights, as torchvision saves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_model("squeezenet1_1", weights=None)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_1.pth"
    torch.save(network.state_dict(), path)
    return network, path


def test_lpips_is_torchmetrics_own_over_the_weights_of_the_file(pairs, backbone, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    network, path = backbone
    state = torch.get_rng_state()
    ours = lpips_at_hand("squeeze", str(path), channels=3, size=(36, 40))
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: network.features)
    reference = theirs._LPIPS(net="squeeze").eval()
    expected = reference(*(x.float() / 127.5 - 1 for x in pairs)).flatten()
    assert ours(*pairs).tolist() == pytest.approx(expected.tolist(), rel=1e-4) and expected.min() > 0
    assert ours(pairs[0], pairs[0]).tolist() == [0, 0, 0]
    grey = pairs[0][:, :1], pairs[1][:, :1]
    assert torch.equal(ours(*grey), ours(*(x.expand(-1, 3, -1, -1) for x in grey)))
    assert len(ours.sha256) == 64


def test_lpips_is_left_out_where_its_weights_are_not_at_hand(backbone, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    caplog.set_level("INFO")
    shape = {"channels": 3, "size": (64, 64)}
    assert lpips_at_hand("auto", None, **shape) is None
    assert "no lpips: torch.hub's folder holds no backbone weights" in caplog.text
    assert lpips_at_hand(None, None, **shape) is None
    with pytest.raises(UserError, match=r"metrics.lpips=vgg needs .*vgg16.*metrics.lpips_weights=<file>"):
        lpips_at_hand("vgg", None, **shape)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(backbone[1].read_bytes())
    assert lpips_at_hand("auto", None, **shape).net == "squeeze"
    assert lpips_at_hand("auto", None, channels=3, size=(64, 16)) is None and "64 x 16 pixels are too" in caplog.text
    assert lpips_at_hand("auto", None, channels=4, size=(64, 64)) is None


def test_lpips_mistakes_are_one_sentence(backbone, tmp_path):
    shape = {"channels": 3, "size": (64, 64)}
    with pytest.raises(UserError, match="did you mean 'squeeze'"):
        check_lpips("squeze")
    with pytest.raises(UserError, match=r"metrics.lpips_weights needs metrics.lpips=alex\|vgg\|squeeze"):
        lpips_at_hand("auto", str(backbone[1]), **shape)
    with pytest.raises(UserError, match=r"does not hold the weights of torchvision's alexnet"):
        lpips_at_hand("alex", str(backbone[1]), **shape)
    with pytest.raises(UserError, match=r"is not a file: give torchvision's alexnet's weights"):
        lpips_at_hand("alex", str(tmp_path / "none.pth"), **shape)
