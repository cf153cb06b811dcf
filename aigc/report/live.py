"""Serves the page on this machine and keeps it up to date while runs train."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aigc.errors import UserError
from aigc.report.comparison import Comparison
from aigc.report.page import content, page, script_json
from aigc.runs.entry import Run
from aigc.runs.reading import absent_jobs, find_runs, read_all
from aigc.wording import counted

HOST = "127.0.0.1"          # nobody else sees the runs; from elsewhere: ssh -L <port>:127.0.0.1:<port>
NAMES = ("127.0.0.1", "localhost")
TRIED = 50                  # ports after the first, before giving up


class Watched:
    """The data of the page, read again when anything in the runs has changed, at most every `seconds`.

    Attributes:
        version: of the data; grows with every change.
    """

    def __init__(self, spec: Any, score: str | None, at: tuple[str, float] | None, seconds: float,
                 options: dict[str, Any]):
        self.spec = spec
        self.score = score
        self.at = at
        self.seconds = seconds
        self.options = options
        self.version = 0
        self.seen: dict[Path, tuple[Any, Run]] = {}
        self.jobs: list[Run] = []
        self.looked = -math.inf
        self.data: dict[str, Any] = {}
        self.lock = threading.Lock()

    def current(self) -> dict[str, Any]:
        """What the page shows now, with `live: {version, seconds}`.

        Raises:
            UserError: on the first look, there is no run or no such score; later looks keep what there was.
        """
        with self.lock:
            if time.monotonic() - self.looked >= self.seconds:
                try:
                    self._look()
                except UserError:
                    if not self.data:
                        raise
                self.looked = time.monotonic()
            return self.data

    def _look(self) -> None:
        states = {folder: state(folder) for folder in find_runs(self.spec)}
        jobs = absent_jobs(list(states))
        known = {folder: seen for folder, (seen, _) in self.seen.items()}
        if states == known and [job.status for job in jobs] == [job.status for job in self.jobs]:
            return
        self.jobs = jobs
        changed = [folder for folder in states if known.get(folder) != states[folder]]
        fresh = dict(zip(changed, read_all(changed), strict=True))
        self.seen = {folder: (now, fresh.get(folder) or self.seen[folder][1]) for folder, now in states.items()}
        runs = [run for _, run in self.seen.values()] + jobs
        data = content(Comparison(runs, self.score, self.at), **self.options)
        self.version += 1
        self.data = {**data, "live": {"version": self.version, "seconds": self.seconds}}


def state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files that a run's entry in the page is made of; equal as long as none changes."""
    places = (folder, folder / ".hydra", folder / "samples", folder / "evaluations")
    files = [file for place in places if place.is_dir() for file in place.iterdir()]
    found = []
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError:                             # a temporary file that has got its name meanwhile
            continue
        found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return found


def serve(spec: Any, *, score: str | None, at: tuple[str, float] | None, port: int | None, seconds: float,
          say: Callable[[str], None] = print, **options: Any) -> None:
    """Serves until Ctrl-C; prints the address first.

    Args:
        spec: see `runs.find_runs`.
        score: see `Comparison`.
        at: see `Comparison`.
        port: None: the first free one from 8000.
        seconds: between two checks of the runs.
        say: what to do with lines for the user.
        **options: see `page.content`.

    Raises:
        UserError: there is no run, or the port is taken.
    """
    watched = Watched(spec, score, at, seconds, options)
    runs = len(watched.current()["runs"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in NAMES:   # another site's name for this port
                self._send(403, "text/plain", b"this page answers to localhost alone")
            elif asked.path == "/":
                self._send(200, "text/html", page(watched.current()).encode())
            elif asked.path == "/data":
                data = watched.current()
                if parse_qs(asked.query).get("after") == [str(data["live"]["version"])]:
                    self._send(204, "application/json", b"")
                else:
                    self._send(200, "application/json", script_json(data).encode())
            else:
                self._send(404, "text/plain", b"only / is here")

        def _send(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            with contextlib.suppress(ConnectionError):      # the browser has gone away
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the terminal is the user's."""

    server = listen(Handler, port)
    say(f"{counted(runs, 'run')} at http://{HOST}:{server.server_address[1]} (Ctrl-C ends)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.server_close()


def listen(handler: type[BaseHTTPRequestHandler], port: int | None) -> ThreadingHTTPServer:
    """A server on `port`, or on the first free one from 8000.

    Raises:
        UserError: the port is taken, or not allowed.
    """
    ports = [port] if port is not None else range(8000, 8000 + TRIED)
    for number in ports:
        try:
            server = ThreadingHTTPServer((HOST, number), handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        else:
            server.daemon_threads = True
            return server
    raise UserError(f"port {ports[0]} is not available ({reason}): choose another port=, or leave it out")
