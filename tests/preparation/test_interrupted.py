"""Preparation that is killed, runs twice at a time, or fills the disk: the next run ends with all files."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.files import write_bytes
from cocoseg.preparation import contact_sheet
from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.preparation.prepare import prepare
from conftest import ROOT, run_here, write_coco

CHILD = """
import sys
from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.preparation import contact_sheet
from cocoseg.preparation.prepare import prepare

contact_sheet.EXAMPLES = int(sys.argv[4])
root, folder, overlap = sys.argv[1:4]
data = DataConfig(
    images=f"{root}/images",
    annotations=f"{root}/annotations/instances.json",
    prepared_dir=folder,
    subset=SubsetConfig(size=None),
)
config = Config(data=data, masks=MasksConfig(overlap=overlap), prepare=PrepareConfig(workers=2))
print("begin", flush=True)
prepare(config)
"""
IMAGES = 96
State = dict[str, bytes | None]


class Undisturbed(NamedTuple):
    root: Path  # of the data set
    folders: dict[str, Path]  # overlap rule -> prepared folder


def state(folder: Path) -> State:
    """The content of every file, and None for every folder."""
    paths = sorted(path for path in folder.rglob("*") if path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def start(root: Path, folder: Path, overlap: str) -> subprocess.Popen[str]:
    """Start a preparation as a process in a group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(folder), overlap, str(contact_sheet.EXAMPLES)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begin\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def kill(process: subprocess.Popen[str], *, group: bool) -> bool:
    """Kill a process, with `group` its own processes, too. Returns whether it was still running."""
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    return process.wait(timeout=60) == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    base = tmp_path_factory.mktemp("undisturbed")
    draw_shapes(base / "shapes", images=IMAGES, seed=3)
    folders = {overlap: base / overlap for overlap in ("max", "smallest")}
    for overlap, folder in folders.items():
        prepare(small_config(base / "shapes", folder, overlap))
        assert len(list((folder / "masks").iterdir())) == IMAGES
    assert state(folders["max"]) != state(folders["smallest"])
    return Undisturbed(base / "shapes", folders)


# --- killed


def kill_and_repeat(undisturbed: Undisturbed, tmp_path: Path, kills: int, then: str = "max") -> int:
    """Kill preparations at random times, each in a folder of its own, and prepare that folder again.

    In every second case only the parent process is killed. In two of four cases the folder holds files of
    other settings before.

    Returns:
        the number of preparations that were still running when they were killed.
    """
    chance = random.Random(kills)
    process = start(undisturbed.root, tmp_path / "undisturbed", "max")
    begin = time.monotonic()
    end(process)
    seconds, hits = time.monotonic() - begin, 0
    for number in range(kills):
        folder = tmp_path / str(number)
        if number // 2 % 2:
            shutil.copytree(undisturbed.folders["smallest"], folder)
        process = start(undisturbed.root, folder, "max")
        time.sleep(seconds * (number + chance.random()) / kills)
        hits += kill(process, group=number % 2 == 0)
        end(start(undisturbed.root, folder, then))
        assert state(folder) == state(undisturbed.folders[then]), f"kill {number}"
        shutil.rmtree(folder)
    return hits


@pytest.mark.slow
def test_killed_at_some_times(undisturbed: Undisturbed, tmp_path: Path) -> None:
    assert kill_and_repeat(undisturbed, tmp_path, 6) >= 3


@pytest.mark.slow
def test_killed_before_settings_change(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Workers that outlive their parent for a moment must not write into the masks of the next run.

    Nothing of the killed run stays where the next run has the settings of the files that were there before.
    """
    assert kill_and_repeat(undisturbed, tmp_path, 3, then="smallest") >= 2


def small_config(root: Path, folder: Path, overlap: str = "max") -> Config:
    data = DataConfig(
        images=str(root / "images"),
        annotations=str(root / "annotations" / "instances.json"),
        prepared_dir=str(folder),
        subset=SubsetConfig(size=None),
    )
    return Config(data=data, masks=MasksConfig(overlap=overlap), prepare=PrepareConfig(workers=1))


def killed_before_change(number: int, work: Callable[..., None], *args: Any, **named: Any) -> bool:
    """Call `work` in a process that is killed before its n-th change to the disk. Returns whether it was."""
    changes = count(1)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            changing = isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changing = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if changing and not str(details[0]).startswith("/dev") and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        sys.addaudithook(watch)
        work(*args, **named)

    process = get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize(
    ("before", "then", "step"),
    [
        pytest.param(None, "max", 1, marks=pytest.mark.slow),
        ("smallest", "max", 3),
        pytest.param("smallest", "max", 1, marks=pytest.mark.slow),
        pytest.param("smallest", "smallest", 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_before_every_change_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, then: str, step: int
) -> None:
    """The files before have the rule `before`, the killed run has `max`, and the next run has `then`.

    The fast tests kill a run before every third change.
    """

    def write_quickly(folder: Path, *_: Any) -> None:
        write_bytes(folder / "preview.png", b"preview")

    monkeypatch.setattr("cocoseg.preparation.prepare.write_contact_sheet", write_quickly)
    root = tmp_path / "shapes"
    draw_shapes(root, images=2, seed=1)
    prepare(small_config(root, tmp_path / "reference", then))
    if before is not None:
        prepare(small_config(root, tmp_path / "before", before))
    wrong = []
    for number in count(1, step):
        folder = tmp_path / str(number)
        if before is not None:
            shutil.copytree(tmp_path / "before", folder)
        if not killed_before_change(number, prepare, small_config(root, folder)):
            break
        prepare(small_config(root, folder, then))
        left = state(folder).items() ^ state(tmp_path / "reference").items()
        if left:
            wrong.append((number, sorted({name for name, _ in left})))
    assert number > 20
    assert wrong == []


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_drawing_of_the_shapes_killed_before_every_change(tmp_path: Path, step: int) -> None:
    draw_shapes(tmp_path / "reference", images=3, seed=1)
    draw_shapes(tmp_path / "before", images=2, seed=4)
    for number in count(1, step):
        root = tmp_path / str(number)
        if number % 2:
            shutil.copytree(tmp_path / "before", root)
        if not killed_before_change(number, draw_shapes, root, images=3, seed=1):
            break
        draw_shapes(root, images=3, seed=1)
        assert state(root) == state(tmp_path / "reference"), number
    assert number > 5


# --- two at once


def test_two_with_the_same_settings(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    task = (small_config(undisturbed.root, folder),)
    both = [get_context("fork").Process(target=prepare, args=task) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        process.kill()  # one that hangs
        assert process.exitcode == 0
    assert state(folder) == state(undisturbed.folders["max"])


@pytest.mark.slow
def test_two_with_different_settings(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    both = [start(undisturbed.root, folder, overlap) for overlap in ("max", "smallest")]
    for process in both:
        end(process)
    assert state(folder) in [state(undisturbed.folders[overlap]) for overlap in ("max", "smallest")]


# --- no room, no permission


def program(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "prepare.py"), "data=custom", "prepare.workers=2", *overrides]


def line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr."""
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 2, done.stderr
    (only,) = (text for text in done.stderr.splitlines() if text.strip())
    return only


def of_shapes(root: Path) -> tuple[str, str]:
    return f"data.images={root}/images", f"data.annotations={root}/annotations/instances.json"


def assert_no_leftovers(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if ".part" in path.name]
    assert left == []


# Mounts a small disk at "$1", fills it from "$2", brings what a command leaves there back to "$3".
ON_A_SMALL_DISK = """
place=$1 before=$2 after=$3 size=$4 then=$5
shift 5
mount -t tmpfs -o size=$size none "$place" || exit 99
cp -a "$before/." "$place" || exit 98
mount -o "remount,$then" "$place" || exit 97
"$@"
code=$?
cp -a "$place/." "$after"
exit $code
"""


@pytest.fixture
def on_a_small_disk(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command with a folder `disk` on a disk of its own, filled from `before` and copied to `after`."""
    for name in ("disk", "before", "after"):
        (tmp_path / name).mkdir()
    folders = [str(tmp_path / name) for name in ("disk", "before", "after")]

    def run(size: str, then: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", *folders, size, then, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    if shutil.which("unshare") is None or run("100k", "rw", "true").returncode:
        pytest.skip("no disk can be mounted here")
    return run


@pytest.mark.parametrize("share", [pytest.param(0.3, marks=pytest.mark.slow), 0.97])
def test_full_disk(
    undisturbed: Undisturbed,
    tmp_path: Path,
    on_a_small_disk: Callable[..., subprocess.CompletedProcess[str]],
    share: float,
) -> None:
    """There is room for the earlier files and a share of the new ones."""
    before, place = tmp_path / "before", tmp_path / "disk"
    config = small_config(undisturbed.root, before)
    config.data.subset.size = 20
    prepare(config)
    (before / ".lock").touch()
    pages = {folder: room(folder) for folder in (before, undisturbed.folders["max"])}
    size = 4 * int(pages[before] + share * pages[undisturbed.folders["max"]])
    command = program(*of_shapes(undisturbed.root), f"data.prepared_dir={place}")
    said = line(on_a_small_disk(f"{size}k", "rw", *command))
    assert "No space left on device" in said
    assert place.name in said
    assert_no_leftovers(tmp_path / "after")
    assert state(tmp_path / "after") == state(before)


def room(folder: Path) -> int:
    """The number of pages of 4 KiB that the files take."""
    return sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_full_disk_at_first(
    undisturbed: Undisturbed, tmp_path: Path, on_a_small_disk: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Nothing that is left of the first run stops a run with more room."""
    command = program(*of_shapes(undisturbed.root), f"data.prepared_dir={tmp_path / 'disk'}")
    assert "No space left on device" in line(on_a_small_disk("200k", "rw", *command))
    after = tmp_path / "after"
    assert set(state(after)) <= {"prepared.json"}
    end(start(undisturbed.root, after, "max"))
    assert state(after) == state(undisturbed.folders["max"])


@pytest.mark.slow
def test_read_only_disk(
    undisturbed: Undisturbed, tmp_path: Path, on_a_small_disk: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    before, place = tmp_path / "before", tmp_path / "disk"
    prepare(small_config(undisturbed.root, before, "smallest"))
    command = program(*of_shapes(undisturbed.root), f"data.prepared_dir={place}")
    said = line(on_a_small_disk("9m", "ro", *command))
    assert place.name in said
    assert "Read-only file system" in said
    assert state(tmp_path / "after") == state(before)


@pytest.mark.parametrize("pages", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_run_folder_on_a_full_disk(
    undisturbed: Undisturbed,
    tmp_path: Path,
    on_a_small_disk: Callable[..., subprocess.CompletedProcess[str]],
    pages: int,
) -> None:
    """Hydra's own files come first; with four pages there is room for them, but not for `config.yaml`."""
    (tmp_path / "before" / "large").write_bytes(bytes(80 * 1024))
    run_dir = f"run_dir={tmp_path / 'disk' / 'run'}"
    command = program(*of_shapes(undisturbed.root), f"data.prepared_dir={tmp_path / 'prepared'}", run_dir)
    done = on_a_small_disk(f"{80 + 4 * pages}k", "rw", *command)
    assert done.returncode in (1, 2), done.stderr
    assert "No space left on device" in done.stderr
    assert "None" not in done.stderr  # instead of the name of the file
    assert state(tmp_path / "prepared") == {}


def noisy_data(root: Path) -> tuple[str, str]:
    """Write an image whose mask takes some 10 KiB."""
    (root / "images").mkdir(parents=True)
    size = 300
    PIL.Image.new("RGB", (size, size)).save(root / "images" / "a.png")
    runs = np.random.default_rng(0).integers(1, 3, size * size).cumsum()
    runs = np.diff(np.append(runs[runs < size * size], size * size), prepend=0)
    write_coco(
        root / "annotations" / "instances.json",
        images=[{"id": 1, "file_name": "a.png", "width": size, "height": size}],
        annotations=[
            {
                "id": 1,
                "image_id": 1,
                "category_id": 2,
                "segmentation": {"size": [size, size], "counts": runs.tolist()},
            }
        ],
    )
    return of_shapes(root)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "subset"])
def test_largest_file_allowed(tmp_path: Path, kind: str) -> None:
    """A limit on the size of files, as quotas set, stands in for a full disk where none can be mounted."""
    root, folder = tmp_path / "data", tmp_path / "prepared"
    noisy = noisy_data(root)

    def limit(size: int) -> Callable[[], None]:
        def set_limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        return set_limit

    def run(size: int, *overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            program(*noisy, f"data.prepared_dir={folder}", *overrides),
            cwd=tmp_path,
            preexec_fn=limit(size),
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert run(2**30).returncode == 0
    before = state(folder)
    mask = (folder / "masks" / "a_mask_cats_2.png").stat().st_size
    subset = (folder / "subset_train_annotations.json").stat().st_size
    assert 8192 < mask < subset - 1000
    said = line(run(8192 if kind == "mask" else subset - 100, "masks.rasterizer=coco"))
    assert "File too large" in said
    assert ("a_mask_cats_2.png" if kind == "mask" else "subset_train_annotations.json") in said
    assert_no_leftovers(folder)
    assert state(folder) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize(
    "place", ["/proc/prepared", pytest.param("images/a.png/prepared", marks=pytest.mark.slow)]
)
def test_folder_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    """Not even root can make such a folder."""
    noisy = noisy_data(tmp_path)
    said = line(run_here("prepare", "data=custom", *noisy, f"data.prepared_dir={place}", cwd=tmp_path))
    assert place in said
    assert "data.prepared_dir" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    noisy = noisy_data(tmp_path)
    (tmp_path / "prepared").mkdir(mode=0o555)
    said = line(run_here("prepare", "data=custom", *noisy, "data.prepared_dir=prepared", cwd=tmp_path))
    assert "prepared" in said
    assert "Permission denied" in said
