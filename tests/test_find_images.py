import os
from pathlib import Path

import pytest

from cocoseg.errors import CocosegError
from cocoseg.find_images import Picture, find_pictures, key, name_results


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", "deep/er/c.tif", "deep/a.webp", ".hidden.jpg", ".git/d.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def names(input: Path | str, output: Path = Path("elsewhere")) -> list[str]:
    return [picture.name for picture in find_pictures(str(input), output)]


def test_a_folder_with_all_below_it(photos):
    assert names(photos) == ["a.jpg", "b.PNG", "deep/a.webp", "deep/er/c.tif"]


def test_a_file_may_end_as_it_likes(photos):
    assert find_pictures(str(photos / "notes.txt"), Path("elsewhere")) == [
        Picture(photos / "notes.txt", "notes.txt")
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("deep/*", ["a.webp"]),
        ("**/*.tif", ["deep/er/c.tif"]),
        ("[ab].*", ["a.jpg", "b.PNG"]),
        ("*/er/../a.webp", ["deep/a.webp"]),
    ],
)
def test_a_pattern(photos, pattern, expected):
    assert names(f"{photos}/{pattern}") == expected


def test_a_relative_pattern(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert names("*.jpg") == ["a.jpg"]
    assert names("../photos/*.jpg") == ["a.jpg"]


def test_a_name_that_looks_like_a_pattern(photos):
    (photos / "x[1].jpg").touch()
    assert names(photos / "x[1].jpg") == ["x[1].jpg"]


def test_results_are_no_pictures(photos):
    (photos / "out/masks").mkdir(parents=True)
    (photos / "out/masks/a.png").touch()
    assert "out/masks/a.png" in names(photos)
    assert "out/masks/a.png" not in names(photos, photos / "out")


@pytest.mark.parametrize("input", ["{}", "{}/**/*.png", "{}/out/masks/a.png"])
def test_neither_are_those_that_a_pattern_or_a_name_finds(photos, input):
    (photos / "out/masks").mkdir(parents=True)
    (photos / "out/masks/a.png").touch()
    if input == "{}/out/masks/a.png":
        with pytest.raises(CocosegError, match=r"nothing but results of predict\.py in"):
            names(input.format(photos), photos / "out")
    else:
        (photos / "z.png").touch()
        found = names(input.format(photos), photos / "out")
        assert "z.png" in found
        assert "out/masks/a.png" not in found


@pytest.mark.parametrize("input", ["{}", "{}/**/*.png"])
def test_results_of_other_outputs_are_no_pictures(photos, input):
    (photos / "z.png").touch()
    (photos / "out/masks/deep").mkdir(parents=True)
    (photos / "out/masks/deep/a.png").touch()
    (photos / "out/predictions.json").touch()
    found = names(input.format(photos))
    assert "z.png" in found
    assert "out/masks/deep/a.png" not in found
    assert names(photos / "out/masks") == ["deep/a.png"]  # who names it wants it


def test_a_pattern_that_is_none(photos):
    try:
        found = names(f"{photos}/**.jpg")
    except CocosegError as error:
        assert "input: " in str(error)  # noqa: PT017 up to Python 3.12
    else:
        assert found == ["a.jpg"]


def test_links_that_lead_round_in_circles(photos):
    (photos / "deep/round").symlink_to(photos, target_is_directory=True)
    assert names(photos) == ["a.jpg", "b.PNG", "deep/a.webp", "deep/er/c.tif"]


@pytest.mark.parametrize("input", ["nothing", "nothing/*.jpg", "*.gif"])
def test_nothing_there(photos, input):
    with pytest.raises(CocosegError, match=r"input: no "):
        names(photos / input)


def test_an_empty_folder(tmp_path):
    with pytest.raises(CocosegError, match=r"input: no picture in"):
        names(tmp_path)


def test_results_never_leave_the_output(photos, monkeypatch):
    """However the input is written."""
    monkeypatch.chdir(photos / "deep")
    for input in ("..", "../a.jpg", "../*.jpg", "../deep/../a.jpg", "*/../../a.jpg", str(photos)):
        for name in names(input):
            assert not name.startswith(("/", ".."))
            assert ".." not in Path(name).parts


# ---- names


def named(*files: str, taken: dict[str, str] | None = None) -> list[str]:
    pictures = [Picture(Path("in", file), file) for file in files]
    found = name_results(pictures, taken or {}, Path("out"))
    return [found[picture] for picture in pictures]


def test_results_are_called_after_the_picture():
    assert named("a.jpg", "deep/b.tar.png", "c") == ["a", "deep/b.tar", "c"]


def test_no_two_share_a_name():
    assert named("a.jpg", "a.png", "a.gif") == ["a", "a.png", "a.gif"]
    assert named("a.jpg", "A.png", "a.png.x") == ["a", "A.png", "a.png.x"]  # where case does not count


def test_a_name_is_not_that_of_a_folder():
    assert named("x.jpg", "x.png/y.jpg") == ["x.jpg", "x.png/y"]
    assert named("x.gif", "x.overlay.jpg/y.jpg", "deep/x") == ["x.gif", "x.overlay.jpg/y", "deep/x"]


def test_long_names_are_cut():
    first, second = named("deep/" + "é" * 122 + "a.jpg", "deep/" + "é" * 122 + "b.jpg")
    assert first != second
    for name in (first, second):
        assert name.startswith("deep/ééé")
        assert len(Path(f"{name}.overlay.jpg").name.encode()) <= 255


def test_names_of_before_stay():
    taken = {"../in/a.png": "a", "../other/b.jpg": "b"}
    assert named("a.jpg", "a.png", "b.jpg", taken=taken) == ["a.jpg", "a", "b.jpg"]
    taken |= {"../third/b.jpg": "b.jpg"}
    assert named("b.jpg", taken=taken) == ["b.jpg-2"]


def test_the_key_is_the_way_from_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = Picture(Path("photos/a.jpg"), "a.jpg")
    assert key(picture, Path("out/x")) == "../../photos/a.jpg"
    absolute = Picture(tmp_path / "photos/a.jpg", "a.jpg")
    assert key(absolute, Path("out/x")) == "../../photos/a.jpg"
    assert os.sep != "/" or key(picture, tmp_path / "out/x") == "../../photos/a.jpg"
