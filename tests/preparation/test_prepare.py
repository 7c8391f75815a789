import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, ShapesConfig, SubsetConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import is_prepared, prepared_dir, prepared_sets
from conftest import MASK_NAME, run_here, write_coco

SIZE = (8, 6)  # width, height
SPARE = 70  # an image without annotations


def make_data(root: Path, ids: range, **changes: Any) -> Path:
    """Images `images/<id>.png` with a cat (2) or, where the id is even, a dog (5) of 5 x 4 pixels each."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for i in (*ids, SPARE):
        PIL.Image.new("RGB", SIZE, (i, 0, 0)).save(root / "images" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]})
        if i != SPARE:
            segmentation = [[1, 1, 5, 1, 5, 4, 1, 4]]
            category = 2 if i % 2 else 5
            content["annotations"].append(
                {
                    "id": i,
                    "image_id": i,
                    "category_id": category,
                    "segmentation": segmentation,
                    "score": i / 8,
                }
            )
    return write_coco(root / "instances.json", **{**content, **changes})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Five images, three cats and two dogs."""
    make_data(tmp_path / "data", range(1, 6))
    return Config(
        data=DataConfig(
            images=str(tmp_path / "data" / "images"),
            annotations=str(tmp_path / "data" / "instances.json"),
            prepared_dir=str(tmp_path / "prepared"),
            subset=SubsetConfig(size=None),
        ),
        prepare=PrepareConfig(workers=1),
    )


def with_validation(config: Config, tmp_path: Path, **changes: Any) -> Config:
    file = make_data(tmp_path / "val_data", range(11, 14), **changes)
    config.data.val_annotations = str(file)
    config.data.val_images = str(file.parent / "images")
    return config


def state(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def times(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


def load(path: Path) -> Any:
    return json.loads(path.read_bytes())


def masks(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "masks").iterdir())


def touch(path: str) -> None:
    """Change the modification time, as writing the file again would."""
    changed = Path(path).stat().st_mtime_ns + 10_000_000
    os.utime(path, ns=(changed, changed))


# --- what is made


def test_everything_is_there(config: Config, tmp_path: Path) -> None:
    prepare(config)
    folder = tmp_path / "prepared"
    names = [f"{i}_mask_cats_{2 if i % 2 else 5}.png" for i in range(1, 6)]
    assert set(state(folder)) == {
        "subset_train_annotations.json",
        "labels.json",
        "index.json",
        "prepared.json",
        "report.md",
        "preview.png",
        *(f"masks/{name}" for name in names),
    }
    assert all(MASK_NAME.fullmatch(name) for name in names)

    source, subset = (
        load(tmp_path / "data" / "instances.json"),
        load(folder / "subset_train_annotations.json"),
    )
    assert subset == {**source, "images": source["images"][:5]}  # without the empty image

    labels = load(folder / "labels.json")
    assert [(c["index"], c["category_id"], c["name"]) for c in labels["classes"]] == [
        (0, None, "background"),
        (1, 2, "cat"),
        (2, 5, "dog"),
    ]
    assert labels["masks"] == {"encoding": "palette", "pixel": "category_id", "ignored": 255}

    assert load(folder / "index.json") == {
        "exif": None,
        "bits": None,
        "pixels": [5 * (48 - 20), 3 * 20, 2 * 20],
        "ignored_pixels": 0,
        "unseen": [],
        "pairs": [
            {"image": f"{i}.png", "mask": f"masks/{name}"} for i, name in zip(range(1, 6), names, strict=True)
        ],
    }
    assert load(folder / "prepared.json")["complete"] is True

    expected = np.zeros((6, 8), np.uint8)
    expected[1:5, 1:6] = 5
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(folder / "masks" / names[3])), expected)


def test_the_result_is_a_data_set(config: Config, tmp_path: Path) -> None:
    with_validation(config, tmp_path)
    prepare(config)
    for prepared, images in zip(prepared_sets(config), (range(1, 6), [*range(11, 14), SPARE]), strict=True):
        assert prepared is not None
        dataset = SegmentationDataset(prepared.subset_file, prepared.image_dir, image_size=(6, 8))
        assert [image for image, _ in dataset.pairs] == [f"{i}.png" for i in images]
        classes = [0 if i == SPARE else 1 if i % 2 else 2 for i in images]
        assert [dataset[n][1].max() for n in range(len(images))] == classes
        assert dataset.labels == MaskEncoding.load(prepared.folder).labels


def test_subset(config: Config, tmp_path: Path) -> None:
    config.data.subset = SubsetConfig(size=2, seed=4)
    prepare(config)
    two = set(masks(tmp_path / "prepared"))
    config.data.subset.size = 3
    prepare(config)
    three = set(masks(tmp_path / "prepared"))
    assert (len(two), len(three)) == (2, 3)
    assert two < three
    config.data.subset = SubsetConfig(size=None, keep_empty=True)
    prepare(config)
    assert f"{SPARE}_mask_cats_none.png" in masks(tmp_path / "prepared")
    assert len(masks(tmp_path / "prepared")) == 6


def test_shapes_are_drawn_first(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    config = Config(
        data=DataConfig(
            root=str(root),
            images=str(root / "images"),
            annotations=str(root / "annotations" / "instances.json"),
            prepared_dir=str(tmp_path / "prepared"),
            shapes=ShapesConfig(images=4, seed=1),
        ),
        prepare=PrepareConfig(workers=1),
    )
    prepare(config)
    assert len(masks(tmp_path / "prepared")) == 4
    before = times(tmp_path)
    prepare(config)
    assert times(tmp_path) == before


# --- done once, redone when something changes


def test_second_call_does_nothing(config: Config, tmp_path: Path) -> None:
    with_validation(config, tmp_path)
    prepare(config)
    before = times(tmp_path / "prepared")
    assert len(before) > 10
    config.data.image_size = [32, 32]  # shapes nothing that is prepared
    config.data.batch_size = 1
    config.prepare.workers = 2
    prepare(config)
    assert times(tmp_path / "prepared") == before


def test_same_bytes_when_made_anew(config: Config, tmp_path: Path) -> None:
    prepare(config)
    before = state(tmp_path / "prepared")
    shutil.rmtree(tmp_path / "prepared")
    config.prepare.workers = 2
    prepare(config)
    assert state(tmp_path / "prepared") == before


@pytest.mark.parametrize("setting", [{"overlap": "smallest"}, {"encoding": "x100"}], ids=str)
def test_changed_mask_settings(config: Config, tmp_path: Path, setting: dict[str, str]) -> None:
    prepare(config)
    before = times(tmp_path / "prepared" / "masks")
    config.masks = MasksConfig(**setting)
    prepare(config)
    assert before.keys() == times(tmp_path / "prepared" / "masks").keys()
    assert all(before[path] != time for path, time in times(tmp_path / "prepared" / "masks").items())
    after = state(tmp_path / "prepared")
    shutil.rmtree(tmp_path / "prepared")
    prepare(config)
    assert state(tmp_path / "prepared") == after


def test_changed_annotation_file(config: Config, tmp_path: Path) -> None:
    prepare(config)
    make_data(tmp_path / "data", range(1, 4))
    prepare(config)
    names = ["1_mask_cats_2.png", "2_mask_cats_5.png", "3_mask_cats_2.png"]
    assert masks(tmp_path / "prepared") == names  # no mask of an earlier image is left
    assert len(load(tmp_path / "prepared" / "index.json")["pairs"]) == 3


@pytest.mark.parametrize(
    "name", ["masks/3_mask_cats_2.png", "labels.json", "index.json", "subset_train_annotations.json", "masks"]
)
def test_deleted_file(config: Config, tmp_path: Path, name: str) -> None:
    prepare(config)
    before = state(tmp_path / "prepared")
    path = tmp_path / "prepared" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    prepare(config)
    assert state(tmp_path / "prepared") == before


@pytest.mark.parametrize("content", [b"", b"[]"])
@pytest.mark.parametrize("name", ["labels.json", "index.json", "prepared.json"])
def test_damaged_file(config: Config, tmp_path: Path, name: str, content: bytes) -> None:
    """Every error about a prepared folder says to run prepare.py again, so that must help."""
    prepare(config)
    before = state(tmp_path / "prepared")
    (tmp_path / "prepared" / name).write_bytes(content)
    prepare(config)
    assert state(tmp_path / "prepared") == before


def test_damaged_mask_can_be_mended_as_its_error_says(config: Config, tmp_path: Path) -> None:
    """Either prepare.py notices, or the error says to delete the file first."""
    prepare(config)
    path = tmp_path / "prepared" / "masks" / "1_mask_cats_2.png"
    before = path.read_bytes()
    path.write_bytes(before[:60])
    (train, _) = prepared_sets(config)
    dataset = SegmentationDataset(train.subset_file, train.image_dir)
    with pytest.raises(CocosegError) as caught:
        dataset[0]
    if "delete" in str(caught.value):
        path.unlink()
    prepare(config)
    assert path.read_bytes() == before


# --- errors and kills


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["image", "annotations", "categories"])
def test_an_error_leaves_the_earlier_files(config: Config, tmp_path: Path, kind: str, workers: int) -> None:
    prepare(config)
    before = state(tmp_path / "prepared")
    config.prepare.workers = workers
    if kind == "image":
        (tmp_path / "data" / "images" / "3.png").write_bytes(b"broken")
        touch(config.data.annotations)
    elif kind == "annotations":
        Path(config.data.annotations).write_text("{")
    else:
        config.data.subset.categories = ["zebra"]
    with pytest.raises(CocosegError):
        prepare(config)
    assert state(tmp_path / "prepared") == before


@pytest.mark.parametrize("stage", ["drawing", "publishing"])
def test_a_killed_run_is_redone(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    prepare(config)
    before = state(tmp_path / "prepared")
    touch(config.data.annotations)
    if stage == "drawing":  # files that a killed process leaves
        (tmp_path / "prepared" / "new.part").mkdir()
        (tmp_path / "prepared" / "new.part" / "9_mask_cats_2.png").write_bytes(b"half")
        (tmp_path / "prepared" / "prepared.json").write_text('{"complete": false}')
    else:
        replace = Path.replace

        def kill(path: Path, target: Path) -> None:
            if path.parent.name == "new.part" and path.name == "labels.json":
                raise KeyboardInterrupt
            replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", kill)
            with pytest.raises(KeyboardInterrupt):
                prepare(config)
        assert load(tmp_path / "prepared" / "prepared.json") == {"complete": False}
    prepare(config)
    after = state(tmp_path / "prepared")
    assert json.loads(before.pop("prepared.json")).keys() == json.loads(after.pop("prepared.json")).keys()
    assert after == before


@pytest.mark.parametrize("name", ["subset_train_annotations.json", "report.md", "preview.png"])
def test_a_full_disk_leaves_the_earlier_files(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    prepare(config)
    before = state(tmp_path / "prepared")
    touch(config.data.annotations)
    replace = Path.replace

    def fail(path: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CocosegError, match=f"{name}: can't be written .No space left on device"):
        prepare(config)
    assert state(tmp_path / "prepared") == before


@pytest.mark.parametrize("name", ["photo.jpg", "masks/mine.png", "labels.json", ".git/HEAD", "prepared.json"])
def test_foreign_folder(config: Config, tmp_path: Path, name: str) -> None:
    file = tmp_path / "prepared" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b'{"mine": 1}')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").rglob("*")}
    with pytest.raises(CocosegError, match=r"data\.prepared_dir: .*/prepared holds files"):
        prepare(config)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").rglob("*")} == before


def test_files_of_others_stay(config: Config, tmp_path: Path) -> None:
    prepare(with_validation(config, tmp_path))
    theirs = [tmp_path / "prepared" / name for name in ("mine.txt", "masks/mine.png", "val/masks/a/mine.png")]
    for file in theirs:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"mine")
    before = masks(tmp_path / "prepared")
    touch(config.data.annotations)
    touch(config.data.val_annotations)
    config.masks.encoding = "x100"
    config.data.subset.categories = ["cat"]
    prepare(config)
    assert {file.read_bytes() for file in theirs} == {b"mine"}
    assert masks(tmp_path / "prepared") == [name for name in before if not name.endswith("_5.png")]
    assert not (tmp_path / "prepared/new.part").exists()


def test_a_folder_for_the_validation_set_that_is_not_ours(config: Config, tmp_path: Path) -> None:
    prepare(config)
    mine = tmp_path / "prepared/val/masks/mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(CocosegError, match=r"data\.prepared_dir: .*/prepared/val holds files"):
        prepare(with_validation(config, tmp_path))
    assert mine.read_bytes() == b"mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_that_is_prepared_is_used(config: Config, tmp_path: Path) -> None:
    prepare(config)
    (tmp_path / "prepared").chmod(0o555)
    prepare(config)
    (tmp_path / "prepared").chmod(0o755)


@pytest.mark.parametrize("key", ["image", "mask"])
def test_an_index_that_leads_out_of_the_folder_is_out_of_date(
    config: Config, tmp_path: Path, key: str
) -> None:
    prepare(config)
    before = masks(tmp_path / "prepared")
    precious = tmp_path / "precious_mask_cats_2.png"
    precious.write_bytes(b"mine")
    index = load(tmp_path / "prepared/index.json")
    index["pairs"][0][key] = {
        "image": "../../precious_mask_cats_2.png",
        "mask": "../precious_mask_cats_2.png",
    }[key]
    (tmp_path / "prepared/index.json").write_text(json.dumps(index))
    assert not is_prepared(config)
    prepare(config)
    assert precious.read_bytes() == b"mine"
    assert masks(tmp_path / "prepared") == before


def test_file_instead_of_a_folder(config: Config, tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("mine")
    with pytest.raises(CocosegError, match=r"data\.prepared_dir"):
        prepare(config)
    assert (tmp_path / "prepared").read_text() == "mine"


@pytest.mark.parametrize("file", ["instances.json", "val.json"])
def test_a_refused_command_leaves_no_folder(tmp_path: Path, file: str) -> None:
    make_data(tmp_path, range(1, 4))
    shutil.copy(tmp_path / "instances.json", tmp_path / "val.json")
    (tmp_path / file).write_text("{")
    files = ("data.annotations=instances.json", "data.val_annotations=val.json")
    done = run_here("prepare", "data=custom", "data.images=images", *files, "run_dir=run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}: no valid JSON")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "prepared").exists()


def test_a_refused_preparation_keeps_the_empty_folder_of_a_user(config: Config, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    Path(config.data.annotations).write_text("{")
    for place in ("mine", "mine/prepared/first"):
        config.data.prepared_dir = str(tmp_path / place)
        with pytest.raises(CocosegError, match="no valid JSON"):
            prepare(config)
        assert list((tmp_path / "mine").iterdir()) == []


# --- a validation file of its own


def test_validation_set(config: Config, tmp_path: Path) -> None:
    config.data.subset.size = 2
    with_validation(config, tmp_path)
    prepare(config)
    folder = tmp_path / "prepared"
    assert len(masks(folder)) == 2
    # The size is that of the training subset, and false alarms show on images without annotations.
    names = ["11_mask_cats_2.png", "12_mask_cats_5.png", "13_mask_cats_2.png", f"{SPARE}_mask_cats_none.png"]
    assert masks(folder / "val") == names
    subset = load(folder / "val" / "subset_val_annotations.json")
    assert [image["id"] for image in subset["images"]] == [11, 12, 13, SPARE]
    assert load(folder / "val" / "labels.json") == load(folder / "labels.json")


def test_validation_images_default_to_the_folder_of_the_others(config: Config, tmp_path: Path) -> None:
    with_validation(config, tmp_path)
    for image in (tmp_path / "val_data" / "images").iterdir():
        shutil.copy(image, tmp_path / "data" / "images")
    config.data.val_images = None
    prepare(config)
    assert len(masks(tmp_path / "prepared" / "val")) == 4
    assert prepared_sets(config)[1].image_dir == tmp_path / "data" / "images"


@pytest.mark.parametrize(
    ("categories", "difference"),
    [
        ([{"id": 2, "name": "cat"}, {"id": 5, "name": "wolf"}], "'dog' .*'wolf'"),
        ([{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 6, "name": "eel"}], "2 .*3"),
    ],
)
def test_other_labels_in_the_validation_file(
    config: Config, tmp_path: Path, categories: list[dict[str, Any]], difference: str
) -> None:
    with_validation(config, tmp_path, categories=categories)
    with pytest.raises(CocosegError, match=rf"val_data/instances\.json: other labels .*{difference}"):
        prepare(config)


def test_labels_of_the_training_file_change_later(config: Config, tmp_path: Path) -> None:
    """The validation set is as it was, and no longer fits: its class 2 is a dog, the other's an eel."""
    with_validation(config, tmp_path)
    prepare(config)
    categories = [{"id": 2, "name": "cat"}, {"id": 4, "name": "eel"}, {"id": 5, "name": "dog"}]
    make_data(tmp_path / "data", range(1, 6), categories=categories)
    with pytest.raises(CocosegError, match=r"val_data/instances\.json: other labels .*3 .*2"):
        prepare(config)


def test_only_changed_sets_are_prepared_again(config: Config, tmp_path: Path) -> None:
    with_validation(config, tmp_path)
    prepare(config)
    folder = tmp_path / "prepared"
    before = {p: t for p, t in times(folder).items() if "val" not in p.parts}
    make_data(tmp_path / "val_data", range(11, 13))
    prepare(config)
    assert len(masks(folder / "val")) == 3
    assert {p: t for p, t in times(folder).items() if "val" not in p.parts} == before


def test_chosen_categories_leave_no_validation_image_out(config: Config, tmp_path: Path) -> None:
    """A model of dogs raises false alarms on cats, too."""
    with_validation(config, tmp_path)
    config.data.subset.categories = ["dog"]
    prepare(config)
    assert masks(tmp_path / "prepared") == ["2_mask_cats_5.png", "4_mask_cats_5.png"]
    none = [f"{i}_mask_cats_none.png" for i in (11, 13, SPARE)]
    assert masks(tmp_path / "prepared" / "val") == sorted([*none, "12_mask_cats_5.png"])


# --- the default place


def test_default_folder(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config.data.prepared_dir = None
    prepare(config)
    folder = prepared_dir(config)
    assert folder.parent == Path("prepared")
    assert folder.name.startswith("instances-")
    assert "=" not in folder.name
    assert len(masks(folder)) == 5


def test_default_folder_depends_on_settings_of_the_masks(config: Config, tmp_path: Path) -> None:
    config.data.prepared_dir = None
    first = prepared_dir(config)
    config.data.batch_size, config.data.image_size, config.data.val_fraction, config.seed = 2, [8, 8], 0.3, 7
    assert prepared_dir(config) == first
    seen = {first}
    for place, key, value in (
        (config.data.subset, "size", 7),
        (config.data.subset, "seed", 7),
        (config.data.subset, "categories", ["cat"]),
        (config.data.subset, "keep_empty", True),
        (config.masks, "overlap", "ignore"),
        (config.masks, "rasterizer", "coco"),
        (config.masks, "crowd", "skip"),
        (config.masks, "encoding", "x100"),
        (config.data, "images", str(tmp_path)),
        (config.data, "val_annotations", "val.json"),
    ):
        setattr(place, key, value)
        seen.add(prepared_dir(config))
    assert len(seen) == 11
