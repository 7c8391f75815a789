"""Bad input, one case each: a line on stderr that names what is wrong, exit code 2, nothing half done."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest

from conftest import SMALL, run_program, write_coco

SHORT = (*SMALL, "trainer.max_steps=2")
CUSTOM = ("data=custom", "data.images=images", "data.annotations=instances.json")
IMAGE = {"id": 1, "file_name": "a.png", "width": 8, "height": 6}
ANNOTATION = {"id": 7, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}


def line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr."""
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 2, done.stderr
    (only,) = (text for text in done.stderr.splitlines() if text.strip())
    assert len(only) < 500
    return only


def assert_nothing_half_done(cwd: Path) -> None:
    """No masks and no temporary files; Hydra's own, locks and marks (`.lock`) may stay."""
    names = [path.relative_to(cwd).as_posix() for path in cwd.rglob("*") if ".hydra" not in path.parts]
    left = [name for name in names if "_mask_cats_" in name or name.endswith("new.part")]
    temporary = [name for name in names if "/." in name and Path(name).suffix]
    assert left + temporary == []


# ---- what prepare.py and train.py check alike

Setup = Callable[[Path], Any]
Case = tuple[str, Setup | None, tuple[str, ...], tuple[str, ...]]  # name, set-up, overrides, words


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
    """An image of this name; the file itself lies outside the image folder."""

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


def foreign_folder(cwd: Path) -> None:
    coco()(cwd)
    (cwd / "thesis").mkdir()
    (cwd / "thesis/chapter1.tex").write_text("…")


def experiment(content: str) -> Setup:
    def write(cwd: Path) -> None:
        coco()(cwd)
        (cwd / "mine/experiment").mkdir(parents=True)
        (cwd / "mine/experiment/long.yaml").write_text(f"# @package _global_\n{content}\n")

    return write


OF_EXPERIMENT = ("--config-dir=mine", *CUSTOM, "experiment=long")

CASES: list[Case] = [
    # where things are
    ("no_root", None, ("data.root=nowhere",), ("data.root", "nowhere/annotations/instances_train2017.json")),
    ("empty_root", None, ("data.root=.",), ("data.images", "train2017")),
    ("root_is_a_file", text(""), ("data=shapes", "data.root=instances.json"), ("instances.json",)),
    ("shapes_without_root", None, ("data=shapes", "data.root=null"), ("data.root",)),
    ("nothing_set", None, ("data=custom",), ("data.images",)),
    ("no_annotations_set", coco(), CUSTOM[:2], ("data.annotations",)),
    ("no_annotation_file", coco(), (*CUSTOM[:2], "data.annotations=b.json"), ("data.annotations", "b.json")),
    ("annotations_is_a_folder", coco(), (*CUSTOM[:2], "data.annotations=images"), ("data.annotations",)),
    ("no_val_file", coco(), (*CUSTOM, "data.val_annotations=v.json"), ("data.val_annotations", "v.json")),
    # the annotation file
    ("empty_file", text(""), CUSTOM, ("instances.json", "JSON")),
    ("no_json", text("<xml/>"), CUSTOM, ("instances.json", "JSON")),
    ("no_images", coco(images=None), CUSTOM, ("instances.json", "'images'")),
    ("no_annotations", coco(annotations=None), CUSTOM, ("instances.json", "'annotations'")),
    ("no_categories", coco(categories=None), CUSTOM, ("instances.json", "'categories'")),
    (
        "unknown_image",
        coco(annotations=[{**ANNOTATION, "image_id": 42}]),
        CUSTOM,
        ("instances.json", "annotation 7", "image 42"),
    ),
    (
        "unknown_category",
        coco(annotations=[{**ANNOTATION, "category_id": 42}]),
        CUSTOM,
        ("instances.json", "annotation 7", "category 42"),
    ),
    (
        "bad_rle",
        coco(annotations=[{**ANNOTATION, "segmentation": {"size": [6, 8], "counts": [1, 2]}}]),
        CUSTOM,
        ("annotation 7",),
    ),
    ("absolute_name", file_name("{cwd}/secret.png"), CUSTOM, ("image 1", "/secret.png", "inside")),
    ("name_that_climbs_out", file_name("../secret.png"), CUSTOM, ("image 1", "../secret.png", "inside")),
    # the images
    ("missing_image", coco(images=[{**IMAGE, "file_name": "b.png"}]), CUSTOM, ("images/b.png", "missing")),
    ("missing_images", many_bad_images, CUSTOM, ("images/2.png", "images/3.png", "images/4.png")),
    ("broken_image", broken_jpeg, CUSTOM, ("images/b.jpg", "truncated")),
    ("other_size", coco(images=[{**IMAGE, "width": 9}]), CUSTOM, ("images/a.png", "8x6", "9x6")),
    # the choice
    (
        "unknown_category_name",
        coco(),
        (*CUSTOM, "data.subset.categories=[cat,dgo]"),
        ("data.subset.categories", "'dgo'", "'dog'"),
    ),
    (
        "unknown_category_id",
        coco(),
        (*CUSTOM, "data.subset.categories=[3]"),
        ("data.subset.categories", "3", "cat"),
    ),
    (
        "category_without_images",
        coco(),
        (*CUSTOM, "data.subset.categories=[dog]"),
        ("instances.json", "keep_empty"),
    ),
    ("size_of_nothing", coco(), (*CUSTOM, "data.subset.size=0"), ("data.subset.size", "0")),
    # other settings
    ("overlap", coco(), (*CUSTOM, "masks.overlap=biggest"), ("masks.overlap", "'biggest'", "smallest")),
    ("no_workers", coco(), (*CUSTOM, "prepare.workers=0"), ("prepare.workers", "0")),
    ("seed", coco(), (*CUSTOM, "seed=-1"), ("seed", "-1")),
    ("unknown_key", None, ("data.sise=3",), ("data.sise: no such setting; did you mean data.subset.size?",)),
    ("no_number", coco(), (*CUSTOM, "data.num_workers=many"), ("data.num_workers is 'many'; it must be ",)),
    ("size", coco(), (*CUSTOM, "data.image_size=[32,wide]"), ("data.image_size is [32,wide]; it must be ",)),
    ("seed_of_shapes", None, ("data=shapes", "data.shapes.seed=-1"), ("data.shapes.seed", "-1")),
    ("seconds", coco(), (*CUSTOM, "trainer.max_time=21600"), ("trainer.max_time", "21600", '"00:06:00:00"')),
    ("hours", coco(), (*CUSTOM, "trainer.max_time=6:00:00"), ("trainer.max_time", '"00:06:00:00"')),
    (
        "hours_in_yaml",
        experiment("trainer:\n  max_time: 6:00:00"),
        OF_EXPERIMENT,
        ("trainer.max_time", "21600", "quotes", '"00:06:00:00"'),
    ),
    ("no_checkpoint", coco(), (*CUSTOM, "ckpt_path=gone.ckpt"), ("ckpt_path", "gone.ckpt")),
    (
        "foreign_folder",
        foreign_folder,
        (*CUSTOM, "data.prepared_dir=thesis"),
        ("data.prepared_dir", "thesis"),
    ),
    ("prepared_dir_is_a_file", coco(), (*CUSTOM, "data.prepared_dir=instances.json"), ("data.prepared_dir",)),
]


@pytest.mark.parametrize(
    ("setup", "overrides", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_line(tmp_path: Path, setup: Setup | None, overrides: tuple[str, ...], words: tuple[str, ...]):
    if setup is not None:
        setup(tmp_path)
    said = line(run_program("prepare", *overrides, cwd=tmp_path))
    for word in words:
        assert word in said
    assert_nothing_half_done(tmp_path)


def test_a_foreign_folder_stays_as_it_was(tmp_path: Path):
    foreign_folder(tmp_path)
    line(run_program("prepare", *CUSTOM, "data.prepared_dir=thesis", cwd=tmp_path))
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_bad_input_leaves_the_masks_of_before(tmp_path: Path):
    """A preparation that fails does not take away the one that was there."""
    folder = tmp_path / "masks"
    overrides = (*CUSTOM, "data.prepared_dir=masks")
    coco()(tmp_path)
    assert run_program("prepare", *overrides, cwd=tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    coco(images=[{**IMAGE, "width": 9}])(tmp_path)
    line(run_program("prepare", *overrides, cwd=tmp_path))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_train_checks_alike(tmp_path: Path):
    coco(images=[{**IMAGE, "file_name": "b.png"}])(tmp_path)
    said = line(run_program("train", *CUSTOM, cwd=tmp_path))
    assert "images/b.png" in said
    assert_nothing_half_done(tmp_path)


# ---- what Hydra itself refuses


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.max_stepps=3", ("trainer.max_stepps",)),
        ("data=cooc", ("data/cooc", "custom")),
        ("experiment=dmeo", ("experiment/dmeo", "demo")),
    ],
)
def test_refused_by_hydra(tmp_path: Path, override: str, words: tuple[str, ...]):
    done = run_program("train", override, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---- what only train.py can know


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A folder with prepared data and a checkpoint. Runs of the tests go elsewhere."""
    cwd = tmp_path_factory.mktemp("trained")
    done = run_program("train", *SHORT, "run_dir=first", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(cwd=cwd, checkpoint="first/checkpoints/last.ckpt")


def refusal(trained: SimpleNamespace, run: Path, *overrides: str) -> str:
    said = line(run_program("train", *SHORT, f"run_dir={run}", *overrides, cwd=trained.cwd))
    assert not (run / "segmentation_model.pth").exists()
    assert list(trained.cwd.rglob("*.part")) == []
    return said


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"garbage, and not even much of it\n", id="text"),
        pytest.param(b"", id="empty", marks=pytest.mark.slow),
        pytest.param(b"PK\x03\x04 something zipped", id="zip", marks=pytest.mark.slow),
        pytest.param(b"\x80\x02}q\x00.", id="pickle", marks=pytest.mark.slow),
    ],
)
def test_checkpoint_of_garbage(trained: SimpleNamespace, tmp_path: Path, content: bytes):
    (tmp_path / "bad.ckpt").write_bytes(content)
    said = refusal(trained, tmp_path / "run", f"ckpt_path={tmp_path / 'bad.ckpt'}")
    assert "bad.ckpt" in said
    assert "run code" not in said


@pytest.mark.slow
def test_exported_model_is_no_checkpoint_to_go_on_from(trained: SimpleNamespace, tmp_path: Path):
    said = refusal(trained, tmp_path / "run", "ckpt_path=first/segmentation_model.pth")
    assert "first/segmentation_model.pth" in said


def test_checkpoint_of_other_labels(trained: SimpleNamespace, tmp_path: Path):
    chosen = "data.subset.categories=[square,circle]"
    said = refusal(trained, tmp_path / "run", chosen, f"ckpt_path={trained.checkpoint}")
    assert trained.checkpoint in said
    assert "labels" in said
    assert "6 classes against 2" in said


@pytest.mark.slow
def test_checkpoint_of_another_network(trained: SimpleNamespace, tmp_path: Path):
    said = refusal(trained, tmp_path / "run", "model.base_channels=6", f"ckpt_path={trained.checkpoint}")
    assert trained.checkpoint in said
    assert "model.base_channels" in said
    assert "4" in said
    assert "6" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        pytest.param(("optimizer.lr=abc",), ("optimizer", "abc"), id="lr_word"),
        pytest.param(("optimizer.lr=-1",), ("optimizer", "-1"), id="lr_negative", marks=pytest.mark.slow),
        pytest.param(
            ("+optimizer.momentum=0.9",),
            ("optimizer", "momentum"),
            id="no_such_argument",
            marks=pytest.mark.slow,
        ),
        pytest.param(("model.depth=0",), ("model", "depth", "0"), id="depth", marks=pytest.mark.slow),
        pytest.param(
            ("data.image_size=[4,4]", "data.batch_size=1"),
            ("4x4", "image_size", "batch_size"),
            id="one_value_per_channel",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("optimizer._target_=torch.optim.Adamm",),
            ("optimizer", "torch.optim.Adamm", "Are you sure that 'Adamm' is importable"),
            id="no_such_class",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("model._target_=torhc.nn.Identity",),
            ("model", "torhc.nn.Identity", "No module"),
            id="no_such_module",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("trainer.precision=17",), ("trainer", "Precision 17"), id="precision", marks=pytest.mark.slow
        ),
        pytest.param(
            ("trainer.accelerator=abacus",), ("trainer", "abacus"), id="accelerator", marks=pytest.mark.slow
        ),
        pytest.param(
            ("data.subset.size=1",), ("data.val_fraction",), id="nothing_to_hold_out", marks=pytest.mark.slow
        ),
    ],
)
def test_settings_that_do_not_work(
    trained: SimpleNamespace, tmp_path: Path, overrides: tuple[str, ...], words: tuple[str, ...]
):
    said = refusal(trained, tmp_path / "run", *overrides)
    for word in words:
        assert word in said


@pytest.mark.slow
def test_image_lost_after_preparation(tmp_path: Path):
    """The error comes out of a process of the DataLoader."""
    assert run_program("prepare", *SHORT, cwd=tmp_path).returncode == 0
    for number in range(1, 13):
        (tmp_path / f"data/shapes/images/image_{number:03d}.jpg").unlink()
    said = line(run_program("train", *SHORT, "data.num_workers=1", cwd=tmp_path))
    assert "data/shapes/images/image_" in said


@pytest.mark.slow
def test_mask_damaged_after_preparation(tmp_path: Path):
    assert run_program("prepare", *SHORT, cwd=tmp_path).returncode == 0
    for mask in tmp_path.glob("prepared/*/masks/*.png"):
        mask.write_bytes(mask.read_bytes()[:100])
    said = line(run_program("train", *SHORT, "data.num_workers=1", cwd=tmp_path))
    assert "_mask_cats_" in said


@pytest.mark.slow
def test_validation_file_of_other_labels(tmp_path: Path):
    coco()(tmp_path)
    write_coco(tmp_path / "val.json", categories=[{"id": 2, "name": "cat"}, {"id": 5, "name": "wolf"}])
    said = line(run_program("prepare", *CUSTOM, "data.val_annotations=val.json", cwd=tmp_path))
    assert "val.json" in said
    assert "wolf" in said


def test_a_run_is_never_overwritten(tmp_path: Path):
    """Two starts in the same second, or a run_dir given twice."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("of the first run")
    done = run_program("train", *SHORT, f"run_dir={run}", cwd=tmp_path)
    assert "run already holds a run" in line(done)
    assert (run / "config.yaml").read_text() == "of the first run"
    assert not (tmp_path / "prepared").exists()
