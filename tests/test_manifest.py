import pytest

from cocoseg.errors import CocosegError
from cocoseg.manifest import FILE, Entry, Record

SETTINGS = {"scale": None, "tile": "auto", "flip": False, "scales": [1.0]}


def entry(image: str = "../a.jpg", **changes: object) -> Entry:
    values = {"name": "a", "file_bytes": 3, "changed_ns": 5, "height": 2, "width": 2, "pixels": {0: 3, 2: 1}}
    return Entry(image=image, **{**values, **changes})


def test_entries_come_back(tmp_path):
    record = Record(tmp_path, "abc", SETTINGS)
    record.add(entry())
    record.add(entry("../ä b.jpg", name="ä b"))
    record.write()

    again = Record(tmp_path, "abc", SETTINGS)

    assert again.entries == record.entries
    assert again.names == {"../a.jpg": "a", "../ä b.jpg": "ä b"}
    record.write()


def test_a_picture_is_done_until_it_is_replaced(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    record = Record(tmp_path / "out", "abc", SETTINGS)
    assert not record.is_done("../a.jpg", path)
    record.add(entry(changed_ns=path.stat().st_mtime_ns))
    assert record.is_done("../a.jpg", path)
    path.write_bytes(b"abcd")
    assert not record.is_done("../a.jpg", path)


def test_another_model_is_refused(tmp_path):
    Record(tmp_path, "abc", SETTINGS).write()
    with pytest.raises(CocosegError, match="another model; name another output, or delete"):
        Record(tmp_path, "abd", SETTINGS)


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
    Record(tmp_path, "abc", SETTINGS).write()
    with pytest.raises(CocosegError, match=message):
        Record(tmp_path, "abc", {**SETTINGS, **change})


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b", "", ".", "a\0"])
def test_a_record_that_leads_out_of_the_folder(tmp_path, name):
    record = Record(tmp_path, "abc", SETTINGS)
    record.add(entry(name=name))
    record.write()
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged .* leads out of the folder"):
        Record(tmp_path, "abc", SETTINGS)


def test_a_name_as_this_system_allows_it(tmp_path):
    record = Record(tmp_path, "abc", SETTINGS)
    record.add(entry(name="a..b/c"))
    record.write()
    assert Record(tmp_path, "abc", SETTINGS).names == {"../a.jpg": "a..b/c"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff"])
def test_a_damaged_record(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CocosegError, match=r"predictions\.json: damaged"):
        Record(tmp_path, "abc", SETTINGS)
