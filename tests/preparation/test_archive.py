"""Download of the annotation file: extraction, resumption, downloads that begin again, errors."""

import errno
import io
import logging
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from cocoseg import progress
from cocoseg.errors import CocosegError
from cocoseg.preparation import download, http_client
from cocoseg.preparation.download import fetch_annotations
from cocoseg.preparation.http_client import RETRY
from server import Answer, Server, endless, names, ok, ranged, redirect, status

MEMBER = "annotations/instances_train2017.json"
JSON = b'{"images": [' + b" " * 200_000 + b"]}"
NO_SPACE = OSError(errno.ENOSPC, "No space left")


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return stream.getvalue()


ARCHIVE = zipped({"annotations/captions.json": b"{}", MEMBER: JSON, "annotations/b.json": b"[]"})
SIZE = len(ARCHIVE)
ENCRYPTED = ARCHIVE.replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1").replace(
    b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "RETRY", RETRY.new(total=2, backoff_factor=0.01, backoff_jitter=0))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / MEMBER


def assert_fetched(target: Path, content: bytes = JSON) -> None:
    """Check that the file is there, and nothing else."""
    assert target.read_bytes() == content
    assert names(target.parent) == [target.name]


def assert_refused(url: str, target: Path, message: str) -> None:
    """Check that there is an error, and nothing that was not there before."""
    before = {*target.parents[1].rglob("*")}
    with pytest.raises(CocosegError, match=message) as caught:
        fetch_annotations(url, target)
    assert url in str(caught.value)
    assert {*target.parents[1].rglob("*")} <= before


def ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for headers in server.headers]


def test_files_of_an_archive(
    server: Server, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    moved = server.set("/data/annotations.zip?key=1", ok(ARCHIVE))
    url = server.set("/a.zip", status(500), status(429, Retry_After=0), redirect(moved))
    fetch_annotations(url, target, tmp_path / "other" / "b.json")
    assert_fetched(target)
    assert_fetched(tmp_path / "other" / "b.json", b"[]")
    assert "a.zip: 0 of 0 MB, 0 s left" in caplog.text
    fetch_annotations(url, target)
    assert len(server.requests) == 4


def test_the_file_itself_is_begun_anew(server: Server, target: Path) -> None:
    """JSON has no checksum: halves of two versions would be read as a file."""
    part = target.with_name("where.json.part")
    part.parent.mkdir()
    part.write_bytes(JSON.replace(b"images", b"IMAGES")[:60_000])
    url = server.set("/some/where.json", ranged(JSON, cut=70_000), ranged(JSON))
    fetch_annotations(url, target)
    assert_fetched(target)
    assert ranges(server) == [None, None]
    with pytest.raises(CocosegError, match="one file, not an archive of 2"):
        fetch_annotations(url, target, target.with_name("b.json"))


DAMAGED = "no zip archive, or damaged"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        *[("a.json", body, "no JSON object") for body in (b"", JSON[:-1], b"[]", b'{"a": ' + b"[" * 99_999)],
        ("a.zip", b"<html>no such bucket</html>", DAMAGED),
        ("a.zip", ARCHIVE[:-500], DAMAGED),
        ("a.zip", ARCHIVE[500:], DAMAGED),
        ("a.zip", ARCHIVE[:1000] + b"!" + ARCHIVE[1001:], DAMAGED),
        ("a.zip", ARCHIVE.replace(b"annotations/ins", b"annotations\\ins", 1), DAMAGED),
        ("a.zip", ENCRYPTED, DAMAGED),
    ],
)
def test_other_content_than_the_file(
    server: Server, target: Path, name: str, body: bytes, message: str
) -> None:
    assert_refused(server.set(f"/{name}", ok(body)), target, message)
    assert len(server.requests) == 2  # fetched again, once


def test_another_archive(server: Server, target: Path) -> None:
    """The archive is kept, and used once the name is corrected."""
    with pytest.raises(CocosegError, match=r"no annotations/b\.json in it, but \['annotations/a\\x1b'\]"):
        fetch_annotations(
            server.set("/b.zip", ok(zipped({"annotations/a\x1b": b""}))), target.with_name("b.json")
        )
    target.with_name("b.zip.part").unlink()
    server.headers.clear()
    url = server.set("/a.zip", ranged(ARCHIVE))
    with pytest.raises(CocosegError, match=r"no annotations/instances_trian2017\.json in it, but "):
        fetch_annotations(url, target.with_name("instances_trian2017.json"))
    fetch_annotations(url, target)
    assert_fetched(target)
    assert ranges(server) == [None, f"bytes={SIZE}-"]


def test_sizes_are_bounded(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(download, "ANNOTATIONS_LIMIT", len(JSON) - 1)
    assert_refused(server.set("/a.zip", endless(sent)), target, f"larger than {len(JSON) - 1} bytes")
    assert max(sent) < 2**25
    bomb = zipped({MEMBER: JSON}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CocosegError, match=f"{MEMBER} is larger than {len(JSON) - 1} bytes"):
        fetch_annotations(server.set("/b.zip", ok(bomb)), target)
    assert not target.exists()


def test_gives_up(server: Server, target: Path) -> None:
    assert_refused(server.set("/a.zip", status(503)), target, "503 Service Unavailable")
    assert len(server.requests) == 3
    assert_refused(server.set("/b.zip", status(404)), target, "404 Not Found")
    assert_refused(server.set("/c.zip", redirect("file:///etc/passwd")), target, "file:///etc/passwd")
    assert_refused("ftp://127.0.0.1/a.zip", target, "no http or https address")
    assert_refused("http://127.0.0.1:1/a.zip", target, r"no connection to .* \(Connection refused\)")


CUT = ranged(ARCHIVE, cut=60_000)


@pytest.mark.parametrize(
    ("left", "answers", "expected"),
    [
        (b"", [CUT, CUT, ranged(ARCHIVE)], [None, 60_000, 120_000]),
        (b"", [ok(ARCHIVE[:60_000], Content_Length=SIZE), ok(ARCHIVE)], [None, 60_000]),  # no ranges here
        # Another version by now, or damaged on the way.
        (b"", [ranged(b"!" * 99_000, cut=60_000), ranged(ARCHIVE)], [None, 60_000, None]),
        (b"", [CUT, ranged(b"!" * SIZE), ranged(ARCHIVE)], [None, 60_000, None]),
        # Servers that are wrong about ranges.
        (b"", [CUT, status(206), ok(ARCHIVE)], [None, 60_000, None]),
        (b"", [CUT, status(416), ok(ARCHIVE)], [None, 60_000, None]),
        # Left by a killed run: a part, or all, of this version or of others.
        (ARCHIVE[:999], [ranged(ARCHIVE)], [999]),
        (ARCHIVE, [ranged(ARCHIVE)], [SIZE]),
        (b"!" * 999, [ranged(ARCHIVE)], [999, None]),
        (b"!" * SIZE, [ranged(ARCHIVE)], [SIZE, None]),
        (b"!" * 999_999, [ranged(ARCHIVE)], [999_999, None]),
    ],
)
def test_resumes(
    server: Server, target: Path, left: bytes, answers: list[Answer], expected: list[int | None]
) -> None:
    target.parent.mkdir()
    target.with_name("a.zip.part").write_bytes(left)
    target.with_name(".part-0123.json").write_bytes(JSON[:1000])
    fetch_annotations(server.set("/a.zip", *answers), target)
    assert_fetched(target)
    assert ranges(server) == [begin and f"bytes={begin}-" for begin in expected]


def test_a_server_that_breaks_off(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not give up while it makes progress, but fetches a damaged file only once more."""
    monkeypatch.setattr(http_client, "MIB", 10_000)
    fetch_annotations(server.set("/a.zip", ranged(ARCHIVE, cut=30_000)), target)
    assert_fetched(target)
    target.unlink()
    server.headers.clear()
    broken = ARCHIVE[:-500]
    url = server.set("/b.zip", *[ranged(broken, cut=120_000), ranged(broken)] * 3)
    assert_refused(url, target, "no zip archive, or damaged")
    assert ranges(server) == [None, "bytes=120000-", None, None]


def full(chunks: Iterator[bytes], *_: Any, **__: Any) -> Iterator[bytes]:
    yield next(chunks)
    raise NO_SPACE


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [(http_client, "track", full), (shutil, "copyfileobj", Mock(side_effect=NO_SPACE))],
)
def test_a_full_disk(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Any
) -> None:
    """The disk fills while the archive is fetched, or extracted. The archive stays for the next run."""
    url = server.set("/a.zip", ranged(ARCHIVE))
    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(CocosegError, match=r"annotations/.*: can't be written \(No space left\)"):
            fetch_annotations(url, target)
    assert names(target.parent) == ["a.zip.part"]
    fetch_annotations(url, target)
    assert_fetched(target)
