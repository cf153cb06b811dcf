"""Sets of encoded image files from any source: checked together, then decoded once or streamed.

Every file is opened and decoded before training starts, so that all broken ones are named at once. The findings about
large sets, and their decoded images if these are small, are cached for the next run and the other ranks: 60,000 JPEGs
of 32 px took 36 s to decode on two busy cores, and 2 s to read back.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from aigc.data.decode import VERSION, Wanted, decode, extremes, header
from aigc.data.split import Lazy, Split
from aigc.data.values import BYTES, Extremes, Range, Ranges, common, range_of
from aigc.errors import UserError
from aigc.files.cache import keep_cached, load_cached
from aigc.wording import counted, listed, shown

SCANNED = 5          # version of the stored findings about files
NAMED = 20           # broken files named in an error; the rest is counted
MIXED_SIZE = 32      # pixels, where the images' sizes differ and none is chosen
CHUNK = 64           # files that a thread takes at a time
MANY = 2_000         # from this many files on, the next run reuses the findings
KEPT = 2**28         # bytes of decoded images kept for the next run
SMALL = 16_384       # bytes; reading smaller files in threads does not pay


class Files(Protocol):
    """Encoded images by number; survives pickling into a worker."""

    key: str  # differs if any file may have changed

    def __len__(self) -> int:
        """Number of files."""

    def name(self, i: int) -> str:
        """The name of file i in messages."""

    def read(self, i: int) -> bytes:
        """The content of file i."""


@dataclass
class Scan:
    """The findings about every file."""

    native: tuple[int, int] | None      # (h, w) of all images; None: they differ
    grey: bool                          # no image has colour
    broken: dict[str, dict[int, str]]   # by part: broken files by number, with the reason
    digests: dict[str, str]             # by part: hash of the other files' content
    sides: list[int]                    # shortest and longest side of all images, in pixels
    mixed: bool                         # some files have more than 8 bits, some have 8
    deep: list[list[Any]]               # of files with more than 8 bits: [kind, least, greatest value]
    prints: dict[str, Tensor]           # by part: 64 bits of every file's hash, (n,) int64
    shapes: dict[str, Tensor]           # by part: height and width of every file, (n, 2) int32; 0 of broken ones

    @property
    def extremes(self) -> list[Extremes]:
        """The extremes of files with more than 8 bits, by kind of numbers."""
        return [Extremes(*one) for one in self.deep]


class Seen(NamedTuple):
    """What the log says about the files of a set."""

    sides: tuple[int, int]              # pixels of the shortest and of the longest side
    values: str                         # how values beyond 8 bits are read; empty: there are none
    ranges: Ranges                      # black and white by the kind of numbers, where it is not 0 to 255
    broken: list[str]                   # files that were skipped, each with the reason


class Encoded:
    """Images decoded when a batch asks for them, with `Lazy`'s interface."""

    def __init__(self, files: Files, rows: Tensor, **options: Any):
        self.files = files
        self.rows = rows                # file numbers of images 0, 1, ...
        self.options = options          # of `decode`
        self.shape = (len(rows), _channels(options), *options["size"])

    def take(self, index: Tensor) -> Tensor:
        """Images `index` `(k,)` as uint8 `(k, c, h, w)`."""
        return torch.stack([decode(self.files.read(i), **self.options) for i in self.rows[index].tolist()])

    def select(self, rows: Tensor) -> "Encoded":
        """Some of these images."""
        return Encoded(self.files, self.rows[rows], **self.options)


class Part(NamedTuple):
    """The good images of one part, with the numbers of their files."""

    rows: Tensor
    images: Tensor | Encoded
    digest: str
    prints: Tensor                      # one number per image, (n,) int64, equal for equal files
    seen: Seen                          # of all parts together

    def split(self, rows: Tensor, labels: Tensor | None, texts: Sequence[str] | None) -> Split:
        """The split of images `rows` of this part; `labels` and `texts` are the whole part's."""
        images: Tensor | Lazy = self.images[rows] if isinstance(self.images, Tensor) else self.images.select(rows)
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()
        return Split(images, None if labels is None else labels[rows],
                     None if texts is None else [texts[i] for i in rows.tolist()], f"{self.digest} {digest}",
                     self.prints[rows])


def open_parts(
    parts: Mapping[str, Files], wanted: Wanted, *, name: str, fits: Callable[[int, int, tuple[int, int]], bool],
    sizes: Mapping[str, tuple[int, int]] | None = None, mixed_size: int = MIXED_SIZE, halves: bool = False,
    margins: Mapping[str, float] | None = None,
    check: Callable[[Mapping[str, Files], Mapping[str, Tensor]], None] | None = None,
) -> dict[str, Part]:
    """Opens every part as `wanted`; `sizes` gives parts their own sizes; one channel if all images are grey.

    Without a size, images keep theirs if all agree, and otherwise become squares of `mixed_size`. With `halves`, every
    file is two images side by side, whose channels are stacked; `margins` are those of the parts (see `decode`).
    `check` receives height and width of all files, `(n, 2)` by part, before they are decoded.

    Raises:
        UserError: files are broken (all are named) and not to be skipped, none is good, or no single range fits.
    """
    key = hashlib.sha256(repr([(part, files.key) for part, files in parts.items()]).encode()).hexdigest()[:24]
    key = f"images_{VERSION}.{SCANNED}_{key}"
    kept = load_cached(key)
    scan = Scan(**kept) if kept is not None else _scan_headers(parts)
    _refuse_empty(parts, scan, name)
    if check is not None:
        check(parts, scan.shapes)
    native = (scan.native[0], max(1, scan.native[1] // 2)) if scan.native and halves else scan.native
    sizes = sizes or dict.fromkeys(parts, wanted.size or native or (mixed_size, mixed_size))
    same = {"channels": wanted.channels or (1 if scan.grey else 3), "fit": wanted.fit}
    same |= {"halves": True} if halves else {}
    limits, values = _limits(scan, wanted, name)
    same |= {"limits": limits} if limits else {}
    same |= {"stretched": True} if limits and not scan.deep else {}
    options: dict[str, dict[str, Any]] = {part: {"size": sizes[part], **same} for part in parts}
    for part, margin in (margins or {}).items():
        options[part] |= {"margin": margin} if margin else {}
    memory = fits(sum(map(len, parts.values())), _channels(same), max(sizes.values()))
    pixels = f"{key}_{hashlib.sha256(repr(options).encode()).hexdigest()[:8]}"
    decoded: dict[str, Tensor] = (load_cached(pixels) or {}) if memory and kept is not None else {}
    if kept is None or (memory and not decoded):
        for part, files in parts.items():
            decoded[part] = _decode_all(part, files, scan, options[part], keep=memory)
        if sum(map(len, parts.values())) >= MANY:
            keep_cached(key, asdict(scan))
            if memory and sum(images.nbytes for images in decoded.values()) <= KEPT:
                keep_cached(pixels, decoded)
    if any(scan.broken.values()) and not wanted.skip_broken:
        raise UserError(_name_broken(parts, scan, name))
    _refuse_empty(parts, scan, name)
    ranges = dict.fromkeys([kind for kind, *_ in scan.deep] or [BYTES], limits) if limits else {}
    seen = Seen((scan.sides[0], scan.sides[1]), values, ranges, _broken(parts, scan))
    opened = {}
    for part, files in parts.items():
        rows = torch.tensor([i for i in range(len(files)) if i not in scan.broken[part]], dtype=torch.int64)
        whole = len(rows) == len(files)
        images = (decoded[part] if whole else decoded[part][rows]) if memory else Encoded(files, rows, **options[part])
        digest = f"{scan.digests[part]} {VERSION} {options[part]}"
        opened[part] = Part(rows, images, digest, scan.prints[part][rows], seen)
    return opened


def _channels(options: Mapping[str, Any]) -> int:
    """Channels of `decode`'s output."""
    return options["channels"] * (2 if options.get("halves") else 1)


def _limits(scan: Scan, wanted: Wanted, name: str) -> tuple[Range | None, str]:
    """Black and white of the whole set, where it has more than 8 bits or they are chosen; and their origin in words.

    Raises:
        UserError: some files hold whole numbers and some floats, which no single range fits.
    """
    if wanted.range is not None:
        return wanted.range, f"values from {wanted.range[0]:g} (black) to {wanted.range[1]:g} (white)"
    if len(scan.deep) > 1:
        parts = [f"{'floats' if e.kind == 'float' else 'whole numbers'} from {e.low:g} to {e.high:g}"
                 for e in scan.extremes]
        raise UserError(f"the images in {name} hold {' and '.join(parts)}: say with data.range=[black,white] what "
                        "they mean, or convert one kind")
    if not scan.deep:
        return None, ""
    limits, words = range_of(scan.extremes[0])
    return limits, words + ", 0 to 255 in files of 8 bits" * scan.mixed


def _look(data: bytes) -> tuple[tuple[int, int], bool, Extremes | None]:
    """Size, whether it is grey, and the extremes of values beyond 8 bits."""
    return *header(data), extremes(data)


def _scan_headers(parts: Mapping[str, Files]) -> Scan:
    sizes, grey, deep, good_files = set(), True, [], 0
    scan = Scan(None, False, {}, {}, [0, 0], False, [], {}, {})
    for part, files in parts.items():
        found = _each(files, lambda i, data: _look(data), range(len(files)))
        scan.broken[part] = {i: why for i, why in enumerate(found) if isinstance(why, str)}
        good = [fact for fact in found if not isinstance(fact, str)]
        shapes = [(0, 0) if isinstance(fact, str) else fact[0] for fact in found]
        scan.shapes[part] = torch.tensor(shapes, dtype=torch.int32)
        sizes |= {fact[0] for fact in good}
        grey &= all(fact[1] for fact in good)
        deep += [fact[2] for fact in good if fact[2] is not None]
        good_files += len(good)
    sides = [side for size in sizes for side in size] or [0]
    scan.mixed = 0 < len(deep) < good_files
    scan.sides = [min(sides), max(sides)]
    scan.deep = [[one.kind, one.low, one.high] for one in common(deep)]
    scan.native = sizes.pop() if len(sizes) == 1 else None
    scan.grey = grey
    return scan


def _decode_all(part: str, files: Files, scan: Scan, options: dict[str, Any], *, keep: bool) -> Tensor:
    """Decodes every file, completing `scan`; uint8 `(n, c, h, w)`, or without `keep` one reused image."""
    n = len(files)
    images = torch.zeros(n if keep else 1, _channels(options), *options["size"], dtype=torch.uint8)

    def work(i: int, data: bytes) -> bytes:
        images[i if keep else 0] = decode(data, **options)
        return hashlib.sha256(data).digest()

    rows = [i for i in range(n) if i not in scan.broken[part]]
    digest, prints = hashlib.sha256(), torch.zeros(n, dtype=torch.int64)
    for i, found in zip(rows, _each(files, work, rows), strict=True):
        if isinstance(found, str):
            scan.broken[part][i] = found
        else:
            digest.update(found)
            prints[i] = int.from_bytes(found[:8], "big", signed=True)
    scan.digests[part] = digest.hexdigest()
    scan.prints[part] = prints
    return images


def _each(files: Files, work: Callable[[int, bytes], Any], rows: Sequence[int]) -> list[Any]:
    """`work(i, content)` for every file, or the reason (a str) why it is broken.

    Large files are read in threads, because decoders release the interpreter's lock. Small ones are not: there the
    contention costs more than the threads gain (6,000 JPEGs of 32 px: 1.1 s in one thread, 2.7 s in two).
    """

    def chunk(start: int) -> list[Any]:
        found = []
        for i in rows[start : start + CHUNK]:
            try:
                found.append(work(i, files.read(i)))
            except Exception as error:  # decoders raise anything: every failure means a broken file
                found.append(_reason(error))
        return found

    threads = (os.cpu_count() or 1) if _typical_bytes(files, rows) > SMALL else 1
    with ThreadPoolExecutor(threads) as pool:
        return [fact for part in pool.map(chunk, range(0, len(rows), CHUNK)) for fact in part]


def _typical_bytes(files: Files, rows: Sequence[int]) -> int:
    """Median size of a few files."""
    sizes = []
    for i in rows[:: max(1, len(rows) // 15)]:
        try:
            sizes.append(len(files.read(i)))
        except Exception:  # broken: named later
            sizes.append(0)
    return sorted(sizes)[len(sizes) // 2] if sizes else 0


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return shown(reason)[:100]


def _name_broken(parts: Mapping[str, Files], scan: Scan, name: str) -> str:
    words, n = _broken(parts, scan), sum(map(len, parts.values()))
    return (f"{len(words):,} of {counted(n, 'image')} in {name} cannot be read: {listed(words, NAMED)}; repair or "
            "delete them, or set data.skip_broken=true")


def _broken(parts: Mapping[str, Files], scan: Scan) -> list[str]:
    """Broken files, each with the reason."""
    return [f"{shown(parts[part].name(i))} ({why})" for part in parts for i, why in sorted(scan.broken[part].items())]


def _refuse_empty(parts: Mapping[str, Files], scan: Scan, name: str) -> None:
    for part, files in parts.items():
        if len(scan.broken[part]) == len(files):
            raise UserError(_name_broken(parts, scan, name) + " (which would leave none)")
