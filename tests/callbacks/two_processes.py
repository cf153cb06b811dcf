"""One of two processes that score one family together over gloo; writes what it got to <folder>/<rank>.json.

python two_processes.py <folder> <rank> [samples | translations]
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy


def work(rank: int, folder: str, what: str) -> None:
    from aigc.callbacks.scores import Scores
    from aigc.callbacks.translation_scores import TranslationScores
    from aigc.data.digits import Digits
    from tests.callbacks import test_translation_scores as translation
    from tests.callbacks.conftest import Copies, Inverted
    from tests.callbacks.test_scores import FEW

    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    strategy = DDPStrategy(process_group_backend="gloo", parallel_devices=[torch.device("cpu")] * 2)
    data = Digits(batch_size=16) if what == "samples" else translation.uneven()
    data.setup()
    trainer = SimpleNamespace(
        datamodule=data, loggers=[], strategy=strategy, world_size=2, global_rank=rank, is_global_zero=rank == 0,
        should_stop=False, default_root_dir=folder,
    )
    if what == "samples":
        model = Copies(spread=0.1)
        scores = Scores(**FEW, num_samples_final=130, num_reals=200)
        got = scores.score(trainer, model, final=True)
        asked = sum(n for n, *_ in model.asked)
    else:
        model = Inverted(off=0.1)
        got = TranslationScores(**translation.FEW).score(trainer, model, final=True)
        asked = sum(len(seeds) for _, seeds in model.asked)
    Path(folder, f"{rank}.json").write_text(json.dumps({"scores": got, "asked": asked}))
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1], *(sys.argv[3:] or ["samples"]))
