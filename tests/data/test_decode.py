"""Every mode, depth and orientation of an image file comes out as the same kind of bytes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.data.decode import Wanted, decode, fit_images, header, parse_channels, parse_size
from aigc.errors import UserError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(data: bytes, channels: int = 3) -> list[int]:
    """The top left pixel at the file's own size."""
    return decode(data, size=header(data)[0], channels=channels)[:, 0, 0].tolist()


@pytest.mark.parametrize(("mode", "value", "grey", "expected"), [
    ("L", 77, True, [77, 77, 77]),
    ("1", 1, True, [255, 255, 255]),
    ("RGB", (10, 20, 30), False, [10, 20, 30]),
    ("RGBA", (200, 100, 0, 255), False, [200, 100, 0]),
    ("RGBA", (200, 100, 0, 0), False, [255, 255, 255]),
    ("RGBA", (200, 100, 0, 51), False, [244, 224, 204]),     # a fifth of it on white
    ("LA", (100, 51), True, [224, 224, 224]),
    ("I;16", 257 * 100, True, [100, 100, 100]),
])
def test_png_modes(mode: str, value: object, grey: bool, expected: list[int]) -> None:
    data = encoded(Image.new(mode, (3, 2), value))  # type: ignore[arg-type]
    assert header(data) == ((2, 3), grey)
    assert pixel(data) == expected


def test_palette_with_and_without_a_transparent_entry() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 120, 10])
    assert pixel(encoded(image)) == [250, 120, 10]
    assert pixel(encoded(image, transparency=1)) == [255, 255, 255]
    assert pixel(encoded(image, "GIF")) == [250, 120, 10]


def test_other_formats_cmyk_float_and_16_bit_tiff() -> None:
    assert pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG", quality=100)) == [255, 255, 255]
    assert pixel(encoded(Image.fromarray(np.full((4, 4), 0.2, np.float32)), "TIFF")) == [51, 51, 51]
    assert pixel(encoded(Image.fromarray(np.full((4, 4), 65535, np.uint16)), "TIFF")) == [255, 255, 255]
    assert pixel(encoded(Image.new("I", (4, 4), 257 * 100), "TIFF")) == [100, 100, 100]
    assert pixel(encoded(Image.new("RGB", (8, 8), (9, 99, 199)), "WEBP", lossless=True)) == [9, 99, 199]


def test_grey_from_colour_is_luma() -> None:
    assert pixel(encoded(Image.new("RGB", (2, 2), (255, 0, 0))), channels=1) == [76]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_turns_the_picture_upright(orientation: int, kind: str) -> None:
    upright = np.zeros((16, 24), np.uint8)
    upright[:8, :8] = 255                                              # a bright top left corner
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
            6: np.rot90, 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(undo(upright))), kind, exif=exif)
    assert header(data)[0] == (16, 24)
    found = decode(data, size=(16, 24), channels=1)[0].float()
    assert (found - torch.from_numpy(upright).float()).abs().mean() < 3


def test_other_shapes_are_cropped_padded_or_stretched() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, :10], pixels[:, 10:20], pixels[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = encoded(Image.fromarray(pixels))
    crop, pad, stretch = (decode(data, size=(30, 30), channels=3, fit=fit) for fit in ("crop", "pad", "stretch"))
    assert crop[:, 15, 15].tolist() == [0, 255, 0] and crop[1].float().mean() > 240      # the middle third alone
    assert pad[:, 0, 15].tolist() == [255, 255, 255] and pad[:, 15, 2].tolist() == [255, 0, 0]
    assert stretch[:, 0, 2].tolist() == [255, 0, 0] and stretch[:, 29, 27].tolist() == [0, 0, 255]


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = decode(encoded(Image.fromarray(checks.astype(np.uint8))), size=(8, 8), channels=1)
    assert (small.float() - 127.5).abs().max() < 12


def test_a_large_jpeg_decoded_small_looks_as_decoded_whole() -> None:
    ramp = np.linspace(0, 255, 512).astype(np.uint8)[None, :].repeat(512, 0)
    small = decode(encoded(Image.fromarray(ramp), "JPEG", quality=95), size=(16, 16), channels=1)[0].float()
    expected = torch.from_numpy(ramp.reshape(16, 32, 16, 32).mean((1, 3))).float()
    assert (small - expected).abs().max() < 4


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(Image.new("RGB", (64, 64), "red"))[:-40],
                                  encoded(Image.effect_noise((64, 64), 60), "JPEG")[:900]])
def test_broken_files_raise(data: bytes) -> None:
    with pytest.raises((OSError, SyntaxError)):
        decode(data, size=(8, 8), channels=3)


def test_tensors_are_resized_and_recoloured_like_files() -> None:
    noise = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = fit_images(noise, size=None, channels=1)
    for k in range(3):
        file = encoded(Image.fromarray(noise[k].permute(1, 2, 0).numpy()))
        assert (grey[k].int() - decode(file, size=(20, 20), channels=1).int()).abs().max() <= 1
        small = decode(file, size=(10, 10), channels=3)
        assert (fit_images(noise, size=(10, 10), channels=None)[k].int() - small.int()).abs().max() <= 2


def test_options_are_checked() -> None:
    assert parse_size(28) == (28, 28) and parse_size([20, 30]) == (20, 30) and parse_size(None) is None
    assert parse_channels("auto") is None and parse_channels(1) == 1
    for call, word in ((lambda: parse_size("big"), "data.size"), (lambda: parse_size([1, 2, 3]), "data.size"),
                       (lambda: parse_size(0), "data.size"), (lambda: parse_channels(4), "data.channels"),
                       (lambda: Wanted(fit="corp"), "did you mean 'crop'")):
        with pytest.raises(UserError, match=word):
            call()


def test_halves_of_one_file_become_two_images_that_do_not_bleed_into_each_other() -> None:
    image = Image.new("RGB", (13, 8), (200, 0, 0))           # an odd column is left over
    image.paste((0, 0, 100), (6, 0, 12, 8))
    both = decode(encoded(image), size=(5, 7), channels=3, fit="stretch", halves=True)
    assert both.shape == (6, 5, 7)
    assert [both[c].unique().tolist() for c in range(6)] == [[200], [0], [0], [0], [0], [100]]
    grey = decode(encoded(image), size=(8, 6), channels=1, halves=True)
    assert [grey[c].unique().tolist() for c in range(2)] == [[60], [11]]
