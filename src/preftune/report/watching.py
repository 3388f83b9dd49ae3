"""The report of a run that still goes on, served to this machine alone; the page renews what has changed of itself."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from preftune.errors import PreftuneError
from preftune.report.html import Live, as_bytes, plotly, render, text_of
from preftune.report.reading import RunData, read
from preftune.report.values import number

HOST = "127.0.0.1"
SHOWN = (
    *("config.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "failure.json", "data_doctor.json"),
    *("evaluation.json", "generations.jsonl", "credit.jsonl"),
)


class Watched:
    """The page of a run folder, made anew only when one of its files has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # several tabs may ask at once
        self._stamp, self._page, self._live = "", b"", Live("", "", "")

    def stamp(self) -> str:
        """Sizes and times of the files that the page shows, as one word: it changes when one of them does."""
        found = []
        for name in SHOWN:
            try:
                status = (self.path / name).stat()
            except OSError:
                continue
            found.append(f"{name[0]}{status.st_size:x}.{status.st_mtime_ns:x}")
        return "-".join(found)

    def page(self) -> tuple[bytes, Live]:
        """The page as of now.

        Raises:
            PreftuneError: if a file of the run cannot be parsed, or the folder is gone.
        """
        with self._lock:
            stamp = self.stamp()
            if stamp != self._stamp or not self._page:
                run = read(self.path)
                live = _live(run, stamp)
                self._page, self._live, self._stamp = as_bytes(render(run, live)), live, stamp
            return self._page, self._live


def serve(run_dir: str | Path, port: int = 0, opened: Callable[[str], None] | None = None) -> None:
    """Serve the live report of a run until Ctrl-C.

    Args:
        run_dir: the run folder.
        port: of this machine; 0 for any that is free.
        opened: told the address, when it can be asked.

    Raises:
        PreftuneError: if there is no run, or the port is taken.
    """
    watched = Watched(Path(run_dir))
    watched.page()
    with _listen(watched, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        if opened is not None:
            opened(address)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            return


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, watched: Watched) -> None:
        self.watched = watched
        super().__init__((HOST, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A tab that was closed in the middle of an answer is no error; anything else is one."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the name is http.server's
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):  # another site's name for us
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"ask for 127.0.0.1\n")
            return
        scripts: dict[str, Callable[[], str]] = {
            "/plotly.js": plotly,
            "/page.js": lambda: text_of("page.js"),
            "/live.js": lambda: text_of("live.js"),
        }
        path = self.path.partition("?")[0]
        if path in scripts:
            self._answer(HTTPStatus.OK, "text/javascript", scripts[path]().encode(), "max-age=3600")
        elif path == "/stamp":
            self._answer(HTTPStatus.OK, "application/json", json.dumps(self._stamp()).encode())
        elif path == "/":
            self._page()
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is only /\n")

    def _page(self) -> None:
        try:
            page, _ = self.server.watched.page()
        except PreftuneError as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", as_bytes(f"{error}\n"))
            return
        self._answer(HTTPStatus.OK, "text/html", page)

    def _stamp(self) -> dict[str, Any]:
        try:
            _, live = self.server.watched.page()
        except PreftuneError as error:
            return {"error": str(error)}
        return {"stamp": live.stamp, "said": live.said, "state": live.state}

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, cache: str = "no-store") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", cache)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to who started it."""


def _listen(watched: Watched, port: int) -> _Server:
    try:
        return _Server(port, watched)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PreftuneError(
            f"cannot serve on port {port} of {HOST} ({reason}): name another one with --port, or leave it out"
        ) from None


def _live(run: RunData, stamp: str) -> Live:
    """How the run is doing, as its files say."""
    steps = [step for row in run.history if (step := number(row.get("step"))) is not None]
    at = f"step {max(steps):,.0f}" if steps else "no step is recorded yet"
    if run.summary:
        return Live(stamp, f"The run has ended: {at}", "done")
    if run.failure:
        return Live(stamp, f"The run has failed: {at}", "error")
    return Live(stamp, f"Live: {at}", "running")
