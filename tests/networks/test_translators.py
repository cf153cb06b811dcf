"""Networks of image translation: closed forms, sizes, norms, receptive fields, and what upsampling leaves behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aigc.networks.patchgan import PatchGAN, receptive_field
from aigc.networks.pix2pix_unet import UNetGenerator
from aigc.networks.resnet import InstanceNorm, ResizeConvolution, ResNetGenerator, reflect_to


def resnet(channels=3, **changes) -> ResNetGenerator:
    torch.manual_seed(0)
    return ResNetGenerator(channels, 4, **{"blocks": 2, "init_std": 0.2, **changes})


def unet(channels=3, **changes) -> UNetGenerator:
    torch.manual_seed(0)
    return UNetGenerator(channels, 4, **{"halvings": 4, "init_std": 0.2, **changes}).eval()


def test_instance_norm_is_that_of_torch():
    x = torch.randn(3, 5, 6, 7) * 4 + 2
    torch.testing.assert_close(InstanceNorm()(x), nn.InstanceNorm2d(5)(x))


def test_resize_convolution_is_nearest_neighbours_then_a_convolution():
    torch.manual_seed(0)
    layer, x = ResizeConvolution(4, 5), torch.randn(2, 4, 6, 7, requires_grad=True)
    ours, expected = layer(x), F.conv2d(F.interpolate(x, scale_factor=2.0), layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), (x, layer.weight)) for y in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_only_resize_convolutions_draw_a_flat_field_flat():
    """A transposed 3x3 convolution of stride 2 adds one, two or four products in turn: a checkerboard (Odena 2016)."""

    def unevenness(network) -> float:
        double = next(layer for layer in network.decoder if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d))
        y = double(torch.ones(1, double.in_channels, 8, 8))[..., 4:-4, 4:-4]
        return (y.std((2, 3)) / y.abs().mean((2, 3))).max().item()

    assert unevenness(resnet(upsample="resize")) < 1e-5
    assert unevenness(resnet(upsample="transposed")) > 0.1


@pytest.mark.parametrize("upsample", ["resize", "transposed"])
@pytest.mark.parametrize("build", [resnet, unet])
@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (17, 23)), (4, (2, 1)), (3, (3, 50))])
def test_any_size_and_channels(build, upsample, channels, size):
    network = build(channels, upsample=upsample)
    images = network(torch.rand(2, channels, *size) * 2 - 1)
    assert images.shape == (2, channels, *size)
    assert images.abs().max() <= 1
    assert images.std() > 0


@pytest.mark.parametrize("build", [resnet, unet])
def test_an_image_depends_on_no_other(build):
    network, images = build(), torch.rand(4, 3, 24, 20) * 2 - 1
    torch.testing.assert_close(network(images)[2:3], network(images[2:3]))


@pytest.mark.parametrize("build", [resnet, unet])
def test_padding_changes_nothing_that_fits(build):
    network, images = build(), torch.rand(1, 3, 32, 32) * 2 - 1
    padded, crop = reflect_to(images, multiple=network.multiple, smallest=network.smallest)
    assert padded is images and crop(images) is images


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13])
def test_reflection_is_that_of_torch_and_can_be_taken_off_again(side):
    images = torch.rand(1, 2, side, 16)
    padded, crop = reflect_to(images, multiple=8, smallest=8)
    assert padded.shape[2] % 8 == 0 and padded.shape[2] >= side
    assert torch.equal(crop(padded), images)
    before = (padded.shape[2] - side) // 2
    after = padded.shape[2] - side - before
    if after < side:
        assert torch.equal(padded, F.pad(images, (0, 0, before, after), mode="reflect"))
    if side == 1:
        assert torch.equal(padded, images.expand(1, 2, 8, 16))


def test_features_are_what_the_encoder_passes_on():
    network, images = resnet(), torch.rand(2, 3, 32, 32) * 2 - 1
    code, maps = network.features(images, [0, 1, 2, 4, 7, 10, 11])
    torch.testing.assert_close(code, network.encoder(images))
    assert torch.equal(maps[0], images)
    assert [tuple(x.shape[1:]) for x in maps[1:]] == [
        (4, 32, 32), (4, 32, 32), (8, 16, 16), (16, 8, 8), (16, 8, 8), (16, 8, 8),
    ]
    torch.testing.assert_close(maps[1], network.encoder[0](images))
    torch.testing.assert_close(maps[2], InstanceNorm()(maps[1]))       # not what a ReLU in place would have left
    assert (maps[2] < 0).any()
    torch.testing.assert_close(maps[-1], code)


def test_the_published_generators_have_their_number_of_weights():
    count = lambda network: sum(p.numel() for p in network.parameters())  # noqa: E731
    assert count(ResNetGenerator(3, 64, blocks=9, upsample="transposed")) == 11_378_179
    assert count(ResNetGenerator(3, 64, blocks=6, upsample="transposed")) == 7_837_699
    unet = UNetGenerator(3, 64, halvings=8, upsample="transposed")
    assert count(unet) == pytest.approx(54.414e6, rel=2e-4)  # published with gain and bias of batch norms
    assert count(PatchGAN(3, 64, layers=3)) == 2_764_737
    assert count(PatchGAN(6, 64, layers=3)) == 2_767_809


def test_the_unet_drops_features_in_the_published_layers():
    network = UNetGenerator(3, 4, halvings=8, dropout=0.5, dropout_layers=3)
    dropping = [any(isinstance(m, nn.Dropout) for m in layer) for layer in network.up]
    assert dropping == [False, True, True, True, False, False, False, False]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_logit_sees_a_patch_of_the_stated_width(layers):
    torch.manual_seed(0)
    network = PatchGAN(1, 4, layers=layers, norm="none", init_std=0.2)
    images = torch.randn(1, 1, 128, 128, requires_grad=True)
    logits = network(images)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], images)
    touched = gradient[0, 0].abs().amax(0) > 0
    assert int(touched.sum()) == receptive_field(layers) == {1: 16, 2: 34, 3: 70}[layers]


@pytest.mark.parametrize("norm", ["instance", "spectral", "none"])
@pytest.mark.parametrize("size", [(64, 64), (3, 9), (40, 17)])
def test_patchgan_gives_float32_logits_at_any_size(norm, size):
    network = PatchGAN(2, 4, layers=2, norm=norm)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(3, 2, *size))
    assert logits.dtype == torch.float32
    assert logits.shape[:2] == (3, 1) and torch.isfinite(logits).all()


def test_spectral_norm_makes_every_layer_one():
    torch.manual_seed(0)
    network = PatchGAN(3, 8, layers=2, norm="spectral")
    for _ in range(30):
        network(torch.rand(1, 3, 16, 16))
    for layer in network.steps:
        if isinstance(layer, nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.05)


def test_weights_start_as_published():
    weight = ResNetGenerator(3, 32, blocks=2).encoder[10].layers[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02)
