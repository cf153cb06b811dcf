"""Values beyond 8 bits: one range for a whole set, from its extremes or as given."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.data.decode import decode
from aigc.data.folder import ImageFolder
from aigc.data.values import Extremes, range_of, recorded
from aigc.errors import UserError
from aigc.scoring.sources import FolderSource, share_ranges


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel from `(h, w, c)`: grey, grey and alpha, colour, or colour and alpha."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)),
             (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def folder(root: Path, *levels: float, kind: str = "uint16", ending: str = "png") -> Path:
    """Grey images of one value each."""
    root.mkdir()
    for k, level in enumerate(levels):
        Image.fromarray(np.full((4, 4), level, kind)).save(root / f"{k}.{ending}")
    return root


def load(root: Path, **options: object) -> ImageFolder:
    data = ImageFolder(path=str(root), batch_size=2, validation=0, test=0, **options)  # type: ignore[arg-type]
    data.setup()
    return data


@pytest.mark.parametrize(("kind", "ending", "levels", "expected", "words"), [
    ("uint16", "png", (0, 2048, 4095), [0, 128, 255], "values 0 to 4,095 taken as 12 bits (0 to 4095)"),
    ("uint16", "png", (0, 512, 1000), [0, 128, 249], "taken as 10 bits (0 to 1023)"),
    ("uint16", "png", (0, 257 * 100, 65535), [0, 100, 255], "taken as 16 bits (0 to 65535)"),
    ("uint16", "png", (0, 100, 255), [0, 100, 255], "taken as 8 bits (0 to 255)"),
    ("uint16", "tif", (0, 1, 1), [0, 255, 255], "taken as 1 bit (0 to 1)"),
    ("int32", "tif", (-1000, 0, 1000), [0, 128, 255], "values -1,000 to 1,000: black to white"),
    ("int32", "tif", (0, 50_000, 100_000), [0, 128, 255], "values 0 to 100,000: black to white"),
    ("float32", "tif", (-1, 0, 1), [0, 128, 255], "taken as -1 to 1"),
    ("float32", "tif", (-0.5, 0, 0.25), [64, 128, 159], "taken as -1 to 1"),
    ("float32", "tif", (0, 0.2, 1.005), [0, 51, 255], "taken as 0 to 1"),
    ("float32", "tif", (0, 51, 200), [0, 51, 200], "taken as 0 to 255"),
    ("float32", "tif", (-1024, 0, 3072), [0, 64, 255], "values -1,024 to 3,072: black to white"),
])
def test_one_range_for_the_set_from_its_extremes(
    tmp_path: Path, kind: str, ending: str, levels: tuple, expected: list[int], words: str
) -> None:
    data = load(folder(tmp_path / "set", *levels, kind=kind, ending=ending))
    assert data.images("train")[:, 0, 0, 0].tolist() == expected
    assert words in data.found()[0]


def test_a_given_range_cuts_what_exceeds_it_and_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", -1000, 0, 500, 2000, kind="int32", ending="tif")
    given, found = load(root, range=[0, 1000]), load(root)
    assert given.images("train")[:, 0, 0, 0].tolist() == [0, 0, 128, 255]
    assert "values from 0 (black) to 1000 (white)" in given.found()[0]
    assert given.fingerprint != found.fingerprint
    shallow = folder(tmp_path / "shallow", 0, 8, 16, kind="uint8")
    assert load(shallow, range=[0, 16]).images("train")[:, 0, 0, 0].tolist() == [0, 128, 255]
    assert load(shallow).images("train")[:, 0, 0, 0].tolist() == [0, 8, 16]
    for wrong in ([3, 3], [1], "x", [0, float("nan")], 5, [True, 7]):
        with pytest.raises(UserError, match=r"data\.range must be two numbers"):
            load(shallow, range=wrong)


def test_the_held_out_images_have_the_range_of_all(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    folder(tmp_path / "set" / "train", 0, 100)
    folder(tmp_path / "set" / "test", 4000)
    data = load(tmp_path / "set")
    assert data.images("test")[0, 0, 0, 0] == round(4000 / 4095 * 255)
    assert data.images("train")[:, 0, 0, 0].tolist() == [0, 6]


def test_files_of_8_bits_stay_as_they_are_beside_deeper_ones(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", 0, 4095)
    Image.new("L", (4, 4), 77).save(root / "z.png")
    data = load(root)
    assert data.images("train")[:, 0, 0, 0].tolist() == [0, 255, 77]
    assert "taken as 12 bits (0 to 4095), 0 to 255 in files of 8 bits" in data.found()[0]


def test_floats_among_whole_numbers_are_refused_without_a_range(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", 0, 4095)
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(root / "z.tif")
    with pytest.raises(UserError, match=r"hold floats from 0.5 to 0.5 and whole numbers from 0 to 4095: say"):
        load(root)
    assert load(root, range=[0, 4095]).images("train")[:, 0, 0, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_broken(tmp_path: Path, bad: float) -> None:
    root = folder(tmp_path / "set", 0, 1, bad, kind="float32", ending="tif")
    with pytest.raises(UserError, match=r"1 of 3 images .*: 2\.tif \(it holds NaN or infinite values\)"):
        load(root)
    data = load(root, skip_broken=True)
    assert data.images("train")[:, 0, 0, 0].tolist() == [0, 255] and "2.tif (it holds NaN" in data.found()[1]


def test_colour_of_16_bits_keeps_its_lower_bits(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    values = np.array([0, 1024, 4095], np.uint16)[None, None].repeat(4, 0).repeat(4, 1)
    for k in range(2):
        (tmp_path / "set" / f"{k}.png").write_bytes(png16(values))
    data = load(tmp_path / "set")
    assert data.channels == 3 and data.images("train")[0, :, 0, 0].tolist() == [0, 64, 255]
    half = np.array([1000, 1000, 1000, 32768], np.uint16)[None, None]
    assert decode(png16(half), size=(1, 1), channels=3, limits=(0, 1000))[:, 0, 0].tolist() == [255] * 3
    assert decode(png16(half * [0, 0, 0, 1]), size=(1, 1), channels=3, limits=(0, 1000))[0, 0, 0] == 127


def test_deep_images_stream_as_they_are_decoded(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", 0, 1000, 4095)
    memory, streamed = load(root), load(root, memory_gb=0)
    assert torch.equal(memory.images("train"), streamed.images("train"))
    assert memory.fingerprint == streamed.fingerprint


def test_a_range_is_never_empty() -> None:
    assert range_of(Extremes("integer", -5, -5))[0] == (-5, -4)
    assert range_of(Extremes("integer", 0, 0))[0] == (0, 1)


def test_pictures_that_are_evaluated_have_one_range_too(tmp_path: Path) -> None:
    source = FolderSource(folder(tmp_path / "set", 0, 100, 4095), "run")
    levels = [level for batch in source.batches(3, 2) for level in batch["image"][:, 0, 0, 0].tolist()]
    assert sorted(levels) == [0, 6, 255]


def test_8_bits_with_a_sign_keep_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for k, level in enumerate((-128, -1, 0, 127)):
        image = Image.fromarray(np.full((4, 4), level, np.int8).view(np.uint8))
        image.save(tmp_path / "set" / f"{k}.tif", tiffinfo={339: 2})
    data = load(tmp_path / "set")
    assert data.images("train")[:, 0, 0, 0].tolist() == [0, 127, 128, 255]
    assert "values -128 to 127: black to white" in data.found()[0]


def test_a_run_records_its_range_by_the_kind_of_numbers(tmp_path: Path) -> None:
    deep = load(folder(tmp_path / "deep", 0, 2048, 4095)).facts()
    assert deep["range"] == {"integer": [0, 4095]} and recorded(deep) == {"integer": (0, 4095)}
    shallow = folder(tmp_path / "shallow", 0, 16, kind="uint8")
    assert load(shallow, range=[0, 16]).facts()["range"] == {"bytes": [0, 16]} and "range" not in load(shallow).facts()
    odd = {"integer": [3, 1], "float": "x", "bytes": [0, 9], "other": None}
    assert recorded({"range": odd}) == {"bytes": (0, 9)} and recorded({"range": 5}) == recorded(None) == {}


def test_what_is_compared_has_the_range_of_the_data_or_one_of_its_own(tmp_path: Path) -> None:
    def levels(source: FolderSource) -> list[int]:
        return sorted(level for batch in source.batches(9, 2) for level in batch["image"][:, 0, 0, 0].tolist())

    first, second = (FolderSource(folder(tmp_path / name, *values), "run")
                     for name, values in (("a", (0, 1000)), ("b", (0, 4095))))
    before = first.fingerprint
    assert levels(first) == [0, 249]                                    # of ten bits, on its own
    assert share_ranges([first, second], {}) == ["values 0 to 4,095 taken as 12 bits (0 to 4095)"]
    assert levels(first) == [0, 62] and levels(second) == [0, 255] and first.fingerprint != before
    known = {"integer": (0.0, 2000.0), "bytes": (0.0, 16.0)}
    assert share_ranges([first], known) == ["values 0 to 1,000 taken as 0 to 2000, as in the run's data"]
    assert levels(first) == [0, 128]
    plain = FolderSource(folder(tmp_path / "c", 0, 16, kind="uint8"), "run")
    before = plain.fingerprint
    assert share_ranges([plain], known) == [] and levels(plain) == [0, 16] and plain.fingerprint == before
