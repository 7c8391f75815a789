"""Bad input, one case each: an error that names what is wrong, and nothing half done.

Settings that are wrong by themselves: test_config_checks.py; that do not fit each other:
test_config_cross_checks.py.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.errors import CocosegError
from cocoseg.preparation.prepare import prepare
from conftest import SMALL, run_here, write_coco

SHORT = (*SMALL, "trainer.max_steps=2")
CUSTOM = ("data=custom", "data.images=images", "data.annotations=instances.json")
IMAGE = {"id": 1, "file_name": "a.png", "width": 8, "height": 6}
ANNOTATION = {"id": 7, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}

Setup = Callable[[Path], Any]


def slow(*values: Any) -> Any:
    """A case for `make test-all` alone."""
    return pytest.param(*values, marks=pytest.mark.slow)


def refused(cwd: Path, program: str, *overrides: str) -> str:
    """The only line on stderr of a command that ends with exit code 2."""
    done = run_here(program, *overrides, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 2, done.stderr
    (only,) = (text for text in done.stderr.splitlines() if text.strip())
    assert only.startswith("error: ")
    assert len(only) < 500
    return only


def assert_nothing_half_done(cwd: Path) -> None:
    """No masks and no temporary files; locks may stay."""
    names = [path.relative_to(cwd).as_posix() for path in cwd.rglob("*")]
    left = [name for name in names if "_mask_cats_" in name or name.endswith("new.part")]
    temporary = [name for name in names if "/." in name and Path(name).suffix]
    assert left + temporary == []


# ---- annotation files and images


def coco(**changes: Any) -> Setup:
    """Images and an instances file, some of its keys changed."""

    def write(cwd: Path) -> None:
        draw(cwd / "images/a.png")
        write_coco(cwd / "instances.json", **changes)

    return write


def draw(path: Path, width: int = 8, height: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (width, height), "red").save(path)


def text(content: str) -> Setup:
    def write(cwd: Path) -> None:
        draw(cwd / "images/a.png")
        (cwd / "instances.json").write_text(content)

    return write


def file_name(name: str) -> Setup:
    """An image of this name; the file itself is outside the image folder."""

    def write(cwd: Path) -> None:
        draw(cwd / "secret.png")
        coco(images=[{**IMAGE, "file_name": name.format(cwd=cwd)}])(cwd)

    return write


def broken_jpeg(cwd: Path) -> None:
    coco(images=[{**IMAGE, "file_name": "b.jpg", "width": 200, "height": 100}])(cwd)
    draw(cwd / "images/b.jpg", 200, 100)
    content = (cwd / "images/b.jpg").read_bytes()
    (cwd / "images/b.jpg").write_bytes(content[: len(content) * 2 // 3])


def many_bad_images(cwd: Path) -> None:
    """The last three of five are missing."""
    coco(
        images=[{**IMAGE, "id": i, "file_name": f"{i}.png"} for i in range(5)],
        annotations=[{**ANNOTATION, "id": i, "image_id": i} for i in range(5)],
    )(cwd)
    draw(cwd / "images/0.png")
    draw(cwd / "images/1.png")


def annotation(**changes: Any) -> Setup:
    return coco(annotations=[{**ANNOTATION, **changes}])


BRUSH = {"segmentation": {"size": [6, 8], "counts": [7, 4, 37]}, "iscrowd": 1}


CASES: dict[str, tuple[Setup, tuple[str, ...]]] = {
    "empty_file": (text(""), ("instances.json", "JSON")),
    "no_json": (text("<xml/>"), ("instances.json", "JSON")),
    "no_images": (coco(images=None), ("instances.json", "`images`")),
    "no_annotations": (coco(annotations=None), ("instances.json", "`annotations`")),
    "no_categories": (coco(categories=None), ("instances.json", "`categories`")),
    "unknown_image": (annotation(image_id=42), ("instances.json", "annotation 7", "image 42")),
    "unknown_category": (annotation(category_id=42), ("instances.json", "annotation 7", "category 42")),
    "boxes": (annotation(segmentation=[]), ("instances.json: nothing to learn", "boxes")),
    "boxes_in_a_crowd": (annotation(segmentation=None, iscrowd=1), ("nothing to learn", "boxes")),
    "brush": (annotation(**BRUSH), ("instances.json: nothing to learn", "CVAT", "masks.crowd=draw")),
    "shares": (annotation(segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.9]]), ("instances.json", "0 and 1")),
    "bad_rle": (annotation(segmentation={"size": [6, 8], "counts": [1, 2]}), ("annotation 7",)),
    "absolute_name": (file_name("{cwd}/secret.png"), ("image 1", "/secret.png", "inside")),
    "name_that_climbs_out": (file_name("../secret.png"), ("image 1", "../secret.png", "inside")),
    "missing_image": (coco(images=[{**IMAGE, "file_name": "b.png"}]), ("images/b.png", "missing")),
    "missing_images": (many_bad_images, ("images/2.png", "images/3.png", "images/4.png")),
    "broken_image": (broken_jpeg, ("images/b.jpg", "truncated")),
    "other_size": (coco(images=[{**IMAGE, "width": 9}]), ("images/a.png", "8x6", "9x6")),
}


def prepare_in(folder: Path, *, prepared: str = "masks", **choice: Any) -> None:
    """Prepare `images` and `instances.json` of a folder."""
    places = {"images": "images", "annotations": "instances.json", "prepared_dir": prepared}
    data = DataConfig(**places, subset=SubsetConfig(**{"size": None, **choice}))
    with contextlib.chdir(folder):
        prepare(Config(data=data, prepare=PrepareConfig(workers=1)))


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_the_data_is_one_sentence(tmp_path: Path, name: str):
    setup, words = CASES[name]
    setup(tmp_path)
    with pytest.raises(CocosegError) as raised:
        prepare_in(tmp_path)
    sentence = raised.value.sentence
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert [word for word in words if word not in sentence] == []
    assert_nothing_half_done(tmp_path)


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        (["cat", "dgo"], ("data.subset.categories", "'dgo'", "'dog'")),
        ([3], ("data.subset.categories", "3", "cat")),
        (["dog"], ("instances.json", "keep_empty")),  # no image shows one
    ],
)
def test_a_choice_that_does_not_fit_the_data(tmp_path: Path, categories: list, words: tuple[str, ...]):
    coco()(tmp_path)
    with pytest.raises(CocosegError) as raised:
        prepare_in(tmp_path, categories=categories)
    assert [word for word in words if word not in str(raised.value)] == []


def test_folders_of_others_stay_as_they_were(tmp_path: Path):
    coco()(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("…")
    for name in ("thesis", "instances.json"):
        with pytest.raises(CocosegError, match=rf"^data\.prepared_dir.*{name}"):
            prepare_in(tmp_path, prepared=name)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_bad_input_leaves_the_masks_of_before(tmp_path: Path):
    """A preparation that fails does not take away the one that was there."""
    coco()(tmp_path)
    prepare_in(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "masks").rglob("*") if path.is_file()}
    coco(images=[{**IMAGE, "width": 9}])(tmp_path)
    with pytest.raises(CocosegError):
        prepare_in(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "masks").rglob("*") if path.is_file()} == before


def test_validation_file_of_other_labels(tmp_path: Path):
    coco()(tmp_path)
    write_coco(tmp_path / "val.json", categories=[{"id": 2, "name": "cat"}, {"id": 5, "name": "wolf"}])
    said = refused(tmp_path, "prepare", *CUSTOM, "data.val_annotations=val.json")
    assert "val.json" in said
    assert "wolf" in said


# ---- command lines


@pytest.mark.parametrize(
    ("program", "overrides", "sentence"),
    [
        (
            "prepare",
            ("data.root=nowhere",),
            "data.root: no folder nowhere; it should hold the images (nowhere/",
        ),
        ("prepare", (*CUSTOM, "data.subset.size=0"), "data.subset.size is 0; it must be a whole number at "),
        (
            "train",
            (*CUSTOM, "trainer.max_time=10x"),
            "trainer.max_time is '10x', which is no duration; write ",
        ),
        ("train", ("data=cooc",), "data=cooc: no such preset; did you mean data=coco?"),
        (
            "train",
            ("-m", "trainer.max_stepps=1,2"),
            "trainer.max_stepps: no such setting; did you mean trainer.max_",
        ),
        ("train", ("model.encoder=x",), "model.encoder: the chosen model has no such argument; model=unet_"),
        (
            "train",
            ("optimizer.betas=1",),
            "optimizer.betas: no such setting; known: optimizer.lr, optimizer.",
        ),
        ("train", ("sweep.space.model.depth=2",), "sweep.space.model: not there yet (+sweep.space.model=… "),
        ("train", ("+data.foo=1",), "data.foo: no such setting; did you mean data."),
        ("train", ("data.extra={images: a}",), "data.extra: it must be a list, as in [{images: a, annotat"),
        ("train", ("data.image_size=[1",), "data.image_size=[1: no viable alternative at input '[1'"),
        ("train", ("seed=1,2",), "Ambiguous value for argument 'seed=1,2' 1. To use it as a list, use key="),
        ("predict", ("chekpoint=a",), "chekpoint: no such setting; did you mean checkpoint?"),
    ],
    ids=str,
)
def test_a_mistake_in_a_command_is_one_line(
    tmp_path: Path, program: str, overrides: tuple[str, ...], sentence: str
):
    coco()(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert refused(tmp_path, program, *overrides).startswith(f"error: {sentence}")
    assert set(tmp_path.rglob("*")) == before


def test_a_time_that_yaml_reads_as_a_number(tmp_path: Path):
    coco()(tmp_path)
    (tmp_path / "mine/experiment").mkdir(parents=True)
    preset = "# @package _global_\ntrainer:\n  max_time: 6:00:00\n"
    (tmp_path / "mine/experiment/long.yaml").write_text(preset)
    said = refused(tmp_path, "prepare", "--config-dir=mine", *CUSTOM, "experiment=long")
    assert "trainer.max_time is the number 21600 (YAML reads an unquoted 6:00:00 as 21600)" in said


# ---- what only train.py can know


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with prepared data and a checkpoint. Runs of the tests go elsewhere."""
    cwd = tmp_path_factory.mktemp("trained")
    done = run_here("train", *SHORT, "run_dir=first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(cwd=cwd, checkpoint="first/checkpoints/last.ckpt")


def refusal(trained: SimpleNamespace, run: Path, *overrides: str) -> str:
    said = refused(trained.cwd, "train", *SHORT, f"run_dir={run}", *overrides)
    assert not (run / "segmentation_model.pth").exists()
    assert list(trained.cwd.rglob("*.part")) == []
    return said


@pytest.mark.parametrize(
    "content",
    [b"garbage, and not even much of it\n", slow(b""), slow(b"PK\x03\x04 zipped"), slow(b"\x80\x02}q\x00.")],
)
def test_checkpoint_of_garbage(trained: SimpleNamespace, tmp_path: Path, content: bytes):
    (tmp_path / "bad.ckpt").write_bytes(content)
    said = refusal(trained, tmp_path / "run", f"ckpt_path={tmp_path / 'bad.ckpt'}")
    assert "bad.ckpt" in said
    assert "it is damaged or no torch file" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("ckpt_path=first/segmentation_model.pth",), ("first/segmentation_model.pth",)),
        (
            ("ckpt_path=first/checkpoints/last.ckpt", "data.subset.categories=[square,circle]"),
            ("first/checkpoints/last.ckpt", "labels", "6 classes against 2"),
        ),
        (
            ("ckpt_path=first/checkpoints/last.ckpt", "model.base_channels=6"),
            ("first/checkpoints/last.ckpt", "model.base_channels", "4", "6"),
        ),
        (("optimizer.lr=abc",), ("optimizer", "abc")),
        slow(("optimizer.lr=-1",), ("optimizer", "-1")),
        slow(("+optimizer.momentum=0.9",), ("optimizer", "momentum")),
        slow(("model.depth=0",), ("model", "depth", "0")),
        slow(("data.image_size=[4,4]", "data.batch_size=1"), ("image_size", "batch_size", "larger")),
        slow(("optimizer._target_=torch.optim.Adamm",), ("optimizer", "torch.optim.Adamm", "imported")),
        slow(("model._target_=torhc.nn.Identity",), ("model", "torhc.nn.Identity")),
        slow(("trainer.precision=17",), ("trainer", "Precision 17")),
        slow(("trainer.accelerator=abacus",), ("trainer", "abacus")),
        slow(("data.subset.size=1",), ("data.val_fraction",)),
    ],
    ids=str,
)
def test_settings_that_do_not_work(
    trained: SimpleNamespace, tmp_path: Path, overrides: tuple[str, ...], words: tuple[str, ...]
):
    said = refusal(trained, tmp_path / "run", *overrides)
    assert [word for word in words if word not in said] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "word"),
    [("data/shapes/images/*", "images/image_"), ("prepared/*/masks/*.png", "_mask_cats_")],
)
def test_files_damaged_after_preparation(tmp_path: Path, pattern: str, word: str):
    """The error comes out of a process of the DataLoader."""
    assert run_here("prepare", *SHORT, cwd=tmp_path).returncode == 0
    for path in tmp_path.glob(pattern):
        path.write_bytes(path.read_bytes()[:100])
    assert word in refused(tmp_path, "train", *SHORT, "data.num_workers=1", "data.cache=false")


def test_a_run_is_never_overwritten(tmp_path: Path):
    """Two starts in the same second, or a run_dir given twice."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(json.dumps("of the first run"))
    assert "run already holds a run" in refused(tmp_path, "train", *SHORT, f"run_dir={run}")
    assert (run / "config.yaml").read_text() == '"of the first run"'
    assert not (tmp_path / "prepared").exists()
