"""Archives from the network: fetched by one process, resumed after an interruption, verified, unpacked as a whole."""

import errno
import gzip
import hashlib
import http.client
import logging
import lzma
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from aigc.errors import UserError
from aigc.wording import Report, silent

TRIES = 5            # failed connections in a row before giving up
PAUSE = 2.0          # seconds before the next attempt
TIMEOUT = 60.0       # seconds without data
CHUNK = 2**18        # bytes read at a time
BROKEN_OFF = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError,
           NotImplementedError)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A zip or tar archive and what is known about it; without a checksum, only its length is checked."""

    url: str
    bytes: int | None = None        # length of the original
    sha256: str | None = None       # of the original, in hexadecimal


def fetch(archive: Archive, root: Path, progress: Report = silent) -> None:
    """Makes the folder `root` from an archive, unless it exists: downloads, verifies and unpacks it.

    A single top folder of the archive becomes `root` itself. Several processes may call this at once: one
    works while the others wait. `progress` is told how many bytes of how many are there, and the archive's name.

    Raises:
        UserError: no network, a wrong length or checksum, a damaged archive, a full disk.
    """
    from filelock import FileLock

    with _disk(root):
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.parent / f".{root.name}.lock"):
            if root.exists():
                return
            packed = root.parent / f"{root.name}.{_ending(archive.url)}"
            part = packed.with_name(f"{packed.name}.part")
            if not packed.exists():
                _download(archive, part, progress)
                _check(archive, part)
                part.replace(packed)
            _unpack(packed, root, archive.url)
            packed.unlink()


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room and run the same command again, or name another data.root" if full else (
            "name a data.root that can be written to")
        raise UserError(f"{root} cannot be written ({error.strerror or error}): {advice}") from error


def _ending(url: str) -> str:
    name = PurePosixPath(urllib.parse.urlparse(url).path).name
    return "zip" if name.lower().endswith(".zip") else "tar"


# ---- over the network ----


def _download(archive: Archive, part: Path, progress: Report) -> None:
    """Completes the partial file `part`."""
    log.info("downloading %s", archive.url)
    tries = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            total = _connect(archive, part, have, progress)
            reason = "the connection was closed"
        except urllib.error.HTTPError as error:
            _refuse(archive, part, f"the server answered {error.code} {error.reason}", error)
        except BROKEN_OFF as error:
            total, reason = None, str(getattr(error, "reason", "") or error or type(error).__name__)
        now = part.stat().st_size if part.exists() else 0
        if total is not None and now >= total:
            return
        tries = 1 if now > have else tries + 1
        if tries >= TRIES or now == 0:
            _refuse(archive, part, reason)
        time.sleep(PAUSE)


def _connect(archive: Archive, part: Path, have: int, progress: Report) -> int:
    """One connection: appends what the server sends to the first `have` bytes; returns the archive's length."""
    headers = {"User-Agent": "aigc"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(archive.url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:              # 416: nothing follows `have` bytes
            raise
        error.close()
        total = _number(error.headers.get("Content-Range", "").rpartition("/")[2])
        if total == have:
            return have
        part.unlink()                                  # longer than the archive: part of another file
        return _connect(archive, part, 0, progress)
    with answer:
        resumed = answer.status == 206
        length = _number(answer.headers.get("Content-Length"))
        total = archive.bytes if length is None else length + (have if resumed else 0)
        if total is None:
            _refuse(archive, part, "the server does not say how long it is")
        if archive.bytes is not None and total != archive.bytes:
            _refuse(archive, part, f"the server offers {total:,} bytes, the original has {archive.bytes:,}")
        left = total - (have if resumed else 0)
        free = shutil.disk_usage(part.parent).free
        if left > free:
            raise OSError(errno.ENOSPC, f"{left:,} bytes remain, {free:,} are free")
        done = have if resumed else 0
        with open(part, "ab" if resumed else "wb") as file:
            while block := answer.read(CHUNK):
                file.write(block)
                done += len(block)
                progress(done, total, part.stem)
    return total


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _refuse(archive: Archive, part: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    folder = part.name.rpartition(".")[0].rpartition(".")[0]
    have = part.stat().st_size if part.exists() else 0
    so_far = f"; {have:,} bytes are kept, and the same command resumes from there" if have else ""
    raise UserError(f"{archive.url} cannot be downloaded ({reason}){so_far}: check the network, or unpack the archive "
                    f"yourself into {part.parent / folder}") from cause


def _check(archive: Archive, part: Path) -> None:
    """Verifies the checksum, where one is known; deletes the file if it differs."""
    if archive.sha256 is None:
        return
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        part.unlink()
        raise UserError(f"{archive.url} came with sha256 {found[:16]}..., the original has {archive.sha256[:16]}...: "
                        "it was deleted; run the same command again, or unpack an archive that you trust yourself")


# ---- on the disk ----


def _unpack(packed: Path, root: Path, url: str) -> None:
    """Unpacks into a temporary folder, which then becomes `root`; deletes a damaged archive."""
    temporary = root.parent / f".{root.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)       # left by a process that was killed
    try:
        temporary.mkdir()
        if zipfile.is_zipfile(packed):
            _unzip(packed, temporary)
        else:
            _untar(packed, temporary)
        inside = [path for path in temporary.iterdir() if path.name != "__MACOSX"]
        whole = inside[0] if len(inside) == 1 and inside[0].is_dir() else temporary
        whole.replace(root)
    except DAMAGED as error:
        packed.unlink()
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":. ")
        raise UserError(f"the download from {url} is not a complete archive ({reason}): it was deleted; run the "
                        "same command again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unzip(packed: Path, folder: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        for member in archive.infolist():
            _refuse_escape(member.filename, packed)
        needed, free = sum(member.file_size for member in archive.infolist()), shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are to be unpacked, {free:,} are free")
        archive.extractall(folder)


def _untar(packed: Path, folder: Path) -> None:
    with tarfile.open(packed) as archive:
        for member in archive:
            _refuse_escape(member.name, packed)
            try:
                archive.extract(member, folder, filter="data")
            except tarfile.FilterError as error:
                raise UserError(f"{packed} holds '{member.name}', which is not a plain file inside it: do not use "
                                "this archive") from error
        while archive.fileobj is not None and archive.fileobj.read(CHUNK):
            pass                                       # its checksum is behind the last file


def _refuse_escape(name: str, packed: Path) -> None:
    """Refuses names that lead outside the folder that an archive is unpacked into."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[:1]:
        raise UserError(f"{packed} holds '{name}', which would be written outside its folder: do not use this archive")
