"""Sample grids: where they go, what is in them, and that drawing changes nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from aigc.data.shapes import Shapes
from aigc.errors import RunError
from aigc.images.grids import LINE, TONE, to_uint8
from aigc.images.streams import items, seeds_of
from aigc.training.callbacks.samples import SampleGrid
from tests.training.callbacks.conftest import Copies, Inverted, TwoSides, alone


def cells(path, rows, columns, height=56, width=56, words=0):
    """Cells row by row; above each row `words` pixels of words, in which something is written."""
    picture, step = np.asarray(Image.open(path)), words + height + 2
    assert picture.shape[:2] == (rows * step - 2, columns * (width + 2) - 2)
    assert not words or all((picture[y * step:][:words] != TONE).any() for y in range(rows))
    return [[picture[y * step + words:][:height, x * (width + 2):][:, :width] for x in range(columns)]
            for y in range(rows)]


def test_a_class_a_row_and_the_same_seeds_each_time(trainer, tmp_path):
    model, grid = Copies(), SampleGrid(every_images=100, n=64)
    model.progress.images = 1234
    files = grid.draw(trainer, model)
    assert [file.name for file in files] == ["000001234.png", "000001234_pairs.png"]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == sorted(file.name for file in files)
    labels = torch.arange(10).repeat_interleave(6)
    expected = to_uint8(model.sample(60, condition=labels, seeds=seeds_of(range(60), 0)))
    shown = cells(files[0], 10, 6, words=LINE)           # each class under its name
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


def tiles(path, columns, width, height):
    """Cells of a grid with titles, row by row, as one tensor; the words' strip is left out."""
    picture = np.asarray(Image.open(path))[14:]
    assert picture.shape[1] == columns * (width + 2) - 2
    return [[picture[y:][:height, x * (width + 2):][:, :width] for x in range(columns)]
            for y in range(0, len(picture), height + 2)]


def test_translations_beside_what_they_are_of(tmp_path):
    data = TwoSides(counts=(20, 20))
    data.setup()
    files = SampleGrid(every_images=100, n=16).draw(alone(data, tmp_path), Inverted())
    assert [file.name for file in files] == ["000000000.png", "000000000_b2a.png"]
    _, batch = next(items(data, "validation", 4, batch_size=4))
    for file, (first, second) in zip(files, (("a", "b"), ("b", "a")), strict=True):
        shown = tiles(file, 4, 20 * 4, 16 * 4)                      # 16 x 20 px, enlarged 4 times
        assert len(shown) == 4
        for k, row in enumerate(shown):
            given, wanted = (batch[side][k].permute(1, 2, 0).numpy() for side in (first, second))
            for cell, expected in zip(row, (given, 255 - given, given, wanted), strict=True):
                assert np.array_equal(cell[::4, ::4], expected)
    first = files[0].read_bytes()
    assert SampleGrid(every_images=100, n=16).draw(alone(data, tmp_path), Inverted())[0].read_bytes() == first


def test_one_way_without_pairs_and_no_repeats(tmp_path):
    data = TwoSides(counts=(3, 20), pairs=False)
    data.setup()
    files = SampleGrid(every_images=100, n=25).draw(alone(data, tmp_path), Inverted(one_way=True))
    shown = tiles(files[0], 2, 80, 64)
    assert len(files) == 1 and len(shown) == 3
    order = [k for _, batch in items(data, "validation", 20, batch_size=20) for k in batch["index"].tolist() if k < 3]
    side = data.pair_split("validation").a.images
    assert all(np.array_equal(row[0][::4, ::4], side[k].permute(1, 2, 0)) for row, k in zip(shown, order, strict=True))


def test_a_caption_a_row_with_its_words(tmp_path):
    data = Shapes(batch_size=8, size=16, train=20, validation=30, test=20, heldout=20)
    data.setup()
    drawn = []

    class Told(Copies):
        def sample(self, n, *, condition=None, seeds=None, **options):
            drawn.extend(zip(condition, seeds, strict=True))
            return torch.zeros(n, 3, 16, 16)

    model = Told(condition="text")
    file = SampleGrid(every_images=100, n=16).draw(alone(data, tmp_path), model)[0]
    captions = [caption for caption, _ in drawn][::4]
    assert [caption for caption, _ in drawn] == [one for one in captions for _ in range(4)] and len(set(captions)) == 4
    assert set(captions[:2]) <= set(data.texts("validation")) and set(captions[2:]) <= set(data.texts("heldout"))
    assert [seed for _, seed in drawn] == seeds_of(range(16), 0)
    picture = np.asarray(Image.open(file))
    assert picture.shape[0] > 4 * 66 - 2 and (picture[:14] > 200).any()        # words above the first row


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
