import errno
import io
import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg import download, progress, web
from cocoseg.coco import Image
from cocoseg.download import Failure, fetch_images
from cocoseg.errors import CocosegError
from server import (
    QUICK,
    Answer,
    Server,
    endless,
    names,
    ok,
    raw,
    redirect,
    reset,
    says,
    silent,
    slow,
    start,
    status,
    wait_for,
)


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    noise = PIL.Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.save(stream, kind)
    return stream.getvalue()


GOOD = picture()


def entry(number: int, url: str | None, name: str | None = None) -> Image:
    return Image(number, name or f"{number:03}.jpg", 40, 30, url)


def site(server: Server, count: int, answer: Callable[[bytes], Answer] = ok) -> list[Image]:
    """So many images, served at their coco_url."""
    return [entry(n, server.set(f"/{n}", answer(picture(n)))) for n in range(1, count + 1)]


def assert_complete(images: Sequence[Image], folder: Path) -> None:
    assert names(folder) == sorted(image.file_name for image in images)
    for image in images:
        assert (folder / image.file_name).read_bytes() == picture(image.id)


def only_failure(image: Image, folder: Path, **options: Any) -> str:
    """Fetch an image that can't be fetched: the reason, which is all that is left of it."""
    (failure,) = fetch_images([image], folder, **{**QUICK, **options})
    assert (failure.file_name, failure.url) == (image.file_name, image.coco_url)
    assert names(folder) == []
    return failure.reason


def test_fetches_once_what_is_missing(server: Server, tmp_path: Path) -> None:
    images = site(server, 30)
    images.append(entry(31, server.set("/31", ok(picture(31))), "sub/folder/31.jpg"))
    assert fetch_images(images[:20], tmp_path) == []
    assert fetch_images(images, tmp_path) == []
    assert_complete(images, tmp_path)
    assert sorted(server.requests) == sorted(f"/{n}" for n in range(1, 32))

    assert fetch_images(images, tmp_path) == []
    assert len(server.requests) == 31


@pytest.mark.parametrize("slash", ["", "/"])
def test_from_a_mirror(server: Server, tmp_path: Path, slash: str) -> None:
    path = "/mirror/a%20b/%C3%A4%23%3F%25%2B.jpg"
    server.set(path, ok(picture(1)))
    image = entry(1, "http://127.0.0.1:1/unused", "a b/ä#?%+.jpg")
    assert fetch_images([image], tmp_path, base_url=f"{server.url}/mirror{slash}") == []
    assert_complete([image], tmp_path)
    assert server.requests == [path]


@pytest.mark.parametrize(
    ("trouble", "requests"),
    [
        ([status(500), status(502), status(504)], 4),
        ([status(503, Retry_After="soon")], 2),
        ([status(429, Retry_After="0"), status(408)], 3),
        ([reset(GOOD[:700], len(GOOD))], 2),
        ([says(len(GOOD), GOOD[:700])], 2),
        ([says(len(GOOD) + 5, GOOD)], 2),
        ([says(700, GOOD)], 2),
        ([says("many", GOOD)], 2),
        ([raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n")], None),  # aiohttp itself tries a second time
        ([raw(b"ADSL router\r\n\r\n")], None),
        ([reset()], None),
        ([raw(b"")], None),
        ([ok(GOOD[:-300])], 2),
        ([ok(b"<html>be patient</html>")], 2),
        ([ok(b"")], 2),
    ],
)
def test_tries_again(server: Server, tmp_path: Path, trouble: list[Answer], requests: int | None) -> None:
    image = entry(1, server.set("/1", *trouble, ok(picture(1))))
    assert fetch_images([image], tmp_path, **QUICK) == []
    assert_complete([image], tmp_path)
    assert requests is None or len(server.requests) == requests


@pytest.mark.parametrize("trouble", [silent(0.5), slow(GOOD, 2, 0.5)])
def test_silence_ends(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Answer
) -> None:
    monkeypatch.setattr(web, "SILENCE_TIMEOUT", 0.3)
    image = entry(1, server.set("/1", trouble, ok(picture(1))))
    assert fetch_images([image], tmp_path, **QUICK) == []
    assert_complete([image], tmp_path)
    assert len(server.requests) >= 2


def test_slow_but_alive(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "SILENCE_TIMEOUT", 1.0)
    images = site(server, 1, lambda body: slow(body, 6, 0.25))
    assert fetch_images(images, tmp_path) == []
    assert server.requests == ["/1"]


def test_waits_as_long_as_asked(server: Server, tmp_path: Path) -> None:
    image = entry(1, server.set("/1", status(429, Retry_After=1), ok(picture(1))))
    begin = time.monotonic()
    assert fetch_images([image], tmp_path, **QUICK) == []
    assert 1 <= time.monotonic() - begin < 4


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("", 0),
        ("later", 0),
        ("-3", 0),
        ("nan", 0),
        ("9" * 5000, float("inf")),
    ],
)
def test_retry_after(value: str, seconds: float) -> None:
    assert web._retry_after({"Retry-After": value}) == seconds


def test_retry_after_a_date() -> None:
    date = datetime.now(UTC) + timedelta(seconds=30)
    for text in (format_datetime(date, usegmt=True), format_datetime(date.replace(tzinfo=None))):
        assert 28 < web._retry_after({"Retry-After": text}) <= 30


def test_pauses_grow_and_are_capped() -> None:
    client = web.Client(None, 5, 1.0)
    for number, seconds in enumerate([1, 2, 4, 8, 16, 32, 60, 60]):
        assert 0.75 * seconds <= client._seconds(number, 0) <= 1.25 * seconds
    assert client._seconds(0, 30) == 30
    assert client._seconds(0, float("inf")) == web.LONGEST_PAUSE


@pytest.mark.parametrize("code", [404, 403, 410, 401, 451])
def test_some_answers_are_final(server: Server, tmp_path: Path, code: int) -> None:
    images = site(server, 5)
    server.set("/3", status(code))
    (failure,) = fetch_images(images, tmp_path, **QUICK)
    assert (failure.file_name, failure.url) == ("003.jpg", f"{server.url}/3")
    assert str(code) in failure.reason
    assert server.requests.count("/3") == 1
    assert_complete(images[:2] + images[3:], tmp_path)

    server.set("/3", ok(picture(3)))  # the next run takes up there
    assert fetch_images(images, tmp_path) == []
    assert_complete(images, tmp_path)
    assert len(server.requests) == 6


def test_gives_up(server: Server, tmp_path: Path) -> None:
    image = entry(1, server.set("/1", status(500)))
    assert "500" in only_failure(image, tmp_path, retries=3)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("body", "requests", "reason"),
    [
        (GOOD[:-300], 3, "truncated"),
        (GOOD[:200] + bytes(len(GOOD) - 200), 3, ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n", 3, "none of JPEG, PNG"),
        (picture(size=(30, 40)), 3, "30x40 (width x height), the annotation file says 40x30"),
        (picture(size=(1, 1), kind="PNG"), 3, "1x1"),
    ],
)
def test_what_is_no_such_image_fails(
    server: Server, tmp_path: Path, body: bytes, requests: int, reason: str
) -> None:
    image = entry(1, server.set("/1", ok(body)))
    found = only_failure(image, tmp_path)
    assert reason in found
    assert ".part" not in found
    assert len(server.requests) == requests


def test_pixels_are_bounded(server: Server, tmp_path: Path) -> None:
    """A small PNG that would unfold to 400 million pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zipfile.crc32(header))
    body = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc + struct.pack(">I", 99) + b"IDAT"
    reason = only_failure(entry(1, server.set("/1", ok(body))), tmp_path)
    assert "exceeds limit" in reason


def test_bytes_are_bounded(server: Server, tmp_path: Path) -> None:
    sent: list[int] = []
    image = entry(1, server.set("/1", endless(sent)))
    assert only_failure(image, tmp_path, max_bytes=2**20) == "larger than 1048576 bytes"
    assert len(server.requests) == 1
    assert max(sent) < 2**25  # what fits into the buffers between


def test_follows_redirects(server: Server, tmp_path: Path) -> None:
    server.set("/target", ok(picture(1)))
    image = entry(1, server.set("/1", redirect(f"{server.url}/2")))
    server.set("/2", redirect("/target"))
    assert fetch_images([image], tmp_path) == []
    assert_complete([image], tmp_path)
    assert server.requests == ["/1", "/2", "/target"]


@pytest.mark.parametrize(
    "to", ["file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "data:,x", "http://[::1", "ws://127.0.0.1/"]
)
def test_redirects_stay_on_http(server: Server, tmp_path: Path, to: str) -> None:
    image = entry(1, server.set("/1", redirect(to)))
    assert "address" in only_failure(image, tmp_path)
    assert server.requests == ["/1"]


def test_redirects_end(server: Server, tmp_path: Path) -> None:
    image = entry(1, server.set("/1", redirect("/1")))
    assert "redirected more than" in only_failure(image, tmp_path)
    assert len(server.requests) <= web.MAX_REDIRECTS
    assert "302" in only_failure(entry(2, server.set("/2", status(302))), tmp_path)


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "a.jpg", "http:///a.jpg", "http://[", "http://a..b/c"],
)
def test_addresses_are_http(tmp_path: Path, url: str) -> None:
    assert "address" in only_failure(entry(1, url), tmp_path)
    if url != "http://a..b/c":
        with pytest.raises(CocosegError, match="address"):
            fetch_images([entry(1, None)], tmp_path, base_url=url)


@pytest.mark.parametrize("url", [None, ""])
def test_no_address(server: Server, tmp_path: Path, url: str | None) -> None:
    images = [entry(9, url), *site(server, 2)]
    reason = "the annotation file has no coco_url for it; set data.images_url"
    assert fetch_images(images, tmp_path) == [Failure("009.jpg", "", reason)]
    assert_complete(images[1:], tmp_path)


def test_a_password_is_not_shown(server: Server, tmp_path: Path) -> None:
    base = server.url.replace("http://", "http://me:secret@")
    (failure,) = fetch_images([entry(1, None)], tmp_path, base_url=base)
    assert failure.url == f"{server.url}/001.jpg"
    assert "Authorization" in server.headers[0]


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../../b.jpg", "", ".", "..", "C:\\a.jpg", "\0"])
def test_names_stay_in_the_folder(server: Server, tmp_path: Path, name: str) -> None:
    image = Image(1, name, 40, 30, f"{server.url}/1")
    with pytest.raises(CocosegError, match="leads out of"):
        fetch_images([image], tmp_path / "in")
    assert not server.requests


def test_names_that_the_disk_refuses(server: Server, tmp_path: Path) -> None:
    images = [entry(9, server.set("/9", ok(picture(9))), "x" * 300), *site(server, 2)]
    (tmp_path / "001.jpg").mkdir()
    failures = fetch_images(images, tmp_path)
    assert [failure.file_name for failure in failures] == ["x" * 300, "001.jpg"]
    assert all("can't be written" in failure.reason for failure in failures)
    assert_complete(images[2:], tmp_path)


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_are_bounded(server: Server, tmp_path: Path, connections: int) -> None:
    images = site(server, 12, lambda body: slow(body, 2, 0.02))
    server.set("/5", status(500), redirect("/other"))
    server.set("/other", ok(picture(5)))
    assert fetch_images(images, tmp_path, connections=connections, **QUICK) == []
    assert_complete(images, tmp_path)
    assert server.peak == connections


def test_a_pause_keeps_no_connection(server: Server, tmp_path: Path) -> None:
    images = site(server, 10)
    server.set("/1", status(503, Retry_After=1), ok(picture(1)))
    fetch_images(images, tmp_path, connections=1)
    assert server.requests[-1] == "/1"
    assert_complete(images, tmp_path)


def test_what_is_there_is_left_alone(server: Server, tmp_path: Path) -> None:
    """Whatever it is: decoding it again would take as long as drawing the masks, which checks it."""
    images = site(server, 2)
    (tmp_path / "001.jpg").write_bytes(picture(1)[:-300])
    (tmp_path / "002.jpg").touch()  # of a power failure
    assert fetch_images(images, tmp_path) == []
    assert (tmp_path / "001.jpg").read_bytes() == picture(1)[:-300]
    assert (tmp_path / "002.jpg").read_bytes() == picture(2)
    assert server.requests == ["/2"]


def test_decodes_in_other_threads(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    accept = download._accept
    monkeypatch.setattr(
        download, "_accept", lambda *args: (threads.append(threading.current_thread()), accept(*args))
    )
    fetch_images(site(server, 3), tmp_path)
    assert len(threads) == 3
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("count", [1, 40])
def test_no_network(tmp_path: Path, count: int) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening: refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(CocosegError, match=r"127\.0\.0\.1 can't be reached .*failed"):
            fetch_images([entry(n, f"{url}/{n}") for n in range(1, count + 1)], tmp_path, **QUICK)
    assert names(tmp_path) == []


def test_one_host_of_two_is_down(server: Server, tmp_path: Path) -> None:
    images = site(server, 5)
    down = [entry(n, f"http://127.0.0.1:1/{n}") for n in range(100, 140)]
    failures = fetch_images(images + down, tmp_path, retries=1, **QUICK)
    assert [failure.file_name for failure in failures] == [image.file_name for image in down]
    assert_complete(images, tmp_path)


def test_the_network_goes_away(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PROBABLY_DOWN", 25)
    images = site(server, 2) + [entry(n, f"http://127.0.0.1:1/{n}") for n in range(100, 200)]
    with pytest.raises(CocosegError, match="can't be reached"):
        fetch_images(images, tmp_path, retries=1, **QUICK)
    assert_complete(images[:2], tmp_path)


def test_a_full_disk_ends_it(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "save", save)
    with pytest.raises(OSError, match="No space left") as caught:
        fetch_images(site(server, 100), tmp_path, connections=2)
    assert str(tmp_path) in str(caught.value.filename)
    assert len(server.requests) <= 8
    assert names(tmp_path) == []


def test_two_at_once(server: Server, tmp_path: Path) -> None:
    images = site(server, 20, lambda body: slow(body, 2, 0.02))
    results: list[list[Failure]] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch_images(images, tmp_path))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[], []]
    assert_complete(images, tmp_path)
    assert len(server.requests) == 20


def test_old_leftovers_go(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".download-77.part").write_bytes(b"of another subset, killed")
    (tmp_path / "mine.part").write_bytes(b"")
    fetch_images(site(server, 1), tmp_path)
    assert names(tmp_path) == ["001.jpg", "mine.part"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ended_from_outside(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    images = site(server, 12, lambda body: slow(body, 4, 0.05))
    entries = [(image.id, image.file_name, 40, 30, image.coco_url) for image in images]
    process = start(f"fetch_images([Image(*e) for e in {entries}], Path({str(tmp_path)!r}), connections=2)")
    wait_for(lambda: len([name for name in names(tmp_path) if name.endswith(".jpg")]) >= 3)
    wait_for(lambda: list(tmp_path.glob(".*.part")))
    begin = time.monotonic()
    process.send_signal(number)
    error = process.communicate(timeout=10)[1]
    assert time.monotonic() - begin < 5
    done = [name for name in names(tmp_path) if name.endswith(".jpg")]
    assert 3 <= len(done) < 12
    if number == signal.SIGINT:
        assert names(tmp_path) == done
        assert error.strip().endswith(b"KeyboardInterrupt")
    assert fetch_images(images, tmp_path) == []
    assert_complete(images, tmp_path)
    assert all(server.requests.count(f"/{int(name[:3])}") == 1 for name in done)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    images = site(server, 4, lambda body: slow(body, 8, 0.1))
    fetch_images(images, tmp_path, connections=2)
    assert "images:" in terminal.getvalue()
    assert "/4 [00:0" in terminal.getvalue()
    assert "MB/s" in terminal.getvalue()


def test_progress_in_lines(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    fetch_images(site(server, 4), tmp_path)
    assert "images: 3 of 4, " in caplog.text
    assert " s left" in caplog.text
    assert f"{tmp_path}: 4 images fetched (0 MB) in 0 s, 0 failed" in caplog.text
