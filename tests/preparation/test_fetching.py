"""`prepare.py` with nothing on disk, against a server on loopback."""

import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cocoseg.config import (
    DEFAULT_ROOT,
    Config,
    DataConfig,
    PrepareConfig,
    ShapesConfig,
    SubsetConfig,
)
from cocoseg.config_cross_checks import check
from cocoseg.errors import CocosegError, IncompleteError
from cocoseg.preparation.prepare import prepare
from conftest import run_here
from server import Server, ok

ANNOTATIONS = "annotations/instances_train2017.json"
CHOSEN = 5


@pytest.fixture
def coco(shapes_root: Path, server: Server) -> dict[str, Any]:
    """The built-in set, served as COCO is: an archive, and images at their coco_url."""
    content = json.loads((shapes_root / "annotations/instances.json").read_bytes())
    for image in content["images"]:
        path = f"/train2017/{image['file_name']}"
        image["coco_url"] = server.set(path, ok((shapes_root / "images" / image["file_name"]).read_bytes()))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("train", "val"):
            archive.writestr(f"annotations/instances_{name}2017.json", json.dumps(content))
        archive.writestr("annotations/captions_train2017.json", "{}")
    server.set("/annotations.zip", ok(stream.getvalue()))
    return content


def run(server: Server, cwd: Path, *overrides: str, program: str = "prepare") -> subprocess.CompletedProcess:
    url = f"data.annotations_url={server.url}/annotations.zip"
    done = run_here(program, url, f"data.subset.size={CHOSEN}", *overrides, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done


def the_line(done: subprocess.CompletedProcess) -> str:
    (line,) = done.stderr.splitlines()
    return line


def files(folder: Path) -> list[str]:
    """All files that are not hidden."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not path.name.startswith("."))


def masks(cwd: Path) -> list[Path]:
    return list(cwd.glob("prepared/*/masks/*.png"))


def test_from_an_empty_disk_to_masks(coco: dict[str, Any], server: Server, tmp_path: Path) -> None:
    done = run(server, tmp_path)
    assert done.returncode == 0, done.stderr
    root = tmp_path / DEFAULT_ROOT
    assert len(masks(tmp_path)) == CHOSEN
    fetched = files(root / "train2017")
    assert files(root) == [ANNOTATIONS, *(f"train2017/{name}" for name in fetched)]
    assert sorted(server.requests) == ["/annotations.zip", *(f"/train2017/{name}" for name in fetched)]
    assert json.loads((root / ANNOTATIONS).read_bytes()) == coco
    assert not list(tmp_path.rglob("failed.json"))

    server.requests.clear()
    done = run(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing changed" in done.stdout
    assert server.requests == []

    lost = next((root / "train2017").glob("*.jpg"))
    lost.unlink()
    assert run(server, tmp_path).returncode == 0
    assert server.requests == [f"/train2017/{lost.name}"]


# --- without a process of its own


@pytest.fixture
def config(coco: dict[str, Any], tmp_path: Path) -> Config:
    """Annotations, but no images."""
    (tmp_path / "a.json").write_text(json.dumps(coco))
    data = DataConfig(
        images=str(tmp_path / "images"),
        annotations=str(tmp_path / "a.json"),
        prepared_dir=str(tmp_path / "out"),
        subset=SubsetConfig(size=CHOSEN),
    )
    return Config(data=data, prepare=PrepareConfig(workers=1))


def test_images_that_the_server_lacks(
    coco: dict[str, Any], config: Config, server: Server, tmp_path: Path
) -> None:
    config.data.download, config.data.subset.size = True, None
    names = [image["file_name"] for image in coco["images"]]
    answers = {name: server.answers.pop(f"/train2017/{name}") for name in names[:2]}
    with pytest.raises(
        IncompleteError, match=rf"2 of {len(names)} images could not be fetched .*failed\.json"
    ):
        prepare(config, may_download=True)
    failed_file = tmp_path / "out" / "failed.json"
    assert json.loads(failed_file.read_bytes())["failed"] == [
        {
            "file_name": name,
            "url": f"{server.url}/train2017/{name}",
            "reason": "the server answered 404 Not Found",
        }
        for name in answers
    ]
    assert not list(tmp_path.rglob("*.png"))
    assert files(tmp_path / "images") == names[2:]

    server.requests.clear()
    server.answers |= {f"/train2017/{name}": answer for name, answer in answers.items()}
    prepare(config, may_download=True)
    assert sorted(server.requests) == [f"/train2017/{name}" for name in answers]
    assert len(list((tmp_path / "out" / "masks").iterdir())) == len(names)
    assert not failed_file.exists()


@pytest.mark.usefixtures("coco")
def test_a_mirror_and_a_validation_set(server: Server, tmp_path: Path) -> None:
    for path in [path for path in server.answers if path.startswith("/train2017/")]:
        server.answers[path.replace("train2017", "mirror")] = server.answers.pop(path)
    folder = tmp_path / "here" / "annotations"
    data = DataConfig(
        images=str(tmp_path / "here" / "images"),
        annotations=str(folder / "instances_train2017.json"),
        val_annotations=str(folder / "instances_val2017.json"),
        annotations_url=f"{server.url}/annotations.zip",
        images_url=f"{server.url}/mirror",
        prepared_dir=str(tmp_path / "out"),
        download=True,
        subset=SubsetConfig(size=CHOSEN),
    )
    prepare(Config(data=data, prepare=PrepareConfig(workers=1)), may_download=True)
    assert files(folder) == ["instances_train2017.json", "instances_val2017.json"]
    assert len(list((tmp_path / "out" / "masks").iterdir())) == CHOSEN
    assert len(list((tmp_path / "out" / "val" / "masks").iterdir())) == 24
    assert server.requests.count("/annotations.zip") == 1


@pytest.mark.parametrize(
    ("program", "download", "advice"),
    [
        ("prepare", False, "data.download=false"),
        ("train", None, "python prepare.py data.download=true fetches"),
        ("train", True, "python prepare.py fetches"),
    ],
)
def test_programs_that_never_download(
    tmp_path: Path, program: str, download: bool | None, advice: str
) -> None:
    root = tmp_path / "here"
    data = DataConfig(
        root=str(root), images=str(root / "a"), annotations=str(root / "a.json"), download=download
    )
    with pytest.raises(CocosegError, match=r"data\.root: no folder ") as caught:
        check(Config(data=data), may_download=program == "prepare")
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("download", "advice"),
    [
        (None, "data.download=true fetches"),
        (False, "data.download=false keeps"),
        (True, "prepare.py fetches"),
    ],
)
def test_missing_images_of_a_training(
    config: Config, server: Server, tmp_path: Path, download: bool | None, advice: str
) -> None:
    config.data.download = download
    with pytest.raises(CocosegError, match=rf"5 of 5 chosen images are missing, .*\.jpg, …; .*{advice}"):
        prepare(config)
    assert server.requests == []
    assert not (tmp_path / "images").exists()


def test_images_are_bounded(config: Config, server: Server) -> None:
    config.data.download, config.data.max_image_bytes = True, 1000
    with pytest.raises(CocosegError, match=r"5 of 5 images .*larger than 1000 bytes") as caught:
        prepare(config, may_download=True)
    assert caught.value.exit_code == 1
    assert len(server.requests) == CHOSEN


def test_an_annotation_file_without_an_address(config: Config, tmp_path: Path) -> None:
    config.data.download, config.data.annotations_url = True, None
    config.data.annotations = str(tmp_path / "b.json")
    with pytest.raises(
        CocosegError, match=r"b\.json: no such file; data\.annotations_url=<address> fetches it"
    ):
        prepare(config, may_download=True)


@pytest.mark.parametrize(
    ("settings", "fetches"),
    [
        ({}, True),
        ({"images": "./data/coco/images"}, True),
        ({"images": "photos"}, False),
        ({"annotations": "/data/coco/a.json"}, False),
        ({"val_images": "photos", "val_annotations": "data/coco/v.json"}, False),
        ({"download": False}, False),
        ({"images": "photos", "download": True}, True),
        ({"shapes": ShapesConfig()}, False),
        ({"shapes": ShapesConfig(), "download": True}, False),
    ],
)
def test_where_is_fetched(settings: dict[str, Any], fetches: bool) -> None:
    places = {"images": "data/coco/train2017", "annotations": "data/coco/annotations/a.json"}
    assert DataConfig(**{**places, **settings}).fetches is fetches
