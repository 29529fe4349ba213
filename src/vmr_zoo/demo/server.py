"""The web server of the page: this machine only, a few fixed addresses, ids instead of paths.

    GET  /  /page.css  /page.js          the page
    GET  /state                          models and videos
    POST /search {"video", "query"}      JSON Lines: progress, then an answer or an error
    POST /upload?name=NAME               keeps a dropped file: the bytes are the body
    GET  /video/ID                       the file, or a range of it
    GET  /picture/ID?at=SECONDS          one picture as JPEG
    GET  /clip/ID?start=&end=            the moment as an MP4 file

A web page elsewhere must not use this server through the browser of its visitor: requests for another host
name (DNS rebinding) and requests that another page makes are refused.
"""

from __future__ import annotations

import io
import ipaddress
import json
import mimetypes
import re
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from vmr_zoo.demo.library import Library, Video
from vmr_zoo.demo.searcher import LONGEST_QUERY, Searcher
from vmr_zoo.errors import VmrError
from vmr_zoo.video.cut import cut
from vmr_zoo.video.picture import picture_at

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MOST_JSON = 64 * 1024
_CHUNK = 2**18
_PICTURES_AT_ONCE = 2
"""Pictures that are decoded at the same time."""


class Refused(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        message: for the page.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class DemoServer(ThreadingHTTPServer):
    """Serves the page.

    Attributes:
        library: the videos.
        searcher: the models.
        about: one sentence on the page about the models.
    """

    library: Library
    searcher: Searcher
    about: str

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        """Takes the port.

        Raises:
            VmrError: if it is taken, or the machine has no such address.
        """
        self.names = {"localhost", host.lower()}
        self.pictures = threading.Semaphore(_PICTURES_AT_ONCE)
        self.picture = lru_cache(maxsize=512)(picture_at)
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise VmrError(
                f"Cannot serve at {host}:{port}: {error.strerror or error}. port=0 takes any free port."
            ) from error

    def server_bind(self) -> None:
        """Takes the port; the base class would ask a name server for the name of this machine."""
        socketserver.TCPServer.server_bind(self)

    def serve(self, library: Library, searcher: Searcher, about: str) -> None:
        """Answers requests until Ctrl-C, or until another thread calls `shutdown`."""
        self.library, self.searcher, self.about = library, searcher, about
        self.serve_forever(poll_interval=0.2)

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can open the page."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints the traceback, unless the browser closed the connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "vmr_zoo"
    sys_version = ""
    timeout = 60
    server: DemoServer

    def do_GET(self) -> None:
        """Answers a request for the page, or for what it shows."""
        self._answer(
            {"state": self._state, "video": self._video, "picture": self._picture, "clip": self._clip}
        )

    def do_POST(self) -> None:
        """Answers a search or keeps a file."""
        self._answer({"search": self._search, "upload": self._upload})

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: the terminal shows what matters."""

    def end_headers(self) -> None:
        """Adds what every answer has."""
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def _answer(self, routes: dict[str, Callable[[str, dict[str, str]], None]]) -> None:
        """Checks a request, finds its route, and answers it or says why not."""
        try:
            try:
                parts = urlsplit(self.path)
            except ValueError as error:
                raise Refused(HTTPStatus.BAD_REQUEST, "This is no address.") from error
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            self._check_origin(parts.path)
            if self.command == "GET" and parts.path in _PAGE:
                name, kind = _PAGE[parts.path]
                self._send(Path(__file__).with_name(name).read_bytes(), kind)
                return
            _, _, address = parts.path.partition("/")
            route, *rest = address.split("/")
            if route not in routes or len(rest) > 1:
                raise Refused(HTTPStatus.NOT_FOUND, "There is nothing at this address.")
            routes[route](rest[0] if rest else "", query)
        except Refused as error:
            self._send_error(error.status, error.message)
        except VmrError as error:
            self._send_error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    def _check_origin(self, path: str) -> None:
        """Refuses what a browser sends because a page of another server made it.

        A name that is not ours may have been pointed here by its owner; an address cannot be.
        """
        host = self.headers.get("Host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name not in self.server.names and not _is_address(name):
            raise Refused(HTTPStatus.FORBIDDEN, f"This page is at {self.server.address} only.")
        elsewhere = self.headers.get("Origin") not in (None, f"http://{host}")
        site = self.headers.get("Sec-Fetch-Site") not in (None, "none", "same-origin")
        if elsewhere or (site and path != "/"):  # a link elsewhere may lead to the page
            raise Refused(HTTPStatus.FORBIDDEN, "Another page may not use this one.")

    def _state(self, _: str, query: dict[str, str]) -> None:
        library = self.server.library
        self._send_json(
            {
                "runs": list(self.server.searcher.retrievers),
                "about": self.server.about,
                "videos": [{"id": video.id, "name": video.name} for video in list(library.videos.values())],
                "most_bytes": library.most_bytes,
                "longest_query": LONGEST_QUERY,
            }
        )

    def _search(self, _: str, query: dict[str, str]) -> None:
        """Streams the events of a search; the connection ends with it."""
        asked = self._json()
        video, sentence = self._find(str(asked.get("video", ""))), str(asked.get("query", ""))
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.close_connection = True  # its end is the end of the events
        self.end_headers()
        try:
            event: dict[str, Any] = {"answer": self.server.searcher.search(video, sentence, self._event)}
        except VmrError as error:
            event = {"error": str(error)}
        except ConnectionError:
            raise  # the page was closed, or searches for something else
        except Exception:
            self._event({"error": "An error of the program, whose traceback is in the terminal of vmr demo."})
            raise
        self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(event, allow_nan=False).encode() + b"\n")
        self.wfile.flush()

    def _upload(self, _: str, query: dict[str, str]) -> None:
        video = self.server.library.upload(self.rfile, self._length(), query.get("name", ""))
        self._send_json({"id": video.id, "name": video.name})

    def _video(self, id: str, query: dict[str, str]) -> None:
        """Sends a file, or the range of it that a player asks for."""
        video = self._find(id)
        kind = mimetypes.guess_type(video.name)[0] or ""
        try:
            file = video.path.open("rb")
        except OSError as error:
            raise Refused(HTTPStatus.NOT_FOUND, f"{video.name}: {error.strerror}.") from error
        with file:
            self._send_file(file, kind if kind.startswith("video/") else "application/octet-stream")

    def _picture(self, id: str, query: dict[str, str]) -> None:
        video = self._find(id)
        (at,) = _seconds(query, "at")
        with self.server.pictures, video.naming():
            jpeg = self.server.picture(video.path, round(at, 1))
        self._send(jpeg, "image/jpeg")

    def _clip(self, id: str, query: dict[str, str]) -> None:
        """Cuts a moment out and sends it."""
        video = self._find(id)
        start, end = _seconds(query, "start", "end")
        with tempfile.TemporaryDirectory(dir=self.server.library.folder) as folder:
            out = Path(folder) / "clip.mp4"
            with video.naming():
                cut(video.path, start, end, out)
            with out.open("rb") as file:
                self._send_file(file, "video/mp4")

    def _find(self, id: str) -> Video:
        video = self.server.library.videos.get(id)
        if video is None:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such video. Choose one of the list.")
        return video

    def _length(self) -> int:
        """Returns the number of bytes that the browser sends."""
        text = self.headers.get("Content-Length", "")
        if re.fullmatch(r"[0-9]{1,18}", text) is None:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Expected a request that states its length.")
        return int(text)

    def _json(self) -> dict[str, Any]:
        length = self._length()
        if length > _MOST_JSON:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request is too long.")
        try:
            asked = json.loads(self.rfile.read(length))
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "Expected a JSON object.")
        return asked

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send_error(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True  # its body may not have been read
        self._send_json({"error": message}, status)

    def _send_file(self, file: BinaryIO, kind: str) -> None:
        """Sends a file, or the range of it that the request names."""
        size = file.seek(0, io.SEEK_END)
        chosen = _range(self.headers.get("Range", ""), size)
        if chosen is not None and chosen.start >= size:
            raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"The file has {size} bytes.")
        part = range(size) if chosen is None else chosen
        self.send_response(HTTPStatus.OK if chosen is None else HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if chosen is not None:
            self.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{size}")
        self.end_headers()
        file.seek(part.start)
        left = len(part)
        while left and (chunk := file.read(min(left, _CHUNK))):
            self.wfile.write(chunk)
            left -= len(chunk)
        if left:  # the file has become shorter
            self.close_connection = True


def _range(header: str, size: int) -> range | None:
    """Returns the bytes that a Range header names.

    None, the whole file, for a header without a single range.

    >>> _range("bytes=2-", 10), _range("bytes=2-99", 10), _range("bytes=-3", 10), _range("bytes=0-1,4-5", 10)
    (range(2, 10), range(2, 10), range(7, 10), None)
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1) if last else size)


_LATEST = 1e9
"""Seconds that no video has; decoders count in 64 bits."""


def _seconds(query: dict[str, str], *names: str) -> list[float]:
    """Returns times from a query."""
    try:
        values = [float(query[name]) for name in names]
    except (KeyError, ValueError):
        values = []
    if not values or not all(0 <= value < _LATEST for value in values):
        raise Refused(
            HTTPStatus.BAD_REQUEST, f"Expected seconds from 0 to {_LATEST:g} for {' and '.join(names)}."
        )
    return values


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
