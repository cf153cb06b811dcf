"""Sample grids: where they go, what is in them, and that drawing changes nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.callbacks.samples import SampleGrid
from aigc.errors import RunError
from aigc.metrics.features import to_uint8
from aigc.metrics.items import items, seeds_of
from tests.callbacks.conftest import Copies


def cells(path, rows, columns, height=56, width=56):
    picture = np.asarray(Image.open(path))
    assert picture.shape[:2] == (rows * (height + 2) - 2, columns * (width + 2) - 2)
    return [[picture[y * (height + 2):][:height, x * (width + 2):][:, :width] for x in range(columns)]
            for y in range(rows)]


def test_a_class_a_row_and_the_same_seeds_each_time(trainer, tmp_path):
    model, grid = Copies(), SampleGrid(every_images=100, n=64)
    model.progress.images = 1234
    files = grid.draw(trainer, model)
    assert [file.name for file in files] == ["000001234.png", "000001234_pairs.png"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == sorted(file.name for file in files)
    labels = torch.arange(10).repeat_interleave(6)
    expected = to_uint8(model.sample(60, condition=labels, seeds=seeds_of(range(60), 0)))
    shown = cells(files[0], 10, 6)
    for k in range(60):
        assert np.array_equal(shown[k // 6][k % 6][::7, ::7], expected[k, 0].numpy())  # 8 px, enlarged 7 times
    first = files[0].read_bytes()
    torch.rand(5)
    assert grid.draw(trainer, model)[0].read_bytes() == first


def test_without_classes_a_square(trainer):
    files = SampleGrid(every_images=100, n=30).draw(trainer, Copies(condition="none"))
    cells(files[0], 6, 5)


def test_panels_show_held_out_images(trainer):
    files = SampleGrid(every_images=100, n=16).draw(trainer, Copies(condition="none"))
    _, batch = next(items(trainer.datamodule, "validation", 16, batch_size=16))
    shown = cells(files[1], 4, 4, width=112)
    assert np.array_equal(shown[1][2][::7, :56:7], batch["image"][6, 0].numpy())
    assert np.array_equal(shown[1][2][::7, 56::7], 255 - batch["image"][6, 0].numpy())


def test_loggers_with_pictures_get_them(trainer):
    model = Copies()
    model.progress.images, model.progress.batches = 320, 20
    SampleGrid(every_images=100).draw(trainer, model)
    assert trainer.loggers[0].pictures == [
        ("samples", ["000000320.png"], 20), ("pairs", ["000000320_pairs.png"], 20),
    ]


def test_drawing_changes_nothing(trainer):
    model = Copies()
    model.progress.start()
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    SampleGrid(every_images=100).draw(trainer, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(asked[1:] == (False, False, False) for asked in model.asked)
    assert model.progress.seconds < 0.5


def test_other_ranks_draw_nothing(trainer, tmp_path):
    trainer.is_global_zero = False
    model, grid = Copies(), SampleGrid(every_images=100)
    assert grid.draw(trainer, model) == [] and model.asked == [] and not (tmp_path / "samples").exists()


def test_start_boundaries_and_end_are_drawn_once(trainer, tmp_path):
    model, grid = Copies(), SampleGrid(every_images=100, n=4)
    grid.on_train_start(trainer, model)
    for _ in range(14):
        model.progress.images += 16
        trainer.should_stop = model.progress.images == 224
        grid.on_train_batch_end(trainer, model, None, None, 0)
    grid.on_train_end(trainer, model)
    grid.on_train_end(trainer, model)
    assert [int(path.stem) for path in sorted((tmp_path / "samples").glob("?????????.png"))] == [0, 112, 208, 224]
    again = SampleGrid(every_images=100, n=4)
    again.load_state_dict(grid.state_dict())
    model.progress.images = 299
    again.on_train_batch_end(trainer, model, None, None, 0)
    again.on_train_start(trainer, model)
    assert len(list((tmp_path / "samples").glob("?????????.png"))) == 4


def test_an_interrupted_run_ends_without_drawing(trainer, tmp_path):
    model = Copies()
    model.progress.images, model.progress.interrupted = 50, "SIGINT"
    SampleGrid(every_images=100).on_train_end(trainer, model)
    assert model.asked == []


def test_an_unwritable_folder_is_one_sentence(trainer, tmp_path):
    (tmp_path / "samples").write_text("in the way")
    with pytest.raises(RunError, match=r"could not be written.*resume the run"):
        SampleGrid(every_images=100, n=4).draw(trainer, Copies())
