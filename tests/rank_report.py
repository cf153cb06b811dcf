"""A callback for the tests of several processes: each rank writes down what it ended with."""

import hashlib
import json
from pathlib import Path

import lightning as L

from aigc.training.callbacks.scores import Scores


def digest(module: L.LightningModule) -> str:
    """SHA-256 of all weights and buffers."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode())
        value = value.full_tensor() if hasattr(value, "full_tensor") else value  # trainer=fsdp: parts of all ranks
        sha.update(value.cpu().numpy().tobytes())
    return sha.hexdigest()


class RankReport(L.Callback):
    """Writes `<folder>/rank<r>.json` at the end of training."""

    def __init__(self, *, folder: str):
        self.folder = folder
        self.indices: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.indices += batch["index"].tolist()

    def on_train_end(self, trainer, pl_module):
        scores = next((c.latest for c in trainer.callbacks if isinstance(c, Scores)), {})
        report = {
            "weights": digest(pl_module), "scores": scores, "images": pl_module.progress.images,
            "indices": self.indices, "world": trainer.world_size,
        }
        Path(self.folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(report))
