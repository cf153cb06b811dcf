"""One of two processes that share a batch: `python -m tests.models.clip_ranks <folder> <rank>`; see test_clip.py."""

import os
import sys
from pathlib import Path

import torch

N = 64


def tiny_clip(**changes):
    """A small CLIP without anything random in its step, so that how a batch is shared is all that differs."""
    from tests.models.test_clip import tiny

    return tiny(crop=1.0, captions=False, **changes).train()


def whole_batch():
    from tests.models.test_clip import batch_of

    return batch_of(N)


def work(folder: Path, rank: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for tower in ("resnet", "vit"):
        model = tiny_clip(tower=tower)
        mine = slice(rank * N // 2, (rank + 1) * N // 2)
        loss = model.training_step({name: value[mine] for name, value in whole_batch().items()}, 0)["loss"]
        loss.backward()
        shared = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        for value in shared:                               # as DDP does with gradients, and Record with losses
            torch.distributed.all_reduce(value)
            value /= 2
        found[tower] = shared
    if rank == 0:
        torch.save(found, folder / "shared.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
