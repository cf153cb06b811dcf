"""The oracle reads what was rendered; a small one is trained here, the full one's accuracy is in its module."""

import pytest
import torch

from aigc.data.scenes import COLUMNS, Scenes
from aigc.files.cache import cache_folder, keep_cached
from aigc.scoring.networks import oracle as module
from aigc.scoring.networks.oracle import ShapesOracle, agreement, clear, shapes_oracle, train_oracle


@pytest.fixture(scope="module")
def small() -> ShapesOracle:
    """Six seconds on one core: 150 steps on single objects of 24 px."""
    torch.set_num_threads(1)
    return train_oracle((24, 24), objects="1", pool=6400, epochs=3, width=12)


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_a_small_oracle_reads_single_objects(small: ShapesOracle, split: str) -> None:
    scenes = Scenes(0, split, objects="1", size=(24, 24))
    index = torch.arange(1000)
    scores = agreement(small.read(scenes.images(index)), scenes.attributes(index))
    assert set(scores) == {"count", "size", "colour", "shape", "background", "all"}
    assert min(scores[name] for name in ("count", "size", "colour", "background")) >= 0.98, scores
    assert scores["shape"] >= 0.90, scores


def test_reading_does_not_depend_on_the_batch_and_leaves_out_what_is_not_there(small: ShapesOracle) -> None:
    images = Scenes(0, "test", objects="1", size=(24, 24)).images(torch.arange(50))
    found = small.read(images)
    assert torch.equal(found, small.read(images, batch_size=7))
    assert found.shape == (50, len(COLUMNS)) and found.dtype == torch.int64
    assert (found[found[:, 0] == 1][:, [1, 5, 6, 7]] == -1).all()


def test_other_sizes_are_shrunk_to_the_oracles_own(small: ShapesOracle) -> None:
    scenes = Scenes(0, "test", objects="1", size=(48, 48))
    index = torch.arange(300)
    scores = agreement(small.read(scenes.images(index)), scenes.attributes(index))
    assert scores["colour"] >= 0.97 and scores["count"] >= 0.97, scores


def test_clear_is_one_known_shape_with_sharp_outlines() -> None:
    oracle, index = shapes_oracle((32, 32)), torch.arange(500)
    real = Scenes(0, "test", size=(32, 32)).images(index)

    def share(images: torch.Tensor) -> float:
        return clear(oracle, images).float().mean().item()

    def blurred(window: int) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(real.float(), window, 1, window // 2, count_include_pad=False).byte()

    assert share(real) >= 0.995 and share(Scenes(0, "heldout", size=(32, 32)).images(index)) >= 0.995
    assert 0.7 < share(blurred(3)) < 0.95 and share(blurred(5)) < 0.55
    assert share(Scenes(0, "test", objects="2", size=(32, 32)).images(index)) < 0.01
    assert share(real.flip(0) // 2 + real // 2) < 0.5            # two scenes, each half transparent
    assert share(real[:, :, :1, :1].expand_as(real)) < 0.02        # bare ground


def test_agreement_counts_only_what_was_asked_for() -> None:
    asked = torch.tensor([[1, -1, 0, 3, 2, -1, -1, -1, 0], [2, 1, 0, 3, 2, 1, 4, 4, 0]])
    found = asked.clone()
    found[:, 8] = 1
    assert agreement(found, asked)["all"] == agreement(found, asked)["background"] == 0.0
    asked[:, 8] = -1                                                     # captions do not name the background
    assert agreement(found, asked)["all"] == 1.0 and "background" not in agreement(found, asked)
    found[1, 6] = 0
    scores = agreement(found, asked)
    assert (scores["all"], scores["colour2"], scores["colour"], scores["relation"]) == (0.5, 0.0, 1.0, 1.0)
    found[0, 0] = 2  # another object appeared
    assert agreement(found, asked)["all"] == 0.0


def test_it_is_trained_once_and_then_read_from_the_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def once(size: tuple[int, int], **_: object) -> ShapesOracle:
        calls.append(size)
        torch.manual_seed(len(calls))
        return ShapesOracle(size)

    monkeypatch.setattr(module, "train_oracle", once)
    images = Scenes(0, "test", size=(24, 32)).images(torch.arange(20))
    first, second = shapes_oracle((24, 32)), shapes_oracle((24, 32))
    assert calls == [(24, 32)]
    assert torch.equal(first.read(images), second.read(images))
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    (key,) = [path.stem for path in cache_folder().glob("oracle-*-24x32.pt")]
    wrong = {**first.state_dict(), "where.bias": torch.zeros(3)}
    for odd in (wrong, {**wrong, "where.bias": first.where.bias * torch.nan}, [1]):
        keep_cached(key, odd)
        calls.clear()
        again = shapes_oracle((24, 32))
        assert calls == [(24, 32)] and torch.equal(again.read(images), first.read(images))
        assert f"the oracle in the cache folder ({key}.pt) is another's: training one in its place" in caplog.text


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_oracle((16, 16), objects="1", pool=256, epochs=1, width=4)
    assert torch.equal(torch.rand(3), expected)
