import json
import os
import re
import sys
from pathlib import Path

import pytest

from cocoseg.errors import CocosegError
from cocoseg.inference.find_images import MANIFEST, ImageFile
from cocoseg.inference.manifest import Entry, Manifest, relative_path

SETTINGS = {"scale": None, "tile": "auto", "flip": False}


def entry(image: str = "../a.jpg", **changes: object) -> Entry:
    values = {"name": "a", "file_bytes": 3, "changed_ns": 5, "height": 2, "width": 2, "pixels": {0: 3, 2: 1}}
    return Entry(image=image, **{**values, **changes})


def manifest_of(output: Path, *entries: Entry) -> Manifest:
    manifest = Manifest(output, "abc", SETTINGS)
    manifest.entries = {entry.name: entry for entry in entries}
    return manifest


def test_entries_are_read_as_they_were_written(tmp_path):
    manifest = manifest_of(tmp_path, entry(), entry("../ä b.jpg", name="ä b"))
    manifest.write()

    again = Manifest(tmp_path, "abc", SETTINGS)

    assert again.entries == manifest.entries
    assert [*again.entries] == ["a", "ä b"]


def test_an_image_is_done_until_it_is_replaced(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    assert not manifest_of(tmp_path / "out").is_done(ImageFile(path, "a.jpg"))
    manifest = manifest_of(tmp_path / "out", entry(changed_ns=path.stat().st_mtime_ns))
    assert manifest.is_done(ImageFile(path, "a.jpg"))
    assert not manifest.is_done(ImageFile(path, "deep/a.jpg"))  # its results have another name
    changed = path.stat().st_mtime_ns
    for content, later in ((b"abcd", 0), (b"abx", 1000)):  # another size at the same time, or vice versa
        path.write_bytes(content)
        os.utime(path, ns=(changed, changed + later))
        assert not manifest.is_done(ImageFile(path, "a.jpg"))


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("x/a.b.c", "x/a.b.d")], ids=str)
@pytest.mark.parametrize("was_predicted", [True, False])
def test_results_of_another_image_are_not_overwritten(tmp_path, monkeypatch, names, was_predicted):
    monkeypatch.chdir(tmp_path)
    images = [ImageFile(Path("in", name), name) for name in (*names, "b/a.jpg")]
    manifest = Manifest(Path("out"), "abc", SETTINGS)
    if was_predicted:
        manifest = manifest_of(Path("out"), entry(f"../in/{names[0]}", name=images[0].result_name))
        images[0].path.parent.mkdir(parents=True)
        images[0].path.touch()
        manifest.require_distinct_results(images[:1])
        del images[0]
    first, second = (re.escape(f"in/{name}") for name in names)
    Path("out").mkdir()
    with pytest.raises(
        CocosegError, match=rf"{second} and {first} would have the same results .* rename one"
    ):
        manifest.require_distinct_results(images)


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_names_that_differ_only_by_case_are_refused_on_macos_and_windows(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    images = [ImageFile(Path("in", name), name) for name in ("A.jpg", "a.jpg")]
    manifest = Manifest(tmp_path, "abc", SETTINGS)
    if platform == "linux":
        manifest.require_distinct_results(images)
    else:
        with pytest.raises(CocosegError, match=r"in/a\.jpg and .*in/A\.jpg would have the same results"):
            manifest.require_distinct_results(images)


def test_the_result_of_a_deleted_image_is_overwritten(tmp_path):
    manifest_of(tmp_path, entry()).require_distinct_results([ImageFile(Path("a.png"), "a.png")])


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("abd", {}, "made with another model; name another output, or delete"),
        ("abc", {"scale": 0.5}, "made with another scale;"),
        ("abc", {"tile": [512, 512], "flip": True}, "made with another tile, flip;"),
        ("abc", {"new": 1}, "made with another new;"),
    ],
    ids=str,
)
def test_another_model_or_other_settings_are_refused(tmp_path, model, change, message):
    Manifest(tmp_path, "abc", SETTINGS).write()
    with pytest.raises(CocosegError, match=message):
        Manifest(tmp_path, model, {**SETTINGS, **change})


def test_a_removed_setting_is_refused_unless_it_had_no_effect(tmp_path):
    content = {"model": "abc", "settings": {**SETTINGS, "scales": [1.0]}, "images": []}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    Manifest(tmp_path, "abc", SETTINGS)
    content["settings"]["scales"] = [0.5, 1.0]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CocosegError, match="made with another scales;"):
        Manifest(tmp_path, "abc", SETTINGS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff"])
def test_a_damaged_manifest_is_an_error(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged"):
        Manifest(tmp_path, "abc", SETTINGS)


def test_relative_paths_do_not_depend_on_the_form_of_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path("photos/a.jpg"), tmp_path / "photos/a.jpg"):
        for output in (Path("out/x"), tmp_path / "out/x"):
            assert relative_path(path, output) == "../../photos/a.jpg"
