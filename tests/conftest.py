"""Tiny COCO data sets, drawn where the tests run."""

import contextlib
import gc
import io
import json
import logging
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, settings

from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.workers import SIGNALS
from server import Server

# Two test processes share two cores.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, however slow the machine is.
settings.register_profile(
    "same",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("same")

ROOT = Path(__file__).parents[1]

MASK_NAME = re.compile(r".+_mask_cats_(none|\d+(_\d+)*(_etc)?)\.png")
# A training on the built-in data set that takes seconds; a limit in steps is to be added.
SMALL = (
    "data=shapes",
    "data.shapes.images=12",
    "data.image_size=[32,32]",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.base_channels=4",
    "model.depth=2",
    "trainer.max_time=null",
)

# Nothing that the test modules import is garbage, and to look through all of it takes time.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else libraries report at the end that they were never freed


# Tests compose hundreds of configurations; to parse the same presets takes a quarter of the time of each.
load_yaml = yaml.load
parsed: dict[tuple[str, str], bytes] = {}


def load_yaml_once(stream: Any, Loader: Any) -> Any:  # noqa: N803
    if not isinstance(stream, io.TextIOWrapper):
        return load_yaml(stream, Loader=Loader)
    start = stream.tell()
    key = (Loader.__name__, stream.read())
    if key not in parsed:
        stream.seek(start)
        parsed[key] = pickle.dumps(load_yaml(stream, Loader=Loader))
    return pickle.loads(parsed[key])


yaml.load = load_yaml_once


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session", autouse=True)
def small_contact_sheets() -> Iterator[None]:
    """A sheet of 16 images takes most of the time of a small preparation; test_contact_sheet.py tests it."""
    with mock.patch("cocoseg.preparation.contact_sheet.EXAMPLES", 2):
        yield


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in data set, 24 images: `images/` and `annotations/instances.json`. Not to be changed."""
    root = tmp_path_factory.mktemp("shapes")
    draw_shapes(root, images=24, seed=1)
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets."""
    folder = os.environ.get("COCOSEG_REAL_DATA")
    if folder is None:
        pytest.skip("COCOSEG_REAL_DATA is not set")
    return Path(folder)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.socket.close()  # not server_close: it would wait for answers that are slow on purpose


def write_coco(path: Path, **changes: Any) -> Path:
    """Write a minimal valid instances file, some of its top-level keys changed; None leaves a key out."""
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
        ],
        "categories": [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    content.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def run_program(
    program: str, *overrides: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would."""
    return subprocess.run(
        [sys.executable, str(ROOT / f"{program}.py"), *overrides],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_here(program: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would, but in this process, where torch is loaded already."""
    script = str(ROOT / f"{program}.py")
    stdout, stderr, at_exit, code = io.StringIO(), io.StringIO(), [], 0
    handlers, level = logging.root.handlers[:], logging.root.level
    of_signals = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGPIPE)}
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        mock.patch.dict(os.environ),
        mock.patch("sys.argv", [script, *overrides]),
        mock.patch("atexit.register", lambda function, *arguments: at_exit.append((function, arguments))),
    ):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            for function, arguments in reversed(at_exit):
                function(*arguments)
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
            # --help lets SIGPIPE end the process, as a closed connection would then end the tests.
            for number, handler in of_signals.items():
                signal.signal(number, handler)
            HydraConfig.instance().cfg = None
    return subprocess.CompletedProcess([script, *overrides], code, stdout.getvalue(), stderr.getvalue())
