"""An HTTP server on loopback that misbehaves as it is told."""

import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOCK = ".download.lock"
QUICK = {"pause": 0.01}

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        answer = self.server.begin(self)
        try:
            answer(self)
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
    """On loopback; the n-th request for a path gets the n-th answer set for it, then the last one again."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.peak = 0
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

    def handle_error(self, *_: Any) -> None:
        pass


def ok(body: bytes, **headers: str | int) -> Answer:
    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(body), **headers)
        handler.wfile.write(body)

    return answer


def status(code: int, **headers: str | int) -> Answer:
    return lambda handler: handler.head(code, Content_Length=0, **headers)


def redirect(to: str) -> Answer:
    return status(302, Location=to)


def says(length: int | str, body: bytes) -> Answer:
    """A body of another length than the header says; the connection ends after it."""

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=length)
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


def reset(body: bytes = b"", length: int = 0) -> Answer:
    """The connection is torn down, after a part of the body if there is one."""

    def answer(handler: Handler) -> None:
        if body:
            handler.head(200, Content_Length=length)
            handler.wfile.write(body)
            time.sleep(0.05)  # a reset overtakes what has not been read
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(handler.connection.detach())
        handler.close_connection = True

    return answer


def slow(body: bytes, pieces: int, seconds: float, **headers: str | int) -> Answer:
    """The body in pieces, with pauses between."""

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(body), **headers)
        for begin in range(0, len(body), -(-len(body) // pieces)):
            handler.wfile.write(body[begin : begin + -(-len(body) // pieces)])
            time.sleep(seconds)

    return answer


def silent(seconds: float) -> Answer:
    def answer(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return answer


def raw(text: bytes) -> Answer:
    """These bytes, HTTP or not."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(text)
        handler.close_connection = True

    return answer


def endless(sent: list[int]) -> Answer:
    """A body without length and end, in chunks; how much of it could be sent is added to `sent`."""

    def answer(handler: Handler) -> None:
        handler.head(200, Transfer_Encoding="chunked")
        for number in itertools.count(1):
            handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
            sent.append(number * 2**16)

    return answer


def ranged(body: bytes, tag: str = '"v1"', cut: int | None = None, if_range: bool = True) -> Answer:
    """Supports Range and If-Range; `cut`: the connection breaks after so many bytes of the answer."""

    def answer(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        if asked and (not if_range or handler.headers.get("If-Range") == tag):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                handler.head(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
                return
            part, code = body[first:], 206
            extra = {"Content_Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
        else:
            part, code, extra = body, 200, {}
        handler.head(code, Content_Length=len(part), ETag=tag, **extra)
        handler.wfile.write(part[:cut])
        handler.close_connection = cut is not None

    return answer


# --- what the tests of downloads share ---


def names(folder: Path) -> list[str]:
    """All files but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return sorted(str(path.relative_to(folder)) for path in files)


def start(code: str) -> subprocess.Popen[bytes]:
    """A process of its own, to be killed."""
    imports = (
        "from pathlib import Path; from cocoseg.coco import Image; "
        "from cocoseg.archive import fetch_annotations; from cocoseg.download import fetch_images; "
    )
    return subprocess.Popen([sys.executable, "-c", imports + code], stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
