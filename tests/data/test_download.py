"""Archives from a server on this machine: broken off and gone on with, cut short, damaged, or not to be trusted."""

import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig
from PIL import Image

from aigc.config.schema import CONFIG_DIR
from aigc.config.targets import instantiate
from aigc.data import download
from aigc.data.download import Archive, fetch
from aigc.data.pair_folders import UnpairedFolder
from aigc.errors import UserError


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `sent` lists what was asked for and what went out."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.cuts: list[int] = []          # bytes after which the next connections break off
        self.ranges = True                 # whether it can go on in the middle
        self.length = True                 # whether it says how much is to come
        self.status = 200
        self.sent: list[tuple[str | None, int]] = []

    def archive(self, name: str = "set.zip", **facts: object) -> Archive:
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", **facts)  # type: ignore[arg-type]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        asked = self.headers.get("Range")
        start = int(re.findall(r"\d+", asked)[0]) if asked and server.ranges else 0
        if server.status != 200:
            self.send_error(server.status)
            return
        if start and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            server.sent.append((asked, 0))  # first: the client may be through before this thread goes on
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: server.cuts.pop(0)] if server.cuts else body
        server.sent.append((asked, len(body)))
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def images(top: str = "horse2zebra/") -> dict[str, bytes]:
    files = {}
    for folder, first in (("trainA", 0), ("trainB", 100), ("testA", 50), ("testB", 150)):
        for i in range(12):
            buffer = io.BytesIO()
            Image.effect_noise((16, 16), first + i).save(buffer, "PNG")
            files[f"{top}{folder}/{i}.png"] = buffer.getvalue()
    return files


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo("set/link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
    return buffer.getvalue()


NAMED = sorted(path.stem for path in (CONFIG_DIR / "data").glob("*.yaml") if "Archive" in path.read_text())


@pytest.mark.parametrize("name", NAMED)
def test_named_data_sets_say_what_they_download_and_how_they_are_cropped(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("AIGC_DATA", str(tmp_path))
    data = instantiate(composed(f"data={name}").data, "data")
    assert (data.name, data.root, data.load_size, data.crop_size, data.flip) == (
        name, tmp_path / name, (286, 286), (256, 256), True)
    url = data.archive.url
    assert url.endswith((f"/cyclegan/datasets/{name}.zip", f"/pix2pix/datasets/{name}.tar.gz"))
    assert (data.kind == "paired") == ("pix2pix" in url)
    if data.archive.sha256 is not None:
        assert re.fullmatch("[0-9a-f]{64}", data.archive.sha256) and data.archive.bytes > 10**7
    with pytest.raises(UserError, match=rf"{name} does not exist and data\.download=false"):
        instantiate(composed(f"data={name}", "data.download=false").data, "data").prepare_data()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.parent.iterdir() if path != root and not path.name.endswith(".lock"))


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_data_set_is_downloaded_unpacked_and_read(server: Server, tmp_path: Path, pack: object) -> None:
    files = images()
    server.content = pack(files)  # type: ignore[operator]
    root = tmp_path / "cache" / "horse2zebra"
    archive = server.archive("horse2zebra.zip" if pack is zipped else "horse2zebra.tar.gz",
                             bytes=len(server.content), sha256=hashlib.sha256(server.content).hexdigest())
    data = UnpairedFolder(root=str(root), batch_size=2, archive=archive, validation=2)
    data.prepare_data()
    assert data.counts("train") == (10, 10) and data.counts("test") == (12, 12)
    assert contents(root) == {name.removeprefix("horse2zebra/"): content for name, content in files.items()}
    assert leftovers(root) == [] and len(server.sent) == 1
    UnpairedFolder(root=str(root), batch_size=2, archive=archive).prepare_data()
    assert len(server.sent) == 1                             # what is there is not fetched again


def test_a_connection_that_breaks_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.content = zipped(images())
    n = len(server.content)
    server.cuts = [3000, 5000]
    fetch(server.archive(bytes=n), tmp_path / "set")
    assert server.sent == [(None, 3000), ("bytes=3000-", 5000), ("bytes=8000-", n - 8000)]
    assert len(contents(tmp_path / "set")) == 48


def test_another_run_goes_on_where_one_was_killed(server: Server, tmp_path: Path) -> None:
    server.content = zipped(images())
    part = tmp_path / "set.zip.part"
    part.write_bytes(server.content[:7000])
    (tmp_path / ".set.unpacking" / "half").mkdir(parents=True)  # of the one that was killed
    fetch(server.archive(sha256=hashlib.sha256(server.content).hexdigest()), tmp_path / "set")
    assert server.sent == [("bytes=7000-", len(server.content) - 7000)]
    assert len(contents(tmp_path / "set")) == 48 and leftovers(tmp_path / "set") == []


def test_a_server_that_cannot_go_on_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.content, server.ranges = zipped(images()), False
    (tmp_path / "set.zip.part").write_bytes(b"something else" * 100)
    fetch(server.archive(), tmp_path / "set")
    assert server.sent == [("bytes=1400-", len(server.content))]
    assert len(contents(tmp_path / "set")) == 48


def test_a_complete_part_is_not_fetched_again_and_a_longer_one_is(server: Server, tmp_path: Path) -> None:
    server.content = zipped(images())
    for extra, sent in ((b"", 0), (b"x", len(server.content))):
        server.sent.clear()
        root = tmp_path / f"set{len(extra)}"
        (tmp_path / f"{root.name}.zip.part").write_bytes(server.content + extra)
        fetch(server.archive(), root)
        assert sum(n for _, n in server.sent) == sent and len(contents(root)) == 48


def test_an_archive_cut_short_again_and_again_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.content = zipped(images())
    server.cuts = [1000] + [0] * download.TRIES
    words = r"set\.zip cannot be downloaded \(.*\); 1,000 bytes are kept, and the same command resumes"
    with pytest.raises(UserError, match=words) as caught:
        fetch(server.archive(), tmp_path / "set")
    assert "\n" not in str(caught.value) and str(tmp_path / "set") in str(caught.value)
    assert (tmp_path / "set.zip.part").stat().st_size == 1000 and not (tmp_path / "set").exists()
    server.cuts = []
    fetch(server.archive(), tmp_path / "set")
    assert len(contents(tmp_path / "set")) == 48


def test_another_length_or_checksum_than_the_originals_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = zipped(images())
    n = len(server.content)
    with pytest.raises(UserError, match=rf"offers {n:,} bytes, the original has {n + 5:,}"):
        fetch(server.archive(bytes=n + 5), tmp_path / "set")
    assert leftovers(tmp_path / "set") == []
    with pytest.raises(UserError, match=r"came with sha256 [0-9a-f]{16}\.\.\., the original has 1234567812345678\."):
        fetch(server.archive(sha256="12345678" * 8), tmp_path / "set")
    assert leftovers(tmp_path / "set") == []
    server.length = False
    with pytest.raises(UserError, match="does not say how long it is"):
        fetch(server.archive(), tmp_path / "set")


@pytest.mark.parametrize("status", [404, 503])
def test_what_the_server_does_not_give_is_one_sentence(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=rf"cannot be downloaded \(the server answered {status} .*unpack the archive"):
        fetch(server.archive(), tmp_path / "set")


def test_progress_is_told_from_the_first_byte_to_the_last_also_over_a_cut(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    server.content, server.cuts = zipped(images()), [3000]
    fetch(server.archive(), tmp_path / "set", lambda *one: told.append(one))
    done = [one[0] for one in told]
    assert done == sorted(done) and done[0] == 3000 and done[-1] == len(server.content)
    assert {one[1:] for one in told} == {(len(server.content), "set.zip")}


def test_no_network_is_one_sentence(server: Server, tmp_path: Path) -> None:
    nobody = Archive("http://127.0.0.1:9/set.zip")
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused\): check the network, or unpack") as caught:
        UnpairedFolder(root=str(tmp_path / "set"), batch_size=1, archive=nobody).prepare_data()
    assert "\n" not in str(caught.value) and str(tmp_path / "set") in str(caught.value)
    with pytest.raises(UserError, match=r"does not exist and data\.download=false"):
        UnpairedFolder(root=str(tmp_path / "set"), batch_size=1, archive=nobody, download=False).prepare_data()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_damaged_archive_is_deleted_and_leaves_no_folder(server: Server, tmp_path: Path, pack: object) -> None:
    whole = bytearray(pack(images()))  # type: ignore[operator]
    for damaged in (b"no archive at all", bytes(whole[: len(whole) // 2]),
                    bytes(whole[:4000] + b"\xff" * 400 + whole[4400:])):
        server.content = damaged
        with pytest.raises(UserError, match=r"is not a complete archive \(.*\): it was deleted"):
            fetch(server.archive(), tmp_path / "set")
        assert leftovers(tmp_path / "set") == [] and not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "set/../../outside.png", "..\\outside.png"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_cannot_write_outside_its_folder(server: Server, tmp_path: Path, pack: object, name: str) -> None:
    server.content = pack({"set/trainA/0.png": b"x", name: b"y"})  # type: ignore[operator]
    root = tmp_path / "inside" / "set"
    with pytest.raises(UserError, match="would be written outside its folder: do not use this archive"):
        fetch(server.archive(), root)
    assert not root.exists() and not (tmp_path / "inside" / ".set.unpacking").exists()
    assert [path.name for path in tmp_path.rglob("outside.png")] == []


@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd"])
def test_a_link_out_of_the_folder_is_refused(server: Server, tmp_path: Path, target: str) -> None:
    server.content = tarred({"set/trainA/0.png": b"x"}, link=target)
    with pytest.raises(UserError, match="'set/link', which is not a plain file inside it"):
        fetch(server.archive("set.tar.gz"), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_full_disk_is_one_sentence(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = zipped(images())
    usage = type(download.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage(100, 0, 100))
    with pytest.raises(UserError, match=r"set cannot be written \(.* bytes remain, 100 are free\): make room"):
        fetch(server.archive(), tmp_path / "set")
    (tmp_path / "set.zip").write_bytes(server.content)
    with pytest.raises(UserError, match=r"bytes are to be unpacked, 100 are free\): make room and run the same"):
        fetch(server.archive(), tmp_path / "set")
    monkeypatch.undo()
    fetch(server.archive(), tmp_path / "set")               # the archive was there: nothing is fetched any more
    assert sum(n for _, n in server.sent[1:]) == 0 and len(contents(tmp_path / "set")) == 48


def test_a_folder_that_cannot_be_written_is_one_sentence(server: Server, tmp_path: Path) -> None:
    (tmp_path / "below").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): name a data.root that can be written to"):
        fetch(server.archive(), tmp_path / "below" / "set")


def test_of_several_processes_one_downloads(server: Server, tmp_path: Path) -> None:
    server.content = zipped(images())
    together = [threading.Thread(target=fetch, args=(server.archive(), tmp_path / "set")) for _ in range(4)]
    for one in together:
        one.start()
    for one in together:
        one.join()
    assert len(server.sent) == 1 and len(contents(tmp_path / "set")) == 48
