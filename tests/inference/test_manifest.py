from pathlib import Path

import pytest

from cocoseg.errors import CocosegError
from cocoseg.inference.find_images import MANIFEST, ImageFile
from cocoseg.inference.manifest import Entry, Manifest

SETTINGS = {"scale": None, "tile": "auto", "flip": False, "scales": [1.0]}


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


def test_results_of_another_image_are_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").touch()
    manifest = Manifest(Path("out"), "abc", SETTINGS)
    Path("out").mkdir()
    manifest.add(entry())
    manifest.require_free_names([ImageFile(Path("a.jpg"), "a.jpg"), ImageFile(Path("b.jpg"), "b.jpg")])
    for name in ("a.png", "A.png"):
        with pytest.raises(
            CocosegError, match=rf"results of a\.jpg, .* of deep/{name} would overwrite .*another output"
        ):
            manifest.require_free_names([ImageFile(Path("deep", name), name)])
    Path("a.jpg").unlink()  # the image itself was replaced
    manifest.require_free_names([ImageFile(Path("a.png"), "a.png")])


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


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b", "", ".", "a\0"])
def test_a_manifest_that_leads_out_of_the_folder(tmp_path, name):
    manifest = Manifest(tmp_path, "abc", SETTINGS)
    manifest.add(entry(name=name))
    manifest.write()
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged .* leads out of the folder"):
        Manifest(tmp_path, "abc", SETTINGS)


def test_a_name_as_this_system_allows_it(tmp_path):
    manifest = Manifest(tmp_path, "abc", SETTINGS)
    manifest.add(entry(name="a..b/c"))
    manifest.write()
    assert Manifest(tmp_path, "abc", SETTINGS).entries["a..b/c"].image == "../a.jpg"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff"])
def test_a_damaged_manifest(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged"):
        Manifest(tmp_path, "abc", SETTINGS)
