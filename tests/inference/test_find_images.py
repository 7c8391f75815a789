import os
from pathlib import Path

import pytest

from cocoseg.errors import CocosegError
from cocoseg.inference.find_images import ImageFile, find_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "deep/er/c.tif", "deep/a.webp", ".hidden.jpg", ".git/d.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def names(input: Path | str, output: Path = Path("elsewhere")) -> list[str]:
    return [image.name for image in find_images(str(input), output)]


def test_a_folder_is_searched_with_its_subfolders(photos):
    assert names(photos) == ["a.jpg", "b.PNG", "deep/a.webp", "deep/er/c.tif"]


def test_a_single_file_may_have_any_ending(photos):
    assert find_images(str(photos / "notes.txt"), Path("elsewhere")) == [
        ImageFile(photos / "notes.txt", "notes.txt")
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("deep/*", ["a.webp"]),
        ("**/*.tif", ["deep/er/c.tif"]),
        ("[ab].*", ["a.jpg", "b.PNG"]),
    ],
)
def test_a_pattern(photos, pattern, expected):
    assert names(f"{photos}/{pattern}") == expected


def test_a_file_whose_name_looks_like_a_pattern_is_found(photos):
    (photos / "x[1].jpg").touch()
    assert names(photos / "x[1].jpg") == ["x[1].jpg"]


def test_files_of_the_output_are_not_taken_as_images(photos):
    (photos / "out/masks").mkdir(parents=True)
    (photos / "out/masks/a.png").touch()
    assert "out/masks/a.png" in names(photos)
    assert "out/masks/a.png" not in names(photos, photos / "out")
    with pytest.raises(CocosegError, match=r"no image in .*results of predict.py do not count"):
        names(photos / "out", photos / "out")


@pytest.mark.parametrize("input", ["{}", "{}/**/*.png"])
def test_files_of_other_outputs_are_not_taken_as_images(photos, input):
    (photos / "z.png").touch()
    (photos / "out/masks/deep").mkdir(parents=True)
    (photos / "out/masks/deep/a.png").touch()
    (photos / "out/predictions.json").touch()
    found = names(input.format(photos))
    assert "z.png" in found
    assert "out/masks/deep/a.png" not in found
    assert names(photos / "out/masks") == ["deep/a.png"]  # this folder is the input itself


@pytest.mark.parametrize("pattern", ["**.jpg", "*/../a.jpg"])
def test_a_wrong_pattern_is_an_error(photos, pattern):
    with pytest.raises(CocosegError, match=r"write \*\*/\*\.jpg for all folders below"):
        names(f"{photos}/{pattern}")


def test_circular_links_are_not_followed(photos):
    (photos / "deep/round").symlink_to(photos, target_is_directory=True)
    assert names(photos) == ["a.jpg", "b.PNG", "deep/a.webp", "deep/er/c.tif"]


def test_an_unreadable_folder_is_an_error(photos, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in ("er", ".git"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # permissions would not stop root
    with pytest.raises(CocosegError, match=r"input: .*photos/deep/er: Permission denied"):
        names(photos)
    (photos / "deep/er/c.tif").unlink()
    (photos / "deep/er").rmdir()
    assert names(photos) == ["a.jpg", "b.PNG", "deep/a.webp"]


@pytest.mark.parametrize("input", ["nothing", "nothing/*.jpg", "*.gif"])
def test_no_image_at_all_is_an_error(photos, input):
    with pytest.raises(CocosegError, match=r"input: no "):
        names(photos / input)


def test_results_never_leave_the_output(photos, monkeypatch):
    monkeypatch.chdir(photos / "deep")
    for input in ("..", "../a.jpg", "../*.jpg", "../deep/../a.jpg", str(photos)):
        for name in names(input):
            assert not name.startswith(("/", ".."))
            assert ".." not in Path(name).parts


# ---- names of results


def files(*names: str) -> list[ImageFile]:
    return [ImageFile(Path("in", name), name) for name in names]


def test_results_are_named_after_the_image():
    found = files("a.jpg", "deep/b.tar.png", "c")
    assert [image.result_name for image in found] == ["a", "deep/b.tar", "c"]
