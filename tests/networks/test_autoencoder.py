"""The convolutional encoder and decoder: any size and channels, the factor, and where blocks start."""

import pytest
import torch

from aigc.networks.autoencoder import Block, Decoder, Encoder

SHAPE = {"widths": [8, 16, 16], "blocks": [0, 1, 1]}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(28, 28), (17, 23), (4, 1), (32, 20)])
def test_any_size_and_channels_come_back_as_they_were(size, channels):
    encoder, decoder = Encoder(channels, 5, **SHAPE), Decoder(channels, 5, **SHAPE)
    latents = encoder(torch.randn(2, channels, *size))
    assert latents.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4)) and encoder.multiple == 4
    assert decoder(latents, size).shape == (2, channels, *size)
    assert decoder(latents).shape == (2, channels, 4 * latents.shape[2], 4 * latents.shape[3])


def test_an_images_own_pixels_are_not_moved_by_the_padding():
    torch.manual_seed(0)
    encoder = Encoder(1, 3, **SHAPE)
    images = torch.randn(1, 1, 30, 29)
    padded = torch.nn.functional.pad(images, (0, 3, 0, 2), mode="replicate")
    torch.testing.assert_close(encoder(images), encoder(padded))


def test_blocks_start_as_the_identity_and_everything_learns():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(Block(8, 8)(x), x)
    encoder, decoder = Encoder(3, 4, **SHAPE, heads=2), Decoder(3, 4, **SHAPE, heads=2)
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    decoder(encoder(torch.randn(2, 3, 8, 8))).square().sum().backward()
    still = [name for net in (encoder, decoder) for name, p in net.named_parameters() if not p.grad.any()]
    assert still == []


def test_outputs_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        latents = Encoder(1, 3, **SHAPE)(torch.randn(1, 1, 8, 8))
        assert latents.dtype == torch.float32
        assert Decoder(1, 3, **SHAPE)(latents).dtype == torch.float32
