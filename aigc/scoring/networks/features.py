"""What a feature network is, and the preprocessing that all of them share.

Images are clamped, rounded to uint8 and given to the network, which resizes them in its own documented way.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

REAL_VERSION = 1             # of entries about real images: a change makes new ones


def real_key(network: "FeatureNetwork", sequence: str, split: str, kind: str, *what: object) -> str:
    """The name of an entry about real images: a hash of everything that it depends on.

    Args:
        network: the feature network.
        sequence: identifies the data and their order.
        split: the part of the data.
        kind: of the entry.
        *what: numbers of images, and options of the computation.
    """
    facts = (REAL_VERSION, sequence, split, network.sha256, network.resizer, kind, *what)
    return f"{kind}-{network.name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:20]}"


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """True float32: no autocast, and no TF32, whose 10 bits would change distances in the third digit."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class FeatureNetwork(nn.Module):
    """A frozen network that scores are based on: `forward(images)` gives features and logits, both float32.

    `forward` takes uint8 `(n, c, h, w)` and returns features `(n, num_features)` and logits `(n, k)`.
    """

    name: str                                       # in names of scores: fd_<name>, kd_<name>, is_<name>
    num_features: int
    sha256: str                                     # of the weights
    resizer: str                                    # how images are resized to the network's input
    task: str                                       # what it was trained to do
    classes: int | None = None                      # if its logits are the data's classes: their number
    classifies: bool = True                         # its logits are classes, so an inception score is meaningful
    origin: str | None = None                       # of the weights: canonical <name>, trained here, given
    accuracy: float | None = None                   # at its task on the data's test images, if known
    taught: bool = False                            # the model that it scores learned through it
    names: dict[str, str] = {"fd": "fd_{}", "kd": "kd_{}", "is": "is_{}"}

    def score_names(self) -> dict[str, str]:
        """Names of the Fréchet distance, the kernel distance and the inception score over this network."""
        return {key: name.format(self.name) for key, name in self.names.items()}

    def facts(self) -> dict[str, Any]:
        """What a protocol says about the network."""
        return {
            "network": self.name,
            "network_sha256": self.sha256,
            **({"network_weights": self.origin} if self.origin else {}),
            "network_task": self.task,
            "network_accuracy": self.accuracy,
            "resizer": self.resizer,
            **({"judge_taught": True} if self.taught else {}),
        }

    def judge(self, learned_through: Mapping[str, str]) -> "FeatureNetwork":
        """Itself, knowing whether the model that it scores learned through it (`Family.learned_through`)."""
        self.taught = self.sha256 in learned_through.values()
        return self

    def biased(self) -> str | None:
        """Why its scores alone say little of the model, or None."""
        return (f"the model learned through {self.name}, so its scores flatter it: judge it by another network as "
                "well, e.g. metrics=classifier") if self.taught else None

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """A frozen feature network stays in evaluation mode."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def freeze(self) -> "FeatureNetwork":
        """Switches to evaluation mode permanently."""
        return self.requires_grad_(False).eval()
