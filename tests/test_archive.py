import errno
import io
import json
import logging
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cocoseg import archive, progress
from cocoseg.archive import fetch_annotations
from cocoseg.errors import CocosegError
from server import (
    QUICK,
    Answer,
    Handler,
    Server,
    endless,
    names,
    ok,
    ranged,
    redirect,
    reset,
    says,
    slow,
    start,
    status,
    wait_for,
)

MEMBER = "annotations/instances_train2017.json"
JSON = b'{"images": [' + b" " * 200_000 + b"]}"


def zipped(**members: bytes) -> bytes:
    """A zip of about the size of JSON; keys are names of members with "/" written as "__"."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as opened:
        for name, content in (members or {"annotations__instances_train2017.json": JSON}).items():
            opened.writestr(name.replace("__", "/") + ("" if "." in name else ".json"), content)
    return stream.getvalue()


ARCHIVE = zipped(annotations__captions=b"{}", annotations__instances_train2017=JSON, annotations__b=b"[]")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "annotations" / "instances_train2017.json"


def assert_fetched(target: Path, content: bytes = JSON) -> None:
    """The file, and nothing else."""
    assert target.read_bytes() == content
    assert names(target.parent) == [target.name]


def assert_refused(url: str, target: Path, message: str, **options: Any) -> None:
    with pytest.raises(CocosegError, match=message) as caught:
        fetch_annotations(url, target, **{**QUICK, **options})
    assert url in str(caught.value)
    assert not target.parent.exists() or names(target.parent) == []


def test_one_file_of_an_archive(server: Server, target: Path) -> None:
    url = server.set("/data/annotations.zip?key=1", ok(ARCHIVE))
    fetch_annotations(url, target)
    assert_fetched(target)
    fetch_annotations(url, target)
    assert len(server.requests) == 1


def test_two_files_of_an_archive(server: Server, target: Path, tmp_path: Path) -> None:
    fetch_annotations(server.set("/a.zip", ok(ARCHIVE)), target, tmp_path / "other" / "b.json")
    assert_fetched(target)
    assert_fetched(tmp_path / "other" / "b.json", b"[]")
    assert len(server.requests) == 1


def test_the_file_itself(server: Server, target: Path) -> None:
    fetch_annotations(server.set("/some/where.json", ok(JSON)), target)
    assert_fetched(target)
    with pytest.raises(CocosegError, match="one file, not an archive of 2"):
        fetch_annotations(f"{server.url}/some/where.json", target, target.with_name("b.json"))


@pytest.mark.parametrize("body", [b"", JSON[:-1], b"[]", b"<html>", b'{"a": ' + b"[" * 100_000])
def test_no_json(server: Server, target: Path, body: bytes) -> None:
    assert_refused(server.set("/a.json", ok(body)), target, "no JSON object")


def test_the_member_is_missing(server: Server, target: Path) -> None:
    members = {f"annotations__x{n}\x1b": b"" for n in range(12)}
    url = server.set("/a.zip", ok(zipped(**members)))
    assert_refused(url, target, rf"no {MEMBER} in it, but 'annotations/x0\\x1b.json', .* and 2 more$")
    assert_refused(server.set("/b.zip", ok(zipped(**{"": b""})[-22:])), target, "no zip|no annotations/")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>no such bucket</html>",
        ARCHIVE[:-500],
        ARCHIVE[500:],
        ARCHIVE[:1000] + b"!" + ARCHIVE[1001:],
        ARCHIVE.replace(MEMBER.encode(), MEMBER.encode().replace(b"_", b"/"), 1),
    ],
)
def test_no_whole_zip(server: Server, target: Path, body: bytes) -> None:
    assert_refused(server.set("/a.zip", ok(body)), target, "no zip archive, or damaged")
    assert len(server.requests) == 1


def test_an_encrypted_zip(server: Server, target: Path) -> None:
    body = bytearray(zipped())
    body[6] |= 1
    body[body.index(b"PK\1\2") + 8] |= 1
    assert_refused(server.set("/a.zip", ok(bytes(body))), target, "can't be read")


def test_sizes_are_bounded(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(archive, "ANNOTATIONS_LIMIT", len(JSON) - 1)
    assert_refused(server.set("/a.zip", endless(sent)), target, f"larger than {len(JSON) - 1} bytes")
    assert max(sent) < 2**25
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr(MEMBER, JSON)
    assert_refused(server.set("/b.zip", ok(stream.getvalue())), target, f"has {len(JSON)} bytes")


@pytest.mark.parametrize("code", [403, 404])
def test_no_archive_there(server: Server, target: Path, code: int) -> None:
    assert_refused(server.set("/a.zip", status(code)), target, str(code))
    assert len(server.requests) == 1


def test_an_archive_in_bad_times(server: Server, target: Path) -> None:
    moved = server.set("/b.zip", reset(ARCHIVE[:9000], len(ARCHIVE)), says(9, ARCHIVE[:5]), ok(ARCHIVE))
    url = server.set("/a.zip", status(500), status(429, Retry_After=0), redirect(moved))
    fetch_annotations(url, target, **QUICK)
    assert_fetched(target)
    assert server.requests.count("/a.zip") == 5


def test_gives_up_on_an_archive(server: Server, target: Path) -> None:
    assert_refused(server.set("/a.zip", status(503)), target, "503", retries=2)
    assert len(server.requests) == 3
    assert_refused(server.set("/b.zip", redirect("file:///etc/passwd")), target, "file:///etc/passwd")
    assert_refused(server.set("/c.zip", ok(ARCHIVE, Content_Encoding="gzip")), target, "compresses")
    assert_refused("ftp://127.0.0.1/a.zip", target, "address")


def ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for headers in server.headers]


def test_a_password_is_not_shown(server: Server, target: Path) -> None:
    with pytest.raises(CocosegError) as caught:
        fetch_annotations(f"{server.url.replace('//', '//me:secret@')}/a.zip", target)
    assert "secret" not in str(caught.value)
    assert "Authorization" in server.headers[0]


def test_no_network(target: Path) -> None:
    assert_refused("http://127.0.0.1:1/a.zip", target, "can't be fetched")


def test_progress_in_lines(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    caplog.set_level(logging.INFO)
    fetch_annotations(server.set("/a.zip", ok(ARCHIVE)), target)
    assert "a.zip: 0 of 0 MB, " in caplog.text


def test_resumes(server: Server, target: Path) -> None:
    url = server.set("/a.zip", ranged(ARCHIVE, cut=60_000), ranged(ARCHIVE, cut=70_000), ranged(ARCHIVE))
    fetch_annotations(url, target, **QUICK)
    assert_fetched(target)
    assert ranges(server) == [None, "bytes=60000-", "bytes=130000-"]


def test_resumes_by_date(server: Server, target: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"

    def first(handler: Handler) -> None:
        handler.head(200, Content_Length=len(ARCHIVE), ETag='W/"weak"', Last_Modified=date)
        handler.wfile.write(ARCHIVE[:60_000])
        handler.close_connection = True

    fetch_annotations(server.set("/a.zip", first, ranged(ARCHIVE, tag=date)), target, **QUICK)
    assert_fetched(target)
    assert ranges(server) == [None, "bytes=60000-"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # No Range: all of it again.
        ([says(len(ARCHIVE), ARCHIVE[:60_000]), ok(ARCHIVE)], [None, None]),
        ([ranged(ARCHIVE, cut=60_000), ok(ARCHIVE)], [None, "bytes=60000-"]),
        # Another version by now.
        ([ranged(b"!" * 99_000, '"v0"', cut=60_000), ranged(ARCHIVE)], [None, "bytes=60000-"]),
        (
            [ranged(b"!" * 99_000, '"v0"', cut=60_000), ranged(ARCHIVE, if_range=False)],
            [None, "bytes=60000-", None],
        ),
        # Servers that are wrong about ranges.
        ([ranged(ARCHIVE, cut=60_000), status(206, ETag='"v1"'), ok(ARCHIVE)], [None, "bytes=60000-", None]),
        ([ranged(ARCHIVE, cut=60_000), status(416), ok(ARCHIVE)], [None, "bytes=60000-", None]),
        (
            [ranged(ARCHIVE, cut=60_000), ranged(b"!" * 99_000), ok(ARCHIVE)],
            [None, "bytes=60000-", None],
        ),
    ],
)
def test_starts_again(
    server: Server, target: Path, answers: list[Answer], expected: list[str | None]
) -> None:
    fetch_annotations(server.set("/a.zip", *answers), target, **QUICK)
    assert_fetched(target)
    assert ranges(server) == expected


def test_versions_are_not_mixed(server: Server, target: Path) -> None:
    """JSON has no checksum: halves of two versions would be read as a file."""
    old, new = JSON.replace(b"images", b"IMAGES"), JSON.replace(b" ]", b"2]")
    url = server.set("/a.json", ranged(old, '"old"', cut=60_000), ranged(new, '"new"', if_range=False))
    fetch_annotations(url, target, **QUICK)
    assert_fetched(target, new)
    target.unlink()

    target.with_name("b.json.part").write_bytes(old + b" ")
    target.with_name("b.json.part.tag").write_text('"new"')
    fetch_annotations(server.set("/b.json", ranged(new, '"new"')), target, **QUICK)
    assert_fetched(target, new)


def test_one_that_gets_on_does_not_give_up(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MIB", 10_000)
    fetch_annotations(server.set("/a.zip", ranged(ARCHIVE, cut=30_000)), target, retries=1, **QUICK)
    assert_fetched(target)
    assert len(server.requests) == 7
    target.unlink()

    # The same place again and again is no getting on.
    url = server.set("/b.zip", says(len(ARCHIVE), ARCHIVE[:30_000]))
    with pytest.raises(CocosegError, match="cut off"):
        fetch_annotations(url, target, retries=1, **QUICK)
    assert server.requests.count("/b.zip") == 2


def test_killed_while_fetching(server: Server, target: Path) -> None:
    url = server.set("/a.zip", slow(ARCHIVE, 50, 0.05, ETag='"v1"'), ranged(ARCHIVE))
    part = target.with_name("a.zip.part")
    process = start(f"fetch_annotations({url!r}, Path({str(target)!r}))")
    wait_for(lambda: part.exists() and part.stat().st_size > 0)
    process.kill()
    process.communicate(timeout=10)
    assert not target.exists()
    size = part.stat().st_size
    assert 0 < size < len(ARCHIVE)

    fetch_annotations(url, target)
    assert_fetched(target)
    assert ranges(server) == [None, f"bytes={size}-"]


@pytest.mark.parametrize(
    ("content", "tag", "answers", "expected"),
    [
        (ARCHIVE[:999], '"v1"', [ranged(ARCHIVE)], ["bytes=999-"]),
        (ARCHIVE[:999], '"v1"', [ok(ARCHIVE)], ["bytes=999-"]),
        (ARCHIVE[:999], None, [ranged(ARCHIVE)], [None]),
        (ARCHIVE[:999], "", [ranged(ARCHIVE)], [None]),
        (b"", '"v1"', [ranged(ARCHIVE)], [None]),
        # What lies there is not what it seems.
        (b"!" * 999, '"v1"', [ranged(ARCHIVE)], ["bytes=999-", None]),
        (b"!" * len(ARCHIVE), '"v1"', [ranged(ARCHIVE)], [f"bytes={len(ARCHIVE)}-", None]),
        (b"!" * 999_999, '"v1"', [ranged(ARCHIVE)], ["bytes=999999-", None]),
    ],
)
def test_what_a_killed_run_left(
    server: Server,
    target: Path,
    content: bytes,
    tag: str | None,
    answers: list[Answer],
    expected: list[str | None],
) -> None:
    target.parent.mkdir()
    target.with_name("a.zip.part").write_bytes(content)
    if tag is not None:
        target.with_name("a.zip.part.tag").write_text(tag)
    fetch_annotations(server.set("/a.zip", *answers), target, **QUICK)
    assert_fetched(target)
    assert ranges(server) == expected


def test_fetched_anew_once(server: Server, target: Path) -> None:
    """A server that always breaks off, and whose file is broken."""
    broken = ARCHIVE[:-500]
    url = server.set("/a.zip", *[ranged(broken, cut=120_000), ranged(broken)] * 3)
    assert_refused(url, target, "no zip archive, or damaged")
    assert ranges(server) == [None, "bytes=120000-"] * 2


def test_killed_while_extracting(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole archive is there, and a part of the file."""

    def killed(*_: Any) -> None:
        target.with_name(f"{target.name}.part").write_bytes(JSON[:1000])
        raise SystemExit

    url = server.set("/a.zip", ranged(ARCHIVE))
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_write", killed)
        with pytest.raises(SystemExit):
            fetch_annotations(url, target)
    assert len(names(target.parent)) == 3  # archive, its tag, a part of the file
    fetch_annotations(url, target)
    assert_fetched(target)
    assert ranges(server) == [None, f"bytes={len(ARCHIVE)}-"]


def test_a_full_disk(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def save(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "save", save)
    with pytest.raises(OSError, match="No space left") as caught:
        fetch_annotations(server.set("/a.zip", ranged(ARCHIVE)), target)
    assert str(target.parent) in str(caught.value.filename)
    assert not target.exists()


def test_a_full_disk_while_extracting(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    url = server.set("/a.zip", ranged(ARCHIVE))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left") as caught:
            fetch_annotations(url, target)
    assert caught.value.filename == str(target)
    assert names(target.parent) == ["a.zip.part", "a.zip.part.tag"]  # for when there is space again
    fetch_annotations(url, target)
    assert_fetched(target)


def test_two_processes_fetch_the_annotations_once(server: Server, target: Path) -> None:
    url = server.set("/a.zip", slow(ARCHIVE, 5, 0.05))
    threads = [threading.Thread(target=fetch_annotations, args=(url, target)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_fetched(target)
    assert len(server.requests) == 1
    assert json.loads(target.read_bytes()) == {"images": []}
