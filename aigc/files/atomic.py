"""Files that are whole or not there: written under a temporary name beside their own, then renamed."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """A temporary name to write a file under, which becomes `path` at the end, unless an error ends it.

    Args:
        path: the file's own name; its folder exists.
        sync: have the disk hold the content before the name refers to it, so that a power cut costs nothing.
        shared: other processes may write the same file now: the last one to end wins.

    Raises:
        OSError: the file cannot be written; what had the name is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp" if shared else f".{path.name}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write(
    path: Path, content: str | bytes | Callable[[IO[bytes]], object], *, sync: bool = False, shared: bool = False
) -> Path:
    """Writes a file: text as UTF-8, bytes, or what a function writes into the open file; returns its path.

    `sync` and `shared` are those of `replacing`.

    Raises:
        OSError: the file cannot be written; what had the name is as it was. A function may raise anything.
    """
    with replacing(path, sync=sync, shared=shared) as temporary:
        if isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            with open(temporary, "wb") as file:
                content(file)
    return path
