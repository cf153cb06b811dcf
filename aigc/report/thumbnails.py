"""Sample grids made small enough to embed in the page."""

import base64
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

QUALITY = 70        # WebP's; about 12 kB for a grid of 64 at 280 pixels
KEPT = 4096         # thumbnails that a live page does not make again


def spread(found: Mapping[int, Path], count: int) -> dict[int, Path]:
    """At most `count` of the grids, evenly spread over training; the last is always among them, then the first."""
    at = sorted(found)
    if count < len(at):
        at = at[-1:] if count < 2 else [at[round(k * (len(at) - 1) / (count - 1))] for k in range(count)]
    return {images: found[images] for images in at}


def thumbnails(paths: list[Path], side: int) -> list[str | None]:
    """Each picture as a data URI, at most `side` pixels wide and high; None where it cannot be read."""
    with ThreadPoolExecutor(4) as pool:            # Pillow decodes and encodes outside the interpreter's lock
        return list(pool.map(lambda path: _thumbnail(path, side), paths))


def _thumbnail(path: Path, side: int) -> str | None:
    try:
        return _made(path, path.stat().st_mtime_ns, side)
    except (OSError, ValueError, SyntaxError):      # what Pillow raises for broken files
        return None


@lru_cache(KEPT)
def _made(path: Path, changed: int, side: int) -> str:
    from PIL import Image

    with Image.open(path) as file:
        image = file if file.mode in ("L", "RGB", "RGBA") else file.convert("RGBA")
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
        content = BytesIO()
        image.save(content, "WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
