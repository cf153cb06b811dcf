"""The one preprocessing before every feature network."""

import torch

from aigc.images.grids import to_uint8
from aigc.networks.fingerprint import state_sha256


def test_clamps_and_rounds():
    images = torch.tensor([-1.7, -1.0, -1 + 1.4 / 255, 0.0, 1 - 0.9 / 255, 1.0, 2.0])
    assert to_uint8(images).tolist() == [0, 0, 1, 128, 255, 255, 255]


def test_every_byte_survives_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(pixels.float() / 127.5 - 1), pixels)
    assert to_uint8(pixels) is pixels


def test_the_input_is_left_alone():
    images = torch.full((2, 2), 3.0)
    to_uint8(images)
    assert images.tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_sha256_sees_names_shapes_and_values():
    one = {"a": torch.ones(2, 3), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.ones(2, 3)}
    others = [{**one, "a": torch.ones(3, 2)}, {**one, "b": torch.tensor(2)}, {"c": one["a"], "b": one["b"]}]
    assert state_sha256(one) == state_sha256(same)
    assert len({state_sha256(state) for state in [one, *others]}) == 4
