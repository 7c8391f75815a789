"""Images that are missing under their names, while files of similar names exist."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.images.similar_names import find_similar
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import prepared_sets
from conftest import write_coco

SIZE = {"width": 8, "height": 6}


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", tuple(SIZE.values())).save(folder / name, format="PNG")


# --- one image


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Photo.JPG", "photo.jpg"),
        ("sub/A.jpg", "Sub/a.jpg"),
        ("a.jpg", "a.jpeg"),
        ("a.png", "a.tif"),
        ("0001", "0001.jpg"),
        ("v1.2", "v1.2.png"),
        ("a.jpg", "A.JPEG"),
        ("Gr\u00f6\u00dfe.png", "Gro\u0308\u00dfe.png"),
        ("at 10\u202fAM.png", "at 10 AM.png"),
        ("my photo.jpg", "my_photo.jpg"),
        ("a.jpg ", "a.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
        ("my photo.jpg", "my%20photo.jpg"),
        ("sub\\a.jpg", "sub/a.jpg"),
        ("train/a.jpg", "a.jpg"),
        ("a.jpg", "x/y/a.jpg"),
        ("x/a.jpg", "y/a.jpg"),
        ("images\\My%20a.JPG", "my a.jpeg"),
    ],
)
def test_found(tmp_path: Path, name: str, file: str) -> None:
    put(tmp_path, file, "other.png", "sub/other.jpg")
    assert find_similar([name], [name], tmp_path) == {name: file}


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a.jpg"], ["b.jpg", "aa.jpg", "a.jpg.txt"]),
        (["a.jpg"], ["a.json", "a.txt"]),  # no image
        (["a.jpg"], ["x/a.jpg", "y/a.jpg"]),  # either
        (["a.jpg", "a.png"], ["a.png"]),  # that of another image
        (["A.jpg", "a.JPG"], ["a.jpg"]),  # either's
        (["a.jpg"], ["a\n.jpg"]),
    ],
)
def test_not_found(tmp_path: Path, names: list[str], files: list[str]) -> None:
    put(tmp_path, *files)
    assert find_similar([name for name in names if name not in files], names, tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "files", "nearest"),
    [
        ("a.jpg", ["a.JPG", "a.png"], "a.JPG"),
        ("a.jpg", ["a.jpeg", "x/a.jpeg"], "a.jpeg"),
        ("set/x/a.jpg", ["x/a.jpg", "y/a.jpg"], "x/a.jpg"),
    ],
)
def test_nearest(tmp_path: Path, name: str, files: list[str], nearest: str) -> None:
    put(tmp_path, *files)
    assert find_similar([name], [name], tmp_path)[name] == nearest


# --- a data set


def make_config(root: Path, *names: str, images: str = "photos", **data: Any) -> Config:
    """Write an annotation file of images with these names, each with an object."""
    square = [[1, 1, 5, 1, 5, 4, 1, 4]]
    file = write_coco(
        root / "c.json",
        images=[{"id": i, "file_name": name, "x": 1.50, **SIZE} for i, name in enumerate(names)],
        annotations=[
            {"id": i, "image_id": i, "category_id": 2, "segmentation": square} for i in range(len(names))
        ],
    )
    return Config(
        data=DataConfig(
            images=str(root / images),
            annotations=str(file),
            prepared_dir=str(root / "prepared"),
            subset=SubsetConfig(size=None),
            **data,
        ),
        prepare=PrepareConfig(workers=1),
    )


def refusal(config: Config, root: Path) -> str:
    with pytest.raises(CocosegError) as caught:
        prepare(config)
    assert len(str(caught.value)) < 400 + 5 * len(str(root))
    return str(caught.value).replace(f"{root}/", "")


def test_all_differ_alike(tmp_path: Path) -> None:
    """Images are read under similar names, and the subset that is written has the names of the files."""
    put(tmp_path / "photos", "a.JPG", "b.JPG", "c.jpg")
    config = make_config(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    assert refusal(config, tmp_path) == (
        "2 of 3 chosen images are missing, photos/a.jpg, photos/b.jpg; files of similar names are there, "
        "photos/a.JPG for one: data.file_names=similar reads them"
    )
    config.data.file_names = "similar"
    for _ in range(2):
        prepare(config)
    subset = json.loads((tmp_path / "prepared/subset_train_annotations.json").read_bytes())
    assert subset["images"] == [
        {"id": i, "file_name": name, "x": 1.5, **SIZE} for i, name in enumerate(["a.JPG", "b.JPG", "c.jpg"])
    ]
    (train, _) = prepared_sets(config)
    dataset = SegmentationDataset(train.subset_file, train.image_dir, image_size=(6, 8))
    assert dataset.pairs[0] == ("a.JPG", "masks/a_mask_cats_2.png")
    assert [int(dataset[i][1].max()) for i in range(3)] == [1, 1, 1]
    config.data.file_names = "exact"
    assert refusal(config, tmp_path).startswith("2 of 3 chosen images are missing")


def test_some_differ(tmp_path: Path) -> None:
    put(tmp_path / "photos", "a.JPG", "c.jpg")
    config = make_config(tmp_path, "b.jpg", "a.jpg", "c.jpg")
    assert refusal(config, tmp_path) == (
        "2 of 3 chosen images are missing, photos/b.jpg, photos/a.jpg; for 1 of them files of similar names "
        "are there, photos/a.JPG for one"
    )
    config.data.file_names = "similar"
    assert refusal(config, tmp_path).startswith("1 of 3 chosen images are missing, photos/b.jpg; ")


@pytest.mark.parametrize(
    ("names", "files", "folder"),
    [
        (["photos/a.png", "photos/b.png"], ["photos/a.png", "photos/b.png"], ""),
        (["x/photos/a.png"], ["x/photos/a.png"], None),
        (["a.png", "b.png"], ["photos/train/a.png", "photos/train/b.png"], "photos/train"),
        (["train/a.png"], ["photos/x/y/train/a.png"], "photos/x/y"),
        (["a.png"], ["a.png"], ""),
    ],
)
def test_another_folder(tmp_path: Path, names: list[str], files: list[str], folder: str | None) -> None:
    (tmp_path / "photos").mkdir()
    put(tmp_path, *files)
    config = make_config(tmp_path, *names, images="x/photos" if folder is None else "photos")
    place = tmp_path if folder is None else tmp_path / folder
    assert refusal(config, tmp_path).endswith(
        f"; they are in {place}: set data.images={place}".replace(f"{tmp_path}/", "")
    )
    config.data.images = str(place)
    prepare(config)


def test_folders_that_differ(tmp_path: Path) -> None:
    """No folder alone holds all images."""
    put(tmp_path / "photos", "cats/a.png", "dogs/b.png")
    config = make_config(tmp_path, "a.png", "b.png")
    assert "files of similar names are there, photos/cats/a.png for one: " in refusal(config, tmp_path)
    config.data.file_names = "similar"
    prepare(config)


def test_files_of_nothing(tmp_path: Path) -> None:
    put(tmp_path / "photos", "c.png")
    (tmp_path / "photos/a.png").touch()
    (tmp_path / "photos/b.png").symlink_to("nowhere.png")
    said = refusal(make_config(tmp_path, "a.png", "b.png", "c.png"), tmp_path)
    assert "missing, photos/a.png (an empty file), photos/b.png (a link to nothing); " in said


def test_validation_folder(tmp_path: Path) -> None:
    put(tmp_path, "photos/a.png", "val/x/a.png")
    config = make_config(tmp_path, "a.png")
    config.data.val_annotations, config.data.val_images = config.data.annotations, str(tmp_path / "val")
    assert refusal(config, tmp_path).endswith("they are in val/x: set data.val_images=val/x")
