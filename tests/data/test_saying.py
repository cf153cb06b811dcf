"""Captions made of class names, and captions reworded in training: the same in every run, on any number of devices."""

from pathlib import Path

import pytest
import torch

from aigc.data.batches import TrainBatches
from aigc.data.digits import Digits
from aigc.data.folder import ImageFolder
from aigc.data.saying import rewording_of
from aigc.data.shapes import Shapes
from aigc.data.split import Split
from aigc.errors import UserError
from tests.stand_ins import picture, write

LIST = "noto emoji, cat, animal, pet, cute"
KEYWORDS = {"separator": ", ", "drop": 0.5, "shuffle": True}


def test_captions_are_made_of_the_names_of_classes(tmp_path: Path) -> None:
    data = Digits(batch_size=4, caption="the digit {label}", names=[f"d{k}" for k in range(10)])
    data.setup()
    assert data.kind == "captioned" and data.class_names == [str(k) for k in range(10)]
    for split in ("train", "validation", "test"):
        assert data.texts(split) == [f"the digit d{k}" for k in data.labels(split).tolist()]
    assert data.split("train").batch(torch.arange(3))["text"] == data.texts("train", limit=3)
    plain = Digits(batch_size=4)
    plain.setup()
    assert plain.texts("train") is None and plain.fingerprint == "2c1bb1bb8e18a732" != data.fingerprint
    pets = write(tmp_path / "pets", {f"{kind}/{k}.png": picture(ending="PNG") for kind in ("cat", "dog")
                                     for k in range(8)})
    folder = ImageFolder(path=str(pets), batch_size=4, caption="a {label}", size=16)
    folder.setup()
    assert set(folder.texts("train")) == {"a cat", "a dog"} and folder.kind == "captioned"


@pytest.mark.parametrize(("options", "said"), [
    ({"caption": "a digit"}, r"data.caption='a digit' has no \{label\}: put it where"),
    ({"caption": "a {label}", "names": ["one"]}, "data.names are 1 name for 10 classes: give one for each"),
    ({"rewording": {"droop": 0.5}}, r"data.rewording has no option 'droop': did you mean 'drop'\?"),
    ({"rewording": {"drop": 0.5}}, "data.rewording drops or shuffles keywords without a separator"),
    ({"rewording": {"templates": ["a {}"]}}, "data.rewording has templates alone: give both templates, and template"),
    ({"rewording": {"templates": ["a"], "template": 0.5}}, r"data.rewording.templates has 'a': put \{\}"),
])
def test_what_cannot_be_said_is_one_sentence(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Digits(batch_size=4, **options).setup()


def test_captions_of_images_without_classes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {f"{k}.png": picture(ending="PNG") for k in range(8)})
    data = ImageFolder(path=str(tmp_path), batch_size=4, caption="a {label}", size=16)
    with pytest.raises(UserError, match=r"needs classes, and .* has none: leave it out"):
        data.setup()


def test_training_captions_are_reworded_by_their_place_in_the_stream() -> None:
    n = 12
    split = Split(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), texts=[f"{LIST}, {k}" for k in range(n)])

    def texts(rank: int = 0, world: int = 1, batch_size: int = 8, batches: int = 6, seed: int = 0) -> list[list[str]]:
        made = TrainBatches(split, batch_size=batch_size, seed=seed, rank=rank, world=world, flip=False,
                            rewording=rewording_of(KEYWORDS))
        return [made[k]["text"] for k in range(batches)]

    state = torch.get_rng_state()
    whole = texts()
    assert torch.equal(state, torch.get_rng_state())                    # a run's other draws do not depend on it
    halves = zip(texts(0, 2, 4), texts(1, 2, 4), strict=True)
    assert whole == texts() == [one + other for one, other in halves] != texts(seed=1)
    assert all(text.startswith("noto emoji") for batch in whole for text in batch)
    flat = [text for batch in whole for text in batch]
    assert len(set(flat)) > 30 and {word for text in flat for word in text.split(", ")} >= {"cat", "pet", "11"}
    assert 1.9 < sum(text.count(",") for text in flat) / len(flat) < 3.1   # half of five keywords


def test_only_training_captions_are_reworded_and_the_vocabulary_has_the_words() -> None:
    said = {"synonyms": {"small": ["wee"]}, "replace": 1.0, "templates": ["behold {}"], "template": 1.0}
    data = Shapes(batch_size=8, train=40, validation=8, test=8, heldout=8, size=16, rewording=said)
    data.setup()
    train, held = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert all(text.startswith("behold a ") and "small" not in text for text in train["text"])
    assert held["text"] == [data.texts("validation")[k] for k in held["index"]]
    assert set(data.texts_read()) - set(data.texts("train")) == {"wee", "behold  "}
