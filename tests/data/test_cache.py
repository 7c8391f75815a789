"""Decoded arrays: made once, made again after a change of their files or settings, never incomplete."""

import errno
import logging
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cocoseg.data import cache
from cocoseg.data.cache import key_of, open_arrays
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import prepared_sets
from tiny import shapes_config


@pytest.fixture(scope="module")
def prepared(shapes_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "prepared"
    prepare(shapes_config(shapes_root, folder))
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A prepared folder for a single test."""
    return shutil.copytree(prepared, tmp_path / "prepared")


def dataset(shapes_root, folder, size=(32, 48)) -> SegmentationDataset:
    train, _ = prepared_sets(shapes_config(shapes_root, folder))
    return SegmentationDataset(train.subset_file, train.image_dir, size)


def arrays(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "arrays").iterdir() if path.is_dir())


def make(tmp_path: Path, count: int = 3) -> cache.Arrays:
    """Open arrays of images of one color each. Their files only give sizes and modification times."""
    files = [tmp_path / f"{number}.txt" for number in range(count)]
    for file in files:
        if not file.exists():
            file.write_text("x")

    def constant(number: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((4, 6, 3), number, np.uint8), np.full((4, 6), 2 * number, np.uint8)

    return open_arrays(tmp_path / "arrays", key_of(files, "meaning"), (count, 4, 6), constant, workers=1)


# --- the same values


def test_arrays_hold_the_same_values_as_files(shapes_root, folder):
    plain, cached = dataset(shapes_root, folder), dataset(shapes_root, folder)
    cached.decode_once(workers=2)
    for ours, theirs in zip(cached, plain, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_batches_are_copies_that_may_be_written_to(tmp_path):
    opened = make(tmp_path)
    image, _ = opened.take([1, 2])
    image.zero_()
    assert opened.take([1])[0].unique().tolist() == [1]


def test_a_pickled_reference_opens_the_files(tmp_path):
    """Otherwise all images would be sent to a spawned process."""
    opened = make(tmp_path, count=50)
    text = pickle.dumps(opened)
    assert len(text) < 500
    assert torch.equal(pickle.loads(text).take([7])[1], opened.take([7])[1])


# --- made once


def touch(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1000))


def array_file(folder: Path, name: str) -> Path:
    return arrays(folder)[0] / name


def replace_by_a_longer_one(path: Path) -> None:
    """Replace a file by a longer one with the same modification time."""
    before = path.stat()
    path.write_text("longer")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "an image replaced": lambda folder: touch(folder / "1.txt"),
    "an image of the same time": lambda folder: replace_by_a_longer_one(folder / "1.txt"),
    "arrays cut short": lambda folder: os.truncate(array_file(folder, "images.npy"), 150),
    "masks cut short": lambda folder: os.truncate(array_file(folder, "masks.npy"), 150),
    "arrays missing": lambda folder: array_file(folder, "masks.npy").unlink(),
    "arrays empty": lambda folder: os.truncate(array_file(folder, "images.npy"), 0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_are_made_again_after_a_change(change, tmp_path):
    make(tmp_path)
    os.utime(array_file(tmp_path, "counts.npy"), ns=(1, 1))  # a new file may get the same time as an old one
    make(tmp_path)
    assert array_file(tmp_path, "counts.npy").stat().st_mtime_ns == 1  # made once

    CHANGES[change](tmp_path)
    images, masks = make(tmp_path).take([2, 1])

    assert len(arrays(tmp_path)) == 1
    assert array_file(tmp_path, "counts.npy").stat().st_mtime_ns > 1
    assert images.flatten(1).unique(dim=1).tolist() == [[2], [1]]
    assert masks.flatten(1).unique(dim=1).tolist() == [[4], [2]]


def test_sizes_are_kept_apart_and_outdated_together(shapes_root, folder):
    def decode(size):
        dataset(shapes_root, folder, size).decode_once(workers=1)
        return [path.name.split("-")[0] for path in arrays(folder)]

    decode((32, 48))
    assert decode((16, 16)) == ["16x16", "32x48"]
    touch(next((folder / "masks").iterdir()))
    assert decode((16, 16)) == ["16x16"]


def test_pixels_are_counted(shapes_root, folder):
    plain, cached = dataset(shapes_root, folder), dataset(shapes_root, folder)
    cached.decode_once(workers=1)
    counts = cached.class_counts([3, 1])
    np.testing.assert_array_equal(counts, plain.class_counts([3, 1]))
    expected = np.bincount(cached.read([3])[1].flatten(), minlength=256)
    np.testing.assert_array_equal(counts[0], expected[: len(cached.labels)])


def test_open_arrays_outlive_their_replacement(tmp_path):
    opened = make(tmp_path)
    touch(tmp_path / "1.txt")
    make(tmp_path)
    assert opened.take([2])[1].unique().tolist() == [4]


# --- whole or not at all


def test_a_broken_image_leaves_nothing(shapes_root, tmp_path):
    root, folder = tmp_path / "shapes", tmp_path / "prepared"
    shutil.copytree(shapes_root, root)
    prepare(shapes_config(root, folder))
    (root / "images" / "image_005.jpg").write_bytes(b"no image")
    with pytest.raises(CocosegError, match=r"image_005\.jpg: not a readable image"):
        dataset(root, folder).decode_once(workers=2)
    assert arrays(folder) == []


def test_a_full_disk_is_a_one_line_error(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    message = "arrays: 3 decoded images of 4x6 need 0.0 GB (No space left on device): set data.cache=false"
    with pytest.raises(CocosegError, match=re.escape(message)):
        make(tmp_path)
    assert [path.name for path in (tmp_path / "arrays").iterdir()] == []


SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from cocoseg.data.cache import open_arrays

def decode(number):
    time.sleep(0.05)
    return np.full((4, 6, 3), number, np.uint8), np.full((4, 6), number, np.uint8)

folder = Path(sys.argv[1])
print("begin", flush=True)
open_arrays(folder / "arrays", "key", (40, 4, 6), decode, workers=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_killed_process_can_be_started_again(tmp_path, workers, name):
    import signal

    command = [sys.executable, "-c", SLOW, str(tmp_path), str(workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    deadline = time.monotonic() + 30
    while not list((tmp_path / "arrays").glob("new.part/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=30) != 0
    assert not list((tmp_path / "arrays").glob("4x6-*"))

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    (place,) = (path for path in (tmp_path / "arrays").iterdir() if path.is_dir())
    images = np.load(place / "images.npy")
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(40))


def decode_in(folder: str, root: str, barrier, results) -> None:
    logging.basicConfig(level=logging.INFO)
    data = dataset(Path(root), Path(folder))
    calls = []
    original = data._decode
    data._decode = lambda number: calls.append(number) or original(number)
    barrier.wait()
    data.decode_once(workers=1)
    results.put((len(calls), int(data.read(range(24))[0].sum())))


@pytest.mark.slow
def test_two_processes_make_the_arrays_once(shapes_root, folder):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(folder), str(shapes_root), barrier, results)
    processes = [context.Process(target=decode_in, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert sorted(calls for calls, _ in answers) == [0, 24]
    assert answers[0][1] == answers[1][1] > 0
