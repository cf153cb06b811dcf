"""Grids of images as one picture."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.images.grids import GAP, LINE, TONE, grid, save_grid


def test_rows_columns_and_gaps():
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 3, 4) * 10
    picture = grid(images, columns=2, scale=1)
    assert picture.shape == (3 * (3 + GAP) - GAP, 2 * (4 + GAP) - GAP)
    corners = [int(picture[y * (3 + GAP), x * (4 + GAP)]) for y in range(3) for x in range(2)]
    assert corners == [0, 10, 20, 30, 40, TONE]
    assert (picture[3] == TONE).all() and (picture[:, 4] == TONE).all()


def test_floats_become_what_a_png_holds():
    picture = grid(torch.tensor([-1.0, 0.0, 1.0, 9.0]).reshape(4, 1, 1, 1), columns=4, scale=1)
    assert picture[0, :: 1 + GAP].tolist() == [0, 128, 255, 255]


@pytest.mark.parametrize(("channels", "shape"), [(1, (56, 56)), (2, (56, 56)), (3, (56, 56, 3)), (5, (56, 56, 3))])
def test_any_channels_enlarged_to_be_seen(channels, shape):
    assert grid(torch.zeros(1, channels, 28, 28)).shape == shape


def test_large_images_stay_as_they_are():
    assert grid(torch.zeros(4, 3, 100, 80)).shape == (202, 162, 3)


def test_words_above_rows_and_columns():
    images = torch.zeros(4, 1, 60, 60)
    plain = grid(images, columns=2, scale=1)
    titled = grid(images, columns=2, scale=1, titles=["input", "made"])
    assert titled.shape == (plain.shape[0] + LINE, plain.shape[1]) and np.array_equal(titled[LINE:], plain)
    words = titled[:LINE] != TONE
    assert words[:, :60].any() and words[:, 62:].any() and not words[:, 60:62].any()
    short = grid(images, columns=2, scale=1, captions=["one", "two"])
    long = grid(images, columns=2, scale=1, captions=["one", "a large red circle left of a small blue square"])
    assert short.shape[0] == plain.shape[0] + 2 * LINE
    lines = (long.shape[0] - plain.shape[0]) // LINE - 1                         # of the second row's words
    assert lines >= 2 and np.array_equal(long[: LINE + 60], short[: LINE + 60])
    second = LINE + 60 + GAP
    assert all((long[second + k * LINE :][:LINE] != TONE).any() for k in range(lines))
    first = grid(images, columns=2, scale=1, captions=["one", ""])
    assert first.shape[0] == plain.shape[0] + LINE and np.array_equal(first[LINE:], plain)


def test_a_png_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    images = torch.rand(6, 3, 8, 8) * 2 - 1
    path = save_grid(images, tmp_path / "deep" / "grid.png", columns=3)
    assert np.array_equal(np.asarray(Image.open(path)), grid(images, columns=3))
    before = path.read_bytes()

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_grid(-images, path)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["grid.png"]
