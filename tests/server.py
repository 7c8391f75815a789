"""An HTTP server on loopback that misbehaves as it is told."""

import itertools
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        try:
            self.server.begin(self)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone
        finally:
            self.server.end()

    def log_message(self, *_: Any) -> None:
        pass

    def head(self, status: int, **headers: str | int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


class Server(ThreadingHTTPServer):
    """The n-th request for a path gets the n-th answer set for it, later ones the last."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.peak = 0  # requests that are answered at a time
        self._lock = threading.Lock()

    def set(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return self.url + path

    def begin(self, handler: Handler) -> Answer:
        with self._lock:
            answers = self.answers.get(handler.path, [status(404)])
            answer = answers[min(self.requests.count(handler.path), len(answers) - 1)]
            self.requests.append(handler.path)
            self.headers.append(dict(handler.headers))
            self.active += 1
            self.peak = max(self.peak, self.active)
            return answer

    def end(self) -> None:
        with self._lock:
            self.active -= 1


def ok(body: bytes, **headers: str | int) -> Answer:
    """The body; with Content_Length another length than it has."""

    def answer(handler: Handler) -> None:
        handler.head(200, **{"Content_Length": len(body), **headers})
        handler.wfile.write(body)
        handler.close_connection = "Content_Length" in headers

    return answer


def status(code: int, **headers: str | int) -> Answer:
    return lambda handler: handler.head(code, Content_Length=0, **headers)


def redirect(to: str) -> Answer:
    return status(302, Location=to)


def slow(body: bytes, pieces: int, seconds: float) -> Answer:
    """The body in pieces, with pauses between."""

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(body))
        for begin in range(0, len(body), -(-len(body) // pieces)):
            handler.wfile.write(body[begin : begin + -(-len(body) // pieces)])
            time.sleep(seconds)

    return answer


def raw(text: bytes) -> Answer:
    """These bytes, HTTP or not, and the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text)
        handler.close_connection = True

    return answer


def endless(sent: list[int], code: int = 200) -> Answer:
    """A body without length and end, in chunks; how much of it could be sent is added to `sent`."""

    def answer(handler: Handler) -> None:
        handler.head(code, Transfer_Encoding="chunked")
        for number in itertools.count(1):
            handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
            sent.append(number * 2**16)

    return answer


def ranged(body: bytes, cut: int | None = None) -> Answer:
    """Supports Range; `cut`: the connection breaks after so many bytes of the answer."""

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range", "bytes=0-")
        first = int(asked.removeprefix("bytes=").removesuffix("-"))
        if first >= len(body):
            handler.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
            return
        code = 206 if "Range" in handler.headers else 200
        content_range = f"bytes {first}-{len(body) - 1}/{len(body)}"
        handler.head(code, Content_Length=len(body) - first, Content_Range=content_range)
        handler.wfile.write(body[first:][:cut])
        handler.close_connection = cut is not None

    return answer


def names(folder: Path) -> list[str]:
    """All files but the locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return sorted(str(path.relative_to(folder)) for path in files)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60  # on a busy machine
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
