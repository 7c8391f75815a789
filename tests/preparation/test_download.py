"""Download of images: the files that appear, retries, errors."""

import errno
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import PIL.Image
import pytest

from cocoseg import progress
from cocoseg.errors import CocosegError
from cocoseg.preparation import download, http_client
from cocoseg.preparation.coco_file import Image
from cocoseg.preparation.download import Failure, fetch_images
from cocoseg.preparation.http_client import RETRY, HttpClient
from server import Answer, Handler, Server, endless, names, ok, raw, redirect, slow, status, wait_for

NOWHERE = "http://127.0.0.1:1"  # nothing listens there


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "RETRY", RETRY.new(backoff_factor=0.01, backoff_jitter=0))


def jpeg(seed: int = 0, size: tuple[int, int] = (40, 30)) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


GOOD = jpeg(1)


def entry(index: int, url: str | None, name: str | None = None) -> Image:
    return Image(index, 40, 30, name or f"{index:03}.jpg", url)


def site(server: Server, count: int, answer: Callable[[bytes], Answer] = ok) -> list[Image]:
    """Serve so many images at their coco_url."""
    return [entry(n, server.set(f"/{n}", answer(jpeg(n)))) for n in range(1, count + 1)]


def assert_complete(images: Sequence[Image], folder: Path) -> None:
    assert names(folder) == sorted(image.file_name for image in images)
    for image in images:
        assert (folder / image.file_name).read_bytes() == jpeg(image.id)


def reason_of(image: Image, folder: Path, max_bytes: int = 2**26) -> str:
    """Fetch an image that can't be fetched. Returns the reason; no file is left."""
    (failure,) = fetch_images([image], folder, max_bytes=max_bytes)
    assert (failure.file_name, failure.url) == (image.file_name, image.coco_url)
    assert names(folder) == []
    return failure.reason


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:99999/a",
        "http://127.0.0.1:-1/a",
        "http://[::1/a",
        f"http://{'a' * 64}.org/a",
        "http://a..b/c",
    ],
)
def test_a_bad_address_fails_alone_and_at_once(server: Server, tmp_path: Path, url: str) -> None:
    failures = fetch_images([entry(0, url), *site(server, 2)], tmp_path)
    assert [(one.url, one.reason) for one in failures] == [(url, f"{url!r} is no http or https address")]
    assert names(tmp_path) == ["001.jpg", "002.jpg"]


def test_fetches_missing_images_once(server: Server, tmp_path: Path) -> None:
    images = [*site(server, 10), entry(11, server.set("/11", ok(jpeg(11))), "sub/folder/11.jpg")]
    (tmp_path / "001.jpg").write_bytes(b"whatever it is, it is left alone")
    (tmp_path / "002.jpg").touch()  # as a power failure leaves it
    (tmp_path / ".part-0123.jpg").write_bytes(b"as a killed run leaves it")
    assert fetch_images(images, tmp_path) == []
    assert sorted(server.requests) == sorted(f"/{n}" for n in range(2, 12))
    (tmp_path / "001.jpg").write_bytes(jpeg(1))
    assert fetch_images(images, tmp_path) == []
    assert_complete(images, tmp_path)
    assert len(server.requests) == 10


def test_sixteen_connections_in_bounded_memory(server: Server, tmp_path: Path) -> None:
    """Images of 4 MB; sixteen of them in memory would take 64 MB."""
    body = GOOD + bytes(2**22)  # a JPEG ends where it says, whatever follows

    def answer(handler: Handler) -> None:
        wait_for(lambda: server.peak >= 16)
        ok(body)(handler)

    images = site(server, 24, lambda _: answer)
    tracemalloc.start()
    assert fetch_images(images, tmp_path) == []
    assert tracemalloc.get_traced_memory()[1] < 16e6
    tracemalloc.stop()
    assert server.peak == 16
    assert len(names(tmp_path)) == 24


@pytest.mark.parametrize(
    "trouble",
    [
        [status(500), status(502), status(408)],
        [status(429, Retry_After="soon"), status(429, Retry_After="9" * 5000), endless([], 503)],
        [ok(GOOD[:700], Content_Length=len(GOOD))],
        [ok(GOOD[:-300])],
        [ok(b"<html>be patient</html>")],
        [raw(b"")],
        [raw(b"ADSL router\r\n\r\n")],
    ],
)
def test_tries_again(server: Server, tmp_path: Path, trouble: list[Answer]) -> None:
    image = entry(1, server.set("/1", *trouble, ok(GOOD)))
    assert fetch_images([image], tmp_path) == []
    assert_complete([image], tmp_path)
    assert len(server.requests) == len(trouble) + 1


def test_a_silent_server_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over, usual = threading.Event(), http_client.TIMEOUT

    def silent(handler: Handler) -> None:
        monkeypatch.setattr(http_client, "TIMEOUT", usual)  # the next answer may take its time
        handler.head(200, Content_Length=len(GOOD))
        is_over.wait(600)

    monkeypatch.setattr(http_client, "TIMEOUT", 0.3)
    image = entry(1, server.set("/1", silent, ok(GOOD)))
    try:
        assert fetch_images([image], tmp_path) == []
    finally:
        is_over.set()
    assert_complete([image], tmp_path)
    assert len(server.requests) > 1


def test_pauses(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses grow, or are those that the server asks for, up to a minute."""
    pauses: list[float] = []
    monkeypatch.setattr(http_client, "RETRY", RETRY.new(total=8))
    sleep = time.sleep

    def note(seconds: float) -> None:
        # Threads of the server may still answer the test before.
        in_main = threading.current_thread() is threading.main_thread()
        pauses.append(seconds) if in_main else sleep(seconds)

    monkeypatch.setattr(time, "sleep", note)

    def fetch(path: str, *answers: Answer) -> None:
        pauses.clear()
        HttpClient().fetch(server.set(path, *answers), tmp_path / "file", 10, lambda _: None)

    with pytest.raises(CocosegError, match="the server answered 503 Service Unavailable"):
        fetch("/1", status(503))
    for pause, least in zip(pauses, [2, 4, 8, 16, 32, 60, 60], strict=True):
        assert least <= pause <= min(least + 1, 60)
    fetch("/2", status(429, Retry_After=9), status(503, Retry_After=99_999), ok(b"good"))
    assert pauses == [9, 60]


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (500, 4)])
def test_gives_up_and_goes_on_in_the_next_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, requests: int
) -> None:
    monkeypatch.setattr(http_client, "RETRY", http_client.RETRY.new(total=3))
    images = [entry(9, None), *site(server, 5)]
    server.set("/3", status(code))
    failure, no_address = fetch_images(images, tmp_path)
    assert no_address == Failure(
        "009.jpg", "", "the annotation file has no coco_url for it; set data.images_url"
    )
    assert (failure.file_name, failure.url) == ("003.jpg", f"{server.url}/3")
    assert f"the server answered {code} " in failure.reason
    assert server.requests.count("/3") == requests
    server.set("/3", ok(jpeg(3)))
    server.requests.clear()
    assert fetch_images(images[1:], tmp_path) == []
    assert_complete(images[1:], tmp_path)
    assert server.requests == ["/3"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (GOOD[:-300], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n", "none of JPEG, PNG"),
        (jpeg(size=(30, 40)), "30x40 (width x height), the annotation file says 40x30"),
    ],
)
def test_other_content_than_the_image_fails(server: Server, tmp_path: Path, body: bytes, reason: str) -> None:
    found = reason_of(entry(1, server.set("/1", ok(body))), tmp_path)
    assert reason in found
    assert ".part" not in found
    assert len(server.requests) == 2


def test_bytes_are_bounded(server: Server, tmp_path: Path) -> None:
    sent: list[int] = []
    image = entry(1, server.set("/1", endless(sent)))
    assert reason_of(image, tmp_path, max_bytes=2**20) == "larger than 1048576 bytes"
    assert len(server.requests) == 1
    assert max(sent) < 2**25  # what fits into the buffers between


def test_follows_redirects(server: Server, tmp_path: Path) -> None:
    image = entry(1, server.set("/1", redirect(f"{server.url}/2")))
    server.set("/2", redirect("/target"))
    server.set("/target", ok(GOOD))
    assert fetch_images([image], tmp_path) == []
    assert_complete([image], tmp_path)
    assert server.requests == ["/1", "/2", "/target"]
    assert "redirected more than" in reason_of(entry(3, server.set("/3", redirect("/3"))), tmp_path / "3")


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/a.jpg", "data:,x", "http://[::1"])
def test_only_http(server: Server, tmp_path: Path, to: str) -> None:
    redirected = entry(1, server.set("/1", redirect(to)))
    for image in (redirected, entry(2, to)):
        assert reason_of(image, tmp_path) == f"{to!r} is no http or https address"
    assert server.requests == ["/1"]


def test_never_from_https_to_http(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has no certificate, so the answer to https comes over http here."""
    image = entry(1, server.set("/1", redirect(f"{server.url}/2")).replace("http:", "https:"))
    server.set("/2", ok(GOOD))
    send = http_client.urllib3.PoolManager.request
    monkeypatch.setattr(
        http_client.urllib3.PoolManager,
        "request",
        lambda self, method, url, **rest: send(self, method, url.replace("https:", "http:"), **rest),
    )
    assert reason_of(image, tmp_path) == f"redirected from https to {server.url}/2"
    assert server.requests == ["/1"]


def test_the_proxy_of_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [entry(1, "http://images.test/1"), entry(2, server.set("/2", ok(jpeg(2))))]
    server.set("http://images.test/1", ok(GOOD))
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//me:s%40crit@"))
    assert fetch_images(images[:1], tmp_path) == fetch_images(images[1:], tmp_path) == []
    assert_complete(images, tmp_path)
    assert server.requests == ["http://images.test/1", "/2"]  # conftest.py puts 127.0.0.1 into NO_PROXY
    assert server.headers[0]["proxy-authorization"] == "Basic bWU6c0Bjcml0"
    assert "proxy-authorization" not in server.headers[1]

    monkeypatch.setenv("http_proxy", "socks5://me:secret@127.0.0.1")
    with pytest.raises(CocosegError, match=r"^http_proxy: no http or https address"):
        fetch_images([entry(3, NOWHERE)], tmp_path)


def test_a_mirror(server: Server, tmp_path: Path) -> None:
    path = "/mirror/a%20b/%C3%A4%23%3F%25%2B.jpg"
    server.set(path, ok(GOOD))
    images = [entry(1, NOWHERE, "a b/ä#?%+.jpg"), entry(2, None)]
    (failure,) = fetch_images(images, tmp_path, base_url=f"{server.url}/mirror/")
    assert_complete(images[:1], tmp_path)
    assert failure.url == f"{server.url}/mirror/002.jpg"


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a/../../b.jpg", "", ".", "..", "C:\\a.jpg", "\0"])
def test_names_stay_in_the_folder(server: Server, tmp_path: Path, name: str) -> None:
    with pytest.raises(CocosegError, match="leads out of"):
        fetch_images([Image(1, 40, 30, name, f"{server.url}/1")], tmp_path / "in")
    assert not server.requests


def test_a_full_disk_ends_it(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CONNECTIONS", 2)
    monkeypatch.setattr(download, "check_image", Mock(side_effect=OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CocosegError, match=r"\.jpg: can't be written \(No space left\)"):
        fetch_images(site(server, 100), tmp_path)
    assert len(server.requests) <= 8
    assert names(tmp_path) == []


def test_an_answer_that_comes_after_the_end_is_not_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended = threading.Event()

    def late(handler: Handler) -> None:
        has_ended.wait()
        ok(GOOD)(handler)

    def fail(*_: object) -> None:
        wait_for(lambda: "/1" in server.requests)
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(download, "CONNECTIONS", 2)
    monkeypatch.setattr(download, "check_image", check := Mock(side_effect=fail))
    before = set(threading.enumerate())
    with pytest.raises(CocosegError, match="No space left"):
        fetch_images([entry(1, server.set("/1", late)), entry(2, server.set("/2", ok(GOOD)))], tmp_path)
    has_ended.set()
    for thread in set(threading.enumerate()) - before:
        if "(worker)" in thread.name:  # of the pool, not of the server
            thread.join()
    # A thread of the test before may still be at work on its own folder.
    assert [call.args[0].parent for call in check.call_args_list].count(tmp_path) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("count", [1, 100])
def test_no_network(tmp_path: Path, count: int) -> None:
    images = [entry(n, f"{NOWHERE}/{n}") for n in range(1, count + 1)]
    with pytest.raises(
        CocosegError,
        match=r"^no connection to 127\.0\.0\.1 \(Connection refused\); check",
    ):
        fetch_images(images, tmp_path)
    assert names(tmp_path) == []


def test_one_dead_server_among_others(server: Server, tmp_path: Path) -> None:
    images = [*site(server, 20), entry(21, f"{NOWHERE}/21")]
    (failure,) = fetch_images(images, tmp_path)
    assert failure.url == f"{NOWHERE}/21"
    assert failure.reason == "no connection to 127.0.0.1 (Connection refused)"
    assert_complete(images[:20], tmp_path)


def test_a_mirror_that_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(CocosegError, match=r"^'ftp://mirror' is no http or https address$"):
        fetch_images([entry(1, "")], tmp_path, base_url="ftp://mirror")
    with pytest.raises(CocosegError, match=r"^no user and password can be sent to mirror; "):
        fetch_images([entry(1, "")], tmp_path, base_url="https://me:secret@mirror")


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
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


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT]
)
def test_ended_from_outside(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    """The end comes at once, whether the server is silent or sends images."""
    images = site(server, 12)
    for n in (3, 7):
        server.set(f"/{n}", slow(jpeg(n), 2, 120), ok(jpeg(n)))
    entries = [(image.id, 40, 30, image.file_name, image.coco_url) for image in images]
    code = (
        "from pathlib import Path; from cocoseg.preparation.coco_file import Image;"
        "from cocoseg.preparation import download; download.CONNECTIONS = 2;"
        f"download.fetch_images([Image(*e) for e in {entries}], Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    done = ["001.jpg", "002.jpg", "004.jpg", "005.jpg", "006.jpg"]
    wait_for(lambda: all((tmp_path / name).exists() for name in done))
    wait_for(lambda: len(list(tmp_path.glob(".part-*"))) == 2)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert [name for name in names(tmp_path) if not name.startswith(".")] == done
    if number == signal.SIGINT:
        assert names(tmp_path) == done
        assert error.strip().endswith(b"KeyboardInterrupt")
    assert fetch_images(images, tmp_path) == []
    assert_complete(images, tmp_path)
    assert all(server.requests.count(f"/{int(name[:3])}") == 1 for name in done)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    images = site(server, 8, lambda body: slow(body, 2, 0.1))
    fetch_images(images[:4], tmp_path)
    assert "images: 3 of 4, " in caplog.text
    assert f"{tmp_path}: 4 images fetched, 0 failed" in caplog.text
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fetch_images(images, tmp_path)
    assert "images:" in terminal.getvalue()
    assert "/4 [00:0" in terminal.getvalue()
