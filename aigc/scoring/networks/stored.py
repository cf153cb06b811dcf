"""Trained feature networks as files: written, read and verified; and the canonical ones in the package.

A file is a .safetensors whose metadata say what the network is for (`aigc`: JSON). The canonical networks of the
built-in data sets and of MNIST are in `weights/`, made by `python -m aigc.scoring.networks.canonical`:
two laboratories that score the same images get the same numbers, which two trainings of the same network would not
give.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aigc.data.datamodule import ImageData
from aigc.errors import UserError
from aigc.files.cache import keep_file
from aigc.networks.fingerprint import state_sha256

FOLDER = Path(__file__).parent / "weights"
LIST = FOLDER / "canonical.json"            # by name: the weights' sha256, their accuracy, and how they were made


@dataclass(frozen=True)
class Stored:
    """A network's weights as float32 on the CPU, their sha256, and the file's facts about them."""

    weights: dict[str, Tensor]
    sha256: str
    facts: dict[str, Any]


def encode(weights: dict[str, Tensor], facts: dict[str, Any], *, small: bool = False) -> bytes:
    """A file's content; `small` stores kernels and matrices in half precision, vectors as they are."""
    from safetensors.torch import save

    halves = {name: value.half() if small and value.ndim > 1 else value for name, value in weights.items()}
    kept = {name: value.detach().cpu().contiguous() for name, value in halves.items()}
    return save(kept, {"aigc": json.dumps(facts)})


def read(path: Path) -> Stored:
    """The network in a file.

    Raises:
        UserError: it is missing, damaged, was changed, or is of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["aigc"])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
        if not isinstance(facts, dict):
            raise ValueError("no facts")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        reason = "there is no such file" if not path.is_file() else "it is damaged, or not a network that aigc trained"
        raise UserError(f"{path} cannot be read as a feature network ({reason}): give a .safetensors file that a "
                        "training run kept in the cache folder") from error
    weights = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    stored = Stored(weights, state_sha256(weights), facts)
    if facts.get("sha256", stored.sha256) != stored.sha256:
        raise UserError(f"{path} is damaged (its weights do not have the sha256 that it states): give another file")
    return stored


def keep(name: str, weights: dict[str, Tensor], facts: dict[str, Any]) -> Path:
    """Writes `<name>.safetensors`, with the weights' sha256 in it, into the cache folder, atomically.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    content = encode(weights, {**facts, "sha256": state_sha256(weights)})
    return keep_file(f"{name}.safetensors", lambda file: file.write(content))


# ---- canonical networks ----


@cache
def canonical_list() -> dict[str, dict[str, Any]]:
    """The entries of `weights/canonical.json`: facts of every canonical network, by name."""
    return json.loads(LIST.read_text()) if LIST.is_file() else {}


def canonical_of(data: ImageData) -> str | None:
    """The name of the canonical classifier for these data, or None.

    It depends on the data set, its size and its channels, but not on how the set is split or rendered (`split_seed`,
    numbers of images): scores of such runs compare.
    """
    from aigc.data.digits import Digits
    from aigc.data.scenes import VERSION
    from aigc.data.shapes import Shapes
    from aigc.data.vision import Vision

    shape = (data.channels, *data.size)
    name = None
    if type(data) is Shapes and shape == (3, 32, 32):
        name = "shapes"
    elif type(data) is Digits and shape == (1, 8, 8):
        name = "digits"
    elif type(data) is Vision and data.name == "mnist" and shape == (1, 28, 28):
        name = "mnist"
    known = canonical_list().get(name or "")
    return name if known is not None and known.get("drawing", VERSION) == VERSION else None


def read_canonical(name: str) -> Stored:
    """The canonical network called `name`.

    Raises:
        UserError: its file does not match its hash.
    """
    path = FOLDER / f"{name}.safetensors"
    try:
        found = read(path)
    except UserError as error:
        raise UserError(f"the canonical network {path} is missing or damaged: install aigc again") from error
    wanted = canonical_list()[name]["sha256"]
    if found.sha256 != wanted:
        raise UserError(f"the canonical network {path} has been changed (sha256 {found.sha256[:12]} instead of "
                        f"{wanted[:12]}): install aigc again")
    return found


def load_into(network: torch.nn.Module, stored: Stored, path: object) -> None:
    """Gives `network` the stored weights.

    Raises:
        UserError: they belong to another network.
    """
    if not all(value.isfinite().all() for value in stored.weights.values()):
        raise UserError(f"{path} holds NaN or infinite weights: give another file")
    try:
        network.load_state_dict(stored.weights)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the weights of a {type(network).__name__} of this version: give "
                        "another file") from error
