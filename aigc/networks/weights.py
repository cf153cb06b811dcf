"""Weights of foreign networks, from local files."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from aigc.errors import UserError


def read_weights(path: Path, what: str, *, option: str = "metrics") -> dict[str, Tensor]:
    """The state dict of a .safetensors or PyTorch file, on the CPU; no code in it is run.

    Raises:
        UserError: there is no such file, or it is neither; `what` names the network that it should
            hold, `option` what asks for it.
    """
    if not path.is_file():
        raise UserError(f"{option}: {path} is not a file: give {what}'s weights, as .safetensors or .pth")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not isinstance(error, (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
                                  pickle.UnpicklingError)) and type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"{option}: {path} cannot be read ({type(error).__name__}): give {what}'s weights, as "
                        ".safetensors or .pth") from error
