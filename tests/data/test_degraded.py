"""Degraded data: any images as source, fixed held-out pairs, training pairs that are functions of their number."""

import pytest
import torch
from torch import Tensor

from aigc.config.explain import explain
from aigc.config.targets import instantiate
from aigc.config.words import is_path
from aigc.data.degraded import Degraded
from aigc.errors import UserError
from aigc.training.compatibility import check_compatible
from tests.conftest import compose_train

SMALL = ["data.source.train=24", "data.source.validation=12", "data.source.test=12", "data.source.size=16",
         "data.source.heldout=8"]


def data_of(*words: str) -> Degraded:
    made = instantiate(compose_train("model=restorer", "data=degraded", *SMALL, *words, common=False).data, "data")
    assert isinstance(made, Degraded)
    made.setup()
    return made


def batch(data: Degraded, number: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Training batch `number`, of a rank, as a family sees it."""
    data.start_batch = number
    loader = data.train_dataloader()
    inner = loader.dataset.batches  # type: ignore[attr-defined]
    inner.rank, inner.world, inner.batch_size = rank, world, 8 // world
    return data.prepare(next(iter(loader)), "cpu")


def test_training_pairs_depend_on_their_number_alone_and_change_every_time() -> None:
    data = data_of("data.degradations=[blur,noise,strokes]", "data.source.size=16")
    one = batch(data, 5)
    assert {key: tuple(value.shape[1:]) for key, value in one.items()} == {
        "source": (3, 16, 16), "target": (3, 16, 16), "index": (), "level": (), "mask": (1, 16, 16)}
    again = batch(data_of("data.degradations=[blur,noise,strokes]"), 5)
    assert all(torch.equal(one[key], again[key]) for key in one)
    parts = [batch(data, 5, rank, 2) for rank in (0, 1)]
    assert all(torch.equal(one[key], torch.cat([part[key] for part in parts])) for key in one)
    first, second = batch(data, 0), batch(data, 3)
    rows = {int(i): k for k, i in enumerate(second["index"])}
    both = [(k, rows[int(i)]) for k, i in enumerate(first["index"]) if int(i) in rows]
    assert both and all(torch.equal(first["target"][a], second["target"][b])
                        and not torch.equal(first["source"][a], second["source"][b]) for a, b in both)


def test_held_out_images_are_degraded_once_and_for_all() -> None:
    words = "data.degradations=[noise,boxes]"
    kept, streamed, other = data_of(words), data_of(words, "data.memory_gb=0"), data_of(words, "data.split_seed=1")
    assert not streamed.pair_split("test").a.in_memory and kept.pair_split("test").a.in_memory
    rows = torch.tensor([3, 0, 7])
    one, two, three = (data.split("test").batch(rows) for data in (kept, streamed, other))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert kept.fingerprint == streamed.fingerprint != other.fingerprint
    assert not torch.equal(one["source"], three["source"]) and one["source"].dtype == torch.uint8
    holes = one["mask"].expand(-1, 3, -1, -1) == 1
    assert holes.any() and (one["source"][holes] == 0).all()
    visible = (one["target"].float() - one["source"].float())[~holes] / 255
    assert 0.2 * one["level"].min() < visible.std() < one["level"].max()
    assert kept.fingerprint != data_of(words, "data.options.noise.sigma=0.1").fingerprint


def test_smaller_images_come_back_at_their_size_and_crops_are_cut_alike() -> None:
    data = data_of("data.degradations=[downscale]", "data.options.downscale.factor=4", "data.crop=8")
    one = batch(data, 0)
    assert one["source"].shape == one["target"].shape == (8, 3, 8, 8)
    apart = (one["source"] - one["target"]).flatten(1).std(1)
    assert apart.min() > 0 and apart.mean() < one["target"].std() and data.size == (16, 16)
    assert data.split("test").batch(torch.arange(2))["source"].shape == (2, 3, 16, 16)


def test_who_learns_without_pairs_sees_other_images_on_the_other_side() -> None:
    data = instantiate(compose_train("model=cyclegan", "data=degraded", *SMALL, common=False).data, "data")
    data.unpair()
    data.setup()
    data.batch_size = 8
    one = batch(data, 0)
    assert one.keys() == {"a", "b", "index", "level"} and not torch.equal(one["a"], one["b"])
    clean = data.split("train").b.batch(one["index"])["image"].float() / 127.5 - 1
    assert (one["a"] - clean).abs().mean() < 0.6 * (one["a"] - one["b"]).abs().mean()


def test_any_images_are_a_source_with_options_of_their_own() -> None:
    cfg = compose_train("model=pix2pix", "data=degraded", "data@data.source=digits", common=False)
    assert cfg.data.source._target_.endswith(".Digits") and check_compatible(cfg).__name__ == "Pix2Pix"
    data = instantiate(cfg.data, "data")
    data.setup()
    facts = data.facts()
    assert (facts["name"], facts["kind"], facts["channels"]) == ("degraded_digits", "paired", 1)
    assert facts["degradations"] == [{"name": "noise", "sigma": [0.0, 0.216]}]
    assert is_path("data.source.path") and is_path("+data.source.root") and not is_path("data.source")


@pytest.mark.parametrize(("words", "sentence"), [
    (["data@data.source=digts"], "'data=digts' does not exist: did you mean 'digits'"),
    (["data@data.source=huggingface", "data.source.pth=x"],
     "no option 'data.source.pth': did you mean 'data.source.path'"),
    (["data.degradation=[noise]"], "no option 'data.degradation': did you mean 'data.degradations'"),
])
def test_a_typo_is_answered_with_the_nearest_option(words: list[str], sentence: str) -> None:
    typed = ["model=restorer", "data=degraded", *words]
    with pytest.raises(Exception) as caught:
        compose_train(*typed, common=False)
    assert sentence in explain(caught.value, typed, "train")


@pytest.mark.parametrize(("words", "sentence"), [
    (["data@data.source=shapes_paired"], "data.source=shapes_paired gives paired images, and data=degraded makes"),
    (["data.degradations=[nois]"], "data.degradations names 'nois', which is no degradation: did you mean 'noise'"),
    (["data.options.noise.sigma=20"], "noise.sigma=20 does not fit"),
    (["data.source.objects=7"], "unknown data.objects '7'"),
    (["data.crop=2"], "data.crop must be a whole number of at least 8 or null"),
])
def test_what_does_not_fit_is_refused_before_any_work(words: list[str], sentence: str) -> None:
    cfg = compose_train("model=restorer", "data=degraded", *words, common=False)
    with pytest.raises(UserError, match=sentence):
        instantiate(cfg.data, "data")
