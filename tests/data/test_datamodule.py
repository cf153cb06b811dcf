"""What every data set does: facts, resume, conversion, and the same batches from memory and from workers."""

import itertools
import json
from pathlib import Path

import lightning as L
import pytest
import torch

from aigc.data.datamodule import ImageData
from aigc.data.digits import Digits
from aigc.data.folder import ImageFolder
from aigc.data.shape_pairs import ShapesPaired
from aigc.data.shapes import Shapes
from aigc.data.vision import NONE_STATED, Vision
from aigc.errors import UserError
from aigc.runs.progress import Progress


def shapes(**options: object) -> Shapes:
    return Shapes(**{"batch_size": 8, "train": 40, "validation": 9, "test": 9, "heldout": 9, "size": 16,
                     "objects": "mixed", "seed": 3, **options})  # type: ignore[arg-type]


def take(loader: object, n: int) -> list[dict]:
    return list(itertools.islice(iter(loader), n))  # type: ignore[call-overload]


def test_streaming_gives_the_same_batches_as_memory_with_any_number_of_workers() -> None:
    in_memory = shapes()
    expected = take(in_memory.train_dataloader(), 7)
    measured = list(in_memory.eval_dataloader("test", limit=7, batch_size=3))
    for workers in (0, 2):
        streamed = shapes(memory_gb=1e-9, workers=workers)
        assert streamed.split("train").in_memory is False
        assert streamed.train_dataloader().num_workers == workers
        assert streamed.fingerprint == in_memory.fingerprint
        for got, want in zip(take(streamed.train_dataloader(), 7), expected, strict=True):
            assert torch.equal(got["image"], want["image"])
            assert torch.equal(got["label"], want["label"])
            assert got["text"] == want["text"]
        for got, want in zip(streamed.eval_dataloader("test", limit=7, batch_size=3), measured, strict=True):
            assert torch.equal(got["image"], want["image"])
        assert torch.equal(streamed.images("test", limit=5), in_memory.images("test", limit=5))


def test_the_training_loader_is_endless_and_starts_where_it_is_told() -> None:
    data = shapes()
    unbroken = take(data.train_dataloader(), 12)
    with pytest.raises(TypeError):
        len(data.train_dataloader())
    data.start_batch = 9
    for got, want in zip(take(data.train_dataloader(), 3), unbroken[9:], strict=True):
        assert torch.equal(got["image"], want["image"])


def test_bytes_become_floats_between_minus_one_and_one() -> None:
    batch = {"image": torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3), "index": torch.zeros(1)}
    image = Digits(batch_size=1).prepare(batch, "cpu")["image"]
    assert image.dtype == torch.float32
    assert image.flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert image.max().item() == 1.0 and batch["image"].dtype == torch.uint8


def test_splits_are_disjoint_and_depend_on_the_split_seed_alone() -> None:
    def rows(data: Digits) -> dict[str, set[bytes]]:
        return {s: {x.numpy().tobytes() for x in data.images(s)} for s in ("train", "validation", "test")}

    first, other_run = Digits(batch_size=4), Digits(batch_size=4, seed=9)
    other_split = Digits(batch_size=4, split_seed=1)
    parts = rows(first)
    assert [first.count(s) for s in parts] == [1455, 162, 180]
    assert len(parts["train"] | parts["validation"] | parts["test"]) == 1797  # no two digits are equal: no overlap
    assert rows(other_run) == parts and other_run.fingerprint == first.fingerprint
    assert rows(other_split) != parts and other_split.fingerprint != first.fingerprint


def test_the_fingerprint_changes_with_pixels_and_preprocessing() -> None:
    prints = {_print(Digits(batch_size=4, **options))
              for options in ({}, {"size": 16}, {"channels": 3}, {"validation": 0.2})}
    prints |= {_print(shapes(**options)) for options in ({}, {"size": 20}, {"objects": 1}, {"train": 41})}
    assert len(prints) == 8
    assert _print(Digits(batch_size=64)) in prints  # the batch size is not part of it


def _print(data: ImageData) -> str:
    data.setup()
    return data.fingerprint


def test_digits_at_another_size_and_in_colour() -> None:
    data = Digits(batch_size=4, size=[16, 12], channels=3)
    data.setup()
    assert (data.channels, data.size, data.classes) == (3, (16, 12), 10)
    image = data.images("train")
    assert torch.equal(image[:, 0], image[:, 2])
    original = Digits(batch_size=4).images("train")
    assert image.float().mean().item() == pytest.approx(original.float().mean().item(), abs=3)


def test_resume_refuses_other_data_seed_or_global_batch_in_one_sentence() -> None:
    data = shapes()
    state = {**data.state_dict(), "batches": 17}
    data.load_state_dict(state)
    assert data.start_batch == 17
    for changed, word in (({"seed": 4}, "seed"), ({"batch_size": 4}, "global batch"), ({"objects": 2}, "data"),
                          ({"train": 41}, "number of training images")):
        with pytest.raises(UserError, match=f"cannot resume: the checkpoint's {word}"):
            shapes(**changed).load_state_dict(state)


def test_resume_takes_the_same_data_under_another_name(tmp_path: Path) -> None:
    for name in ("before", "after", "other"):
        (tmp_path / name).mkdir()
        for i in range(10):
            level = i + 100 * (name == "other")
            (tmp_path / name / f"{i}.pgm").write_bytes(b"P5 2 2 255\n" + bytes([level] * 4))
    before, after, other = (ImageFolder(path=str(tmp_path / n), batch_size=2) for n in ("before", "after", "other"))
    state = {**before.state_dict(), "batches": 3}
    after.load_state_dict(state)
    assert (after.start_batch, after.fingerprint) == (3, before.fingerprint)
    with pytest.raises(UserError, match="the checkpoint's data is"):
        other.load_state_dict(state)
    del state["name"]                                            # as earlier versions saved it,
    state["fingerprint"] = before._fingerprint("before")         # whose fingerprints held the folder's name
    before.load_state_dict(state)
    with pytest.raises(UserError, match="the checkpoint's data is"):
        ImageFolder(path=str(tmp_path / "after"), batch_size=2).load_state_dict(state)


def test_every_data_set_says_what_was_found() -> None:
    assert Digits(batch_size=4).found() == [
        "data      1,797 images of 10 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), 8 x 8 pixels, grey; 1,455 to train on, "
        "162 for validation, 180 for test"]
    line, = shapes(objects=1).found()
    assert line.startswith("data      67 images of 35 classes (red circle, red square, ")
    assert "(red circle, red square, ... 33 more), 16 x 16 pixels, colour, " in line
    assert 'captions such as "a ' in line
    assert line.endswith("; 40 to train on, 9 for validation, 9 for test, 9 for heldout")
    assert Digits(batch_size=4, validation=0, test=0).found()[0].endswith("; 1,797 to train on")


def test_unknown_splits_and_bad_options_are_one_sentence() -> None:
    with pytest.raises(UserError, match="no split 'tset': did you mean 'test'"):
        shapes().eval_dataloader("tset")
    with pytest.raises(UserError, match="batch_size must be above 0"):
        shapes(batch_size=0)
    with pytest.raises(UserError, match="workers must be"):
        shapes(workers="many")
    with pytest.raises(UserError, match="would hold out 1,797 of 1,797 images"):
        Digits(batch_size=4, test=1797).setup()


class Recorder(L.LightningModule):
    """Remembers what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = Progress()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        assert batch["image"].dtype == torch.float32 and batch["image"].min() >= -1
        self.seen.append(batch["index"])
        self.progress.batches += 1
        return self.weight.sum()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.progress.batches = checkpoint["global_step"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_on_the_endless_stream_and_resumes_in_it(tmp_path) -> None:
    def fit(steps: int, checkpoint: str | None = None) -> list[torch.Tensor]:
        model = Recorder()
        trainer = L.Trainer(max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
                            enable_checkpointing=False, enable_model_summary=False, use_distributed_sampler=False,
                            limit_val_batches=0, default_root_dir=tmp_path)
        trainer.fit(model, datamodule=shapes(), ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        return model.seen

    unbroken = fit(12)
    first = fit(7)
    second = fit(12, str(tmp_path / "run.ckpt"))
    assert [len(unbroken), len(first), len(second)] == [12, 7, 5]
    assert torch.equal(torch.stack(first + second), torch.stack(unbroken))


def test_facts_are_plain_and_name_the_licence_where_it_is_known(tmp_path):
    digits = Digits(batch_size=1)
    facts = digits.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["name"], facts["size"], facts["channels"], facts["classes"]) == ("digits", [8, 8], 1, 10)
    assert facts["images"] == {name: digits.count(name) for name in ("train", "validation", "test")}
    assert facts["fingerprint"] == digits.fingerprint and facts["licence"] == "CC BY 4.0"
    known = {name: Vision(name, batch_size=1, root=".").licence for name in ("mnist", "cifar10", "fashion_mnist")}
    assert known == {"mnist": NONE_STATED, "cifar10": NONE_STATED, "fashion_mnist": "MIT"}
    own = {"batch_size": 1, "path": str(tmp_path)}
    assert ImageFolder(**own).licence is None and ImageFolder(**own, licence="CC0").licence == "CC0"
    assert "rendered" in str(Shapes.licence) and Shapes.licence == ShapesPaired.licence
