import csv
import errno
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cocoseg import files
from cocoseg.data.training_images import read_training_images
from cocoseg.errors import CocosegError
from cocoseg.files import (
    locked,
    make_folders,
    read_json,
    remove_parts,
    save_png,
    whole_file,
    write_bytes,
    write_csv,
    write_json,
)
from cocoseg.images.image_files import check_image, read_image
from cocoseg.inference.manifest import Manifest
from cocoseg.inference.model import load_model
from cocoseg.preparation.coco_file import read as read_annotations


def test_writes_and_makes_the_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    write_bytes(path, b"content")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_is_not_to_be_seen_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.png"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        assert temporary.parent == path.parent  # else the final rename could cross file systems
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def fail() -> None:
        with whole_file(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CocosegError, match=r"file: can't be written \(No space left on device\)"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    with whole_file(tmp_path / "b.json") as temporary:
        temporary.write_bytes(b"half")
        (tmp_path / "kept").write_bytes(temporary.name.encode())
    left = tmp_path / (tmp_path / "kept").read_text()
    left.write_bytes(b"half")
    remove_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "kept"}


def test_a_png_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "image.png"
    save_png(path, PIL.Image.new("RGB", (3, 2), "red"), compress_level=1)
    with PIL.Image.open(path) as image:
        assert (image.format, image.mode, image.size, image.getpixel((2, 1))) == (
            "PNG",
            "RGB",
            (3, 2),
            (255, 0, 0),
        )
    before = path.read_bytes()
    with pytest.raises(OSError, match="F"):  # floating-point pixels can't be written as PNG
        save_png(path, PIL.Image.new("F", (3, 2)))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no permission bits")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("stem", ["x" * 250, "ä" * 125])
def test_long_names(tmp_path: Path, stem: str) -> None:
    write_bytes(tmp_path / f"{stem}.png", b"content")
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.png"]


@pytest.mark.parametrize(
    "content",
    [
        {},
        {
            "text": 'ä "quoted"\n',
            "number": 1.5,
            "nothing": None,
            "yes": True,
            "empty": [],
            "object": {"a": {}},
        },
        {"numbers": [1, 2], "objects": [{"a": 1}, {}, {"b": [{"c": 2}]}], "mixed": [{"a": 1}, 2]},
    ],
)
def test_write_json(tmp_path: Path, content: dict[str, Any]) -> None:
    write_json(tmp_path / "file.json", content)
    assert json.loads((tmp_path / "file.json").read_bytes()) == content


def test_write_csv(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-b", "@c", "\t=d", "a,b", '"q"', "-1.5", "cat"]
    write_csv(tmp_path / "a.csv", [{"=name": name, "value": -0.5, "none": None} for name in names])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["'=name", "value", "none"]
    shown = ["'=1+1", "'+a", "'-b", "'@c", "'\t=d", "a,b", '"q"', "-1.5", "cat"]
    assert rows[1:] == [[name, "-0.5", ""] for name in shown]


def test_one_process_at_a_time_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.1)
    with (
        locked(tmp_path, key="output"),
        pytest.raises(CocosegError, match=r"^output: another process writes to"),
        locked(tmp_path, key="output"),
    ):
        pass
    with locked(tmp_path, key="output"):
        (tmp_path / "file").touch()
    assert (tmp_path / "file").exists()


def test_others_wait_for_a_folder_without_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    order = []

    def wait() -> None:
        with locked(tmp_path):
            order.append("second")

    with locked(tmp_path):
        other = threading.Thread(target=wait)
        other.start()
        while not caplog.messages:
            time.sleep(0.01)
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert caplog.messages[0].endswith("another process writes to it; waiting")
    assert list(tmp_path.iterdir()) == []  # a lock alone does not stay


def test_a_folder_that_is_removed_while_another_process_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "a" / "b"

    def wait() -> None:
        with locked(folder):
            (folder / "file").touch()

    remove = make_folders(folder)
    with locked(folder):
        other = threading.Thread(target=wait)
        other.start()
        while not caplog.messages:
            time.sleep(0.01)
    remove()
    other.join()
    assert (folder / "file").exists()
    remove()
    assert (folder / "file").exists()


def test_a_folder_named_twice_in_a_command_is_no_deadlock(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(CocosegError, match="is named for two things"), locked(tmp_path):
        pass
    with locked(tmp_path), locked(tmp_path, name=".other.lock"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "read",
    [read_image, lambda p: check_image(p, 8, 6), read_annotations, load_model],
)
def test_nothing_waits_for_a_fifo(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(CocosegError, match="a FIFO, a socket or a device"):
        read(tmp_path / "fifo.png")


@pytest.mark.parametrize(
    "content", [b"", b'{"images": NaN}', b'{"images": [1', b'{"\xff": 1}', b'{"a": "\xff"}', b"[" * 100_000]
)
def test_what_is_no_json_is_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "training_images.json", tmp_path / "predictions.json"):
        path.write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "predictions.json")
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged"):
        Manifest(tmp_path, "model", {})
    with pytest.raises(CocosegError, match=r"training_images\.json: damaged"):
        read_training_images(str(tmp_path / "model.pth"))
