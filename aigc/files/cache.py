"""A folder for results that are costly and shared by all runs: trained feature networks, statistics of real images."""

import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from aigc.errors import UserError
from aigc.files import atomic


def cache_folder() -> Path:
    """`$AIGC_CACHE`, or `~/.cache/aigc`; created if missing.

    Raises:
        UserError: it cannot be created or written to.
    """
    folder = Path(os.environ.get("AIGC_CACHE") or Path.home() / ".cache" / "aigc").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot make the cache folder {folder} ({error.strerror})"
        raise UserError(f"{reason}: set AIGC_CACHE to another") from error
    return folder


def load_cached(name: str) -> Any:
    """The cached value called `name`, on the CPU; None if there is none or its file is not what was written."""
    path = cache_folder() / f"{name}.pt"
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        return kept["value"] if kept["checksum"] == _checksum(kept["value"]) else None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, pickle.UnpicklingError):
        return None


def keep_cached(name: str, value: Any) -> None:
    """Caches `value` (tensors, numbers, strings in dicts) under `name`; the file is written atomically.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    content = {"value": value, "checksum": _checksum(value)}       # torch.load does not notice changed numbers
    keep_file(f"{name}.pt", lambda file: torch.save(content, file))


def _checksum(value: Any, before: int = 0) -> int:
    """CRC-32 of tensors, and of whatever else is in nested dicts and lists, after what came `before`."""
    if isinstance(value, Tensor):
        before = zlib.crc32(f"{value.dtype} {tuple(value.shape)}".encode(), before)
        content: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return zlib.crc32(content, before)
    if isinstance(value, dict | list | tuple):
        for part in value.items() if isinstance(value, dict) else value:
            before = _checksum(part, before)
        return zlib.crc32(b"end", before)
    return zlib.crc32(repr(value).encode(), before)


def keep_file(name: str, write: Callable[[IO[bytes]], object]) -> Path:
    """Caches what `write` writes as the file `name`, atomically; returns its path.

    Raises:
        UserError: the disk is full or the folder is not writable.
    """
    folder = cache_folder()
    try:
        return atomic.write(folder / name, write, shared=True)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        where = f"cannot write to the cache folder {folder} ({reason})"
        raise UserError(f"{where}: make room, or set AIGC_CACHE to another") from error
