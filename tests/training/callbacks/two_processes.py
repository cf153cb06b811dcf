"""One of two processes that work together over gloo; writes what it got to <folder>/<rank>.json.

python -m tests.training.callbacks.two_processes <folder> <rank> samples | attributes | translations | losses |
       second | second_translations
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy


def work(folder: str, rank: int, what: str) -> None:
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    strategy = DDPStrategy(process_group_backend="gloo", parallel_devices=[torch.device("cpu")] * 2)
    trainer = SimpleNamespace(
        datamodule=None, loggers=[], strategy=strategy, world_size=2, global_rank=rank, is_global_zero=rank == 0,
        should_stop=False, default_root_dir=folder, optimizers=[], callbacks=[],
    )
    got = {"samples": samples, "attributes": attributes, "translations": translations, "losses": losses,
           "second": second, "second_translations": second_translations}[what](trainer)
    Path(folder, f"{rank}.json").write_text(json.dumps(got))
    dist.destroy_process_group()


def samples(trainer):
    from aigc.data.digits import Digits
    from aigc.training.callbacks.scores import Scores
    from tests.training.callbacks.conftest import Copies
    from tests.training.callbacks.test_scores import FEW

    trainer.datamodule = Digits(batch_size=16)
    trainer.datamodule.setup()
    model = Copies(spread=0.1)
    got = Scores(**FEW, num_samples_final=130, num_reals=200).score(trainer, model, final=True)
    return {"scores": got, "asked": sum(n for n, *_ in model.asked)}


def attributes(trainer):
    from aigc.scoring.scores import attributes as attributes_of
    from aigc.training.callbacks.scores import Scores
    from tests.training.callbacks.test_scores import ATTRIBUTES, Draughtsman, mixed_scenes, reader_of_renders

    trainer.datamodule = mixed_scenes()
    attributes_of.read_back = reader_of_renders()
    model = Draughtsman(wrong=0.6745)
    got = Scores(**ATTRIBUTES).score(trainer, model)
    return {"scores": got, "asked": sum(len(texts) for texts in model.asked)}


def translations(trainer):
    from aigc.training.callbacks.translation_scores import TranslationScores
    from tests.training.callbacks import test_translation_scores as translation
    from tests.training.callbacks.conftest import Inverted

    trainer.datamodule = translation.uneven()
    trainer.datamodule.setup()
    model = Inverted(off=0.1)
    got = TranslationScores(**translation.FEW).score(trainer, model, final=True)
    return {"scores": got, "asked": sum(len(seeds) for _, seeds in model.asked)}


def second(trainer):
    from aigc.data.digits import Digits
    from aigc.training.callbacks.scores import Scores
    from tests.training.callbacks.conftest import Copies
    from tests.training.callbacks.test_second_network import FEW, stand_in

    stand_in(pytest.MonkeyPatch())
    trainer.datamodule = Digits(batch_size=16)
    trainer.datamodule.setup()
    return {"scores": Scores(**FEW).score(trainer, Copies(spread=0.1), final=True)}


def second_translations(trainer):
    from aigc.training.callbacks.translation_scores import TranslationScores
    from tests.training.callbacks.conftest import Inverted, TwoSides
    from tests.training.callbacks.test_second_network import SIDES, stand_in

    stand_in(pytest.MonkeyPatch())
    trainer.datamodule = TwoSides()
    trainer.datamodule.setup()
    return {"scores": TranslationScores(**SIDES).score(trainer, Inverted(off=0.1), final=True)}


def losses(trainer):
    """Two steps a line; then a window that is open when a checkpoint is made, resumed, and one with a broken loss."""
    from aigc.errors import RunError
    from aigc.runs.progress import Progress
    from aigc.training.callbacks.checkpoint import check_finite
    from aigc.training.callbacks.record import Record
    from tests.training.callbacks.conftest import Lines

    rank, lines = trainer.global_rank, Lines()
    trainer.loggers = [lines]
    family = torch.nn.Linear(1, 1)
    family.device, family.progress, family.sharded = torch.device("cpu"), Progress(), ()

    def step(record, **values):
        outputs = {name: torch.tensor(float(value)) for name, value in values.items()}
        record.on_train_batch_end(trainer, family, outputs, {"image": torch.zeros(4, 1)}, 0)

    def logged(*names):
        return [{name: line[name] for name in names} for _, line in lines.lines]

    record = Record(seed=0, log_every=2)
    trainer.callbacks = [record]
    step(record, loss=1 + 2 * rank)
    step(record, loss=2 + 2 * rank, penalty=10 + 10 * rank)
    first = logged("loss", "penalty")
    step(record, loss=3 + rank)
    check_finite(trainer, family)
    state = record.state_dict()
    resumed = Record(seed=0, log_every=2)
    resumed.load_state_dict(state)
    trainer.callbacks = [resumed]
    resumed.on_train_start(trainer, family)
    step(resumed, loss=4 + rank)
    second = logged("loss")[-1]
    step(resumed, loss=float("nan") if rank else 1)
    try:
        check_finite(trainer, family)
        broken = ""
    except RunError as error:
        broken = str(error)
    opened = {name: totals.tolist() for name, totals in state["sums"].items()}
    return {"lines": first, "open": opened, "resumed": second, "broken": broken}


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
