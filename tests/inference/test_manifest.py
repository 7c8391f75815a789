import re
from pathlib import Path

import pytest

from cocoseg.errors import CocosegError
from cocoseg.inference.find_images import MANIFEST, ImageFile
from cocoseg.inference.manifest import Entry, Manifest

SETTINGS = {"scale": None, "tile": "auto", "flip": False}


def entry(image: str = "../a.jpg", **changes: object) -> Entry:
    values = {"name": "a", "file_bytes": 3, "changed_ns": 5, "height": 2, "width": 2, "pixels": {0: 3, 2: 1}}
    return Entry(image=image, **{**values, **changes})


def test_entries_come_back(tmp_path):
    manifest = Manifest(tmp_path, "abc", SETTINGS)
    manifest.add(entry())
    manifest.add(entry("../ä b.jpg", name="ä b"))
    manifest.write()

    again = Manifest(tmp_path, "abc", SETTINGS)

    assert again.entries == manifest.entries
    assert [*again.entries] == ["a", "ä b"]


def test_an_image_is_done_until_it_is_replaced(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    manifest = Manifest(tmp_path / "out", "abc", SETTINGS)
    assert not manifest.is_done(ImageFile(path, "a.jpg"))
    manifest.add(entry(changed_ns=path.stat().st_mtime_ns))
    assert manifest.is_done(ImageFile(path, "a.jpg"))
    assert not manifest.is_done(ImageFile(path, "deep/a.jpg"))  # its results have another name
    path.write_bytes(b"abcd")
    assert not manifest.is_done(ImageFile(path, "a.jpg"))


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "A.png"), ("x/a.b.c", "x/a.b.d")], ids=str)
@pytest.mark.parametrize("was_predicted", [True, False])
def test_results_of_another_image_are_not_overwritten(tmp_path, monkeypatch, names, was_predicted):
    monkeypatch.chdir(tmp_path)
    manifest = Manifest(Path("out"), "abc", SETTINGS)
    images = [ImageFile(Path("in", name), name) for name in (*names, "b/a.jpg")]
    if was_predicted:
        manifest.add(entry(f"../in/{names[0]}", name=images[0].result_name))
        images[0].path.parent.mkdir(parents=True)
        images[0].path.touch()
        manifest.require_distinct_results(images[:1])
        del images[0]
    first, second = (re.escape(f"in/{name}") for name in names)
    Path("out").mkdir()
    with pytest.raises(
        CocosegError, match=rf"results of {second} would overwrite those of {first} .* rename one"
    ):
        manifest.require_distinct_results(images)


def test_a_result_of_an_image_that_is_gone_is_overwritten(tmp_path):
    manifest = Manifest(tmp_path, "abc", SETTINGS)
    manifest.add(entry())
    manifest.require_distinct_results([ImageFile(Path("a.png"), "a.png")])


def test_another_model_is_refused(tmp_path):
    Manifest(tmp_path, "abc", SETTINGS).write()
    with pytest.raises(CocosegError, match="another model; name another output, or delete"):
        Manifest(tmp_path, "abd", SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.5}, "with scale=null, now it is 0.5"),
        ({"tile": [512, 512]}, r"with tile=auto, now it is \[512,512\]"),
        ({"flip": True}, "with flip=false, now it is true"),
        ({"new": 1}, "with new=null, now it is 1"),
    ],
    ids=str,
)
def test_other_settings_are_refused_by_name(tmp_path, change, message):
    Manifest(tmp_path, "abc", SETTINGS).write()
    with pytest.raises(CocosegError, match=message):
        Manifest(tmp_path, "abc", {**SETTINGS, **change})


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff"])
def test_a_damaged_manifest(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged"):
        Manifest(tmp_path, "abc", SETTINGS)
