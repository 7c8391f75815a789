import itertools
import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.labels import LabelMap
from cocoseg.preparation import coco_file as coco
from cocoseg.preparation.masks import MaskRecord
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.report import UNSEEN, DataWarning, Tally, as_markdown, build_report, find_warnings
from cocoseg.preparation.segmentations import BROKEN, EMPTY, FLAT, OUTSIDE
from cocoseg.preparation.survey import COVERED
from conftest import write_coco

WIDTH, HEIGHT = 20, 10  # of images 1 and 2
CATEGORIES = [{"id": 47, "name": "cup"}, {"id": 67, "name": "dining table"}, {"id": 80, "name": "toaster"}]


def corners(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A box; its last row and column are drawn too."""
    return [[left, top, right, top, right, bottom, left, bottom]]


# 15 x 10 pixels of table with a cup of 3 x 3 on it; a cup of 2 x 2 and a crowd of cups of 5 x 4; nothing.
IMAGES = [
    {"id": 1, "file_name": "1.png", "width": WIDTH, "height": HEIGHT},
    {"id": 2, "file_name": "2.png", "width": WIDTH, "height": HEIGHT},
    {"id": 3, "file_name": "3.png", "width": 10, "height": 10},
]
ANNOTATIONS = [
    {"id": 10, "image_id": 1, "category_id": 67, "segmentation": corners(0, 0, 14, 9)},
    {"id": 11, "image_id": 1, "category_id": 47, "segmentation": corners(4, 4, 6, 6)},
    {"id": 12, "image_id": 2, "category_id": 47, "segmentation": corners(1, 1, 2, 2)},
    {"id": 13, "image_id": 2, "category_id": 47, "segmentation": corners(10, 3, 14, 6), "iscrowd": 1},
]


def make_config(root: Path, **masks: str) -> Config:
    (root / "images").mkdir(exist_ok=True)
    for image in IMAGES:
        PIL.Image.new("RGB", (image["width"], image["height"])).save(root / "images" / image["file_name"])
    file = write_coco(root / "c.json", images=IMAGES, annotations=ANNOTATIONS, categories=CATEGORIES)
    return Config(
        data=DataConfig(
            images=str(root / "images"),
            annotations=str(file),
            prepared_dir=str(root / "prepared"),
            subset=SubsetConfig(size=None, keep_empty=True),
        ),
        masks=MasksConfig(**masks),
        prepare=PrepareConfig(workers=1),
    )


def report_of(root: Path, **masks: str) -> dict[str, Any]:
    prepare(make_config(root, **masks))
    return json.loads((root / "prepared" / "report.json").read_bytes())


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in report["classes"]}


def table_rows(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own head."""
    section = markdown.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# --- warnings


@pytest.mark.parametrize(
    ("of", "count", "first", "expected"),
    [
        ("annotation", 1, [7], "1 annotation: odd (7)"),
        ("annotation", 2, [7, 9], "2 annotations: odd (7, 9)"),
        ("class", 1, ["zebra"], "1 class: odd (zebra)"),
        ("class", 2, ["apple", "zebra"], "2 classes: odd (apple, zebra)"),
        ("image", 6, [1, 2, 3, 4, 5], "6 images: odd (1, 2, 3, 4, 5, …)"),
    ],
)
def test_warning_in_words(of: str, count: int, first: list[int | str], expected: str) -> None:
    assert str(DataWarning(of, "odd", count, first)) == expected


# --- tally


def overlaps(covered: dict[int, int], **hidden: dict[int, int]) -> dict[str, Counter[int]]:
    return {name: Counter(pixels) for name, pixels in {COVERED: covered, **hidden}.items()}


RECORDS = [
    MaskRecord("a.png", "a_mask.png", {0: 5, 1: 3}, {FLAT: [9, 2]}, overlaps({1: 3})),
    MaskRecord("b.png", "b_mask.png", {0: 8}, {FLAT: [1], EMPTY: [4]}),
    MaskRecord("c.png", "c_mask.png", {0: 2, 255: 6}, {EMPTY: [3]}),
    MaskRecord(
        "d.png",
        "d_mask.png",
        {1: 2, 2: 6},
        {},
        overlaps({1: 4, 2: 6}, max={1: 2}, smallest={2: 2}, ignore={1: 2, 2: 2}),
    ),
]


def test_tally() -> None:
    tally = Tally()
    for record in RECORDS:
        tally.add(record)
    assert tally.masks == {f"{name}.png": f"{name}_mask.png" for name in "abcd"}
    assert tally.empty == {"b.png", "c.png"}
    assert tally.images == Counter({1: 2, 2: 1})
    assert tally.pixels == Counter({0: 15, 1: 5, 2: 6, 255: 6})
    assert tally.surveyed == 2
    assert tally.overlaps == overlaps({1: 7, 2: 6}, max={1: 2}, smallest={2: 2}, ignore={1: 2, 2: 2})
    assert tally.warnings == {FLAT: [9, 2, 1], EMPTY: [4, 3]}


def test_the_order_of_records_does_not_matter(tmp_path: Path) -> None:
    file = coco.read(write_coco(tmp_path / "c.json"))
    labels = LabelMap.from_categories(file.categories)
    reports = set()
    for order in itertools.permutations(RECORDS):
        tally = Tally()
        for record in order:
            tally.add(record)
        warnings = find_warnings(file, labels, tally)
        report = build_report(file, file.images, labels, MasksConfig(), tally, warnings)
        reports.add(json.dumps(report) + as_markdown(report))
    assert len(reports) == 1


# --- the report of a prepared folder


def test_numbers(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    total = 2 * WIDTH * HEIGHT + 100
    assert report["images"] == {
        "chosen": 3,
        "in_file": 3,
        "empty": 1,
        "sizes": {"20x10": 2, "10x10": 1},
    }
    assert report["annotations"] == {"used": 4, "crowd": 1, "crowd_share": 0.25}
    assert report["pixels"] == {
        "total": total,
        "background_share": (total - 150 - 4 - 20) / total,
        "ignored_share": 20 / total,
    }
    assert report["rules"] == {"overlap": "max", "rasterizer": "pillow", "crowd": "ignore"}
    assert report["warnings"] == [
        {"of": "image", "what": "no annotation", "count": 1, "first": [3]},
        {"of": "class", "what": UNSEEN, "count": 1, "first": ["toaster"]},
    ]


def test_classes(tmp_path: Path) -> None:
    cup, table, toaster = report_of(tmp_path)["classes"]
    assert cup == {
        "index": 1,
        "name": "cup",
        "category_ids": [47],
        "images": 1,  # on the first it is hidden
        "annotations": 3,
        "pixels": 4,
        "pixel_share": 0.008,
    }
    assert table == {
        "index": 2,
        "name": "dining table",
        "category_ids": [67],
        "images": 1,
        "annotations": 1,
        "pixels": 150,
        "pixel_share": 0.3,
    }
    assert toaster == {
        "index": 3,
        "name": "toaster",
        "category_ids": [80],
        "images": 0,
        "annotations": 0,
        "pixels": 0,
        "pixel_share": 0,
    }


CUP = {
    "index": 1,
    "name": "cup",
    "covered_pixels": 13,
    "hidden_share": {"max": 0.692308, "smallest": 0, "ignore": 0.692308},  # 9 of 13
}
TABLE = {
    "index": 2,
    "name": "dining table",
    "covered_pixels": 150,
    "hidden_share": {"max": 0, "smallest": 0.06, "ignore": 0.06},  # 9 of 150
}


@pytest.mark.parametrize(
    ("overlap", "cup_pixels", "cup_images", "table_pixels", "ignored"),
    [("max", 4, 1, 150, 20), ("smallest", 13, 2, 141, 20), ("ignore", 4, 1, 141, 29)],
)
def test_the_rule_changes_pixels_but_not_what_each_rule_hides(
    tmp_path: Path, overlap: str, cup_pixels: int, cup_images: int, table_pixels: int, ignored: int
) -> None:
    report = report_of(tmp_path, overlap=overlap)
    classes = by_name(report)
    assert (classes["cup"]["pixels"], classes["cup"]["images"]) == (cup_pixels, cup_images)
    assert classes["dining table"]["pixels"] == table_pixels
    assert report["pixels"]["ignored_share"] == ignored / 500
    assert report["overlaps"] == {
        "images": 3,
        "hidden_share": {
            "max": round(9 / 163, 6),
            "smallest": round(9 / 163, 6),
            "ignore": round(18 / 163, 6),
        },
        "classes": [TABLE, CUP] if overlap == "smallest" else [CUP, TABLE],  # most pixels lost first
    }


def test_overlaps_come_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and warnings don't."""
    whole = report_of(tmp_path)
    shutil.rmtree(tmp_path / "prepared")
    monkeypatch.setattr("cocoseg.preparation.survey.SAMPLE", 2)
    report = report_of(tmp_path)
    assert report["overlaps"]["images"] == 2
    assert {**report, "overlaps": None} == {**whole, "overlaps": None}
    markdown = (tmp_path / "prepared" / "report.md").read_text(encoding="utf-8")
    assert "from 2 of the 3 images, chosen by seed" in markdown


def test_merged_classes_hide_nothing_of_each_other(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.data.labels = {"things": ["cup", "dining table"]}
    prepare(config)
    report = json.loads((tmp_path / "prepared" / "report.json").read_bytes())
    (things,), (overlaps,) = report["classes"], report["overlaps"]["classes"]
    assert (things["category_ids"], things["annotations"], things["images"]) == ([47, 67], 4, 2)
    assert (things["pixels"], overlaps["covered_pixels"]) == (154, 154)
    assert not any(overlaps["hidden_share"].values())


# --- in words


def test_markdown(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    markdown = (tmp_path / "prepared" / "report.md").read_text(encoding="utf-8")
    assert markdown == as_markdown(report)
    for line in (
        "- 3 of 3 images, 1 without a pixel of any class",
        "- sizes (width x height): 20x10 (2), 10x10 (1)",
        "- 4 annotations, 25.0 % of them crowds",
        "- rules: overlap `max`, rasterizer `pillow`, crowd `ignore`",
        "- 1 image: no annotation (3)",
        f"- 1 class: {UNSEEN} (toaster)",
    ):
        assert line in markdown.splitlines()
    assert "pixels: 65.2 % background, 4.0 % ignored" in markdown
    assert table_rows(markdown, "What overlaps hide") == [["cup", "13", "69.2 %", "0.0 %", "69.2 %"]]
    assert table_rows(markdown, "Classes") == [
        ["cup", "1", "47", "1", "3", "4", "0.8 %"],
        ["dining table", "2", "67", "1", "1", "150", "30.0 %"],
        ["toaster", "3", "80", "0", "0", "0", "0.0 %"],
    ]


def test_markdown_where_nothing_is_hidden_or_wrong(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.data.subset = SubsetConfig(size=None, categories=["dining table"])
    file = json.loads(Path(config.data.annotations).read_bytes())
    write_coco(Path(config.data.annotations), **{**file, "images": IMAGES[:2]})
    prepare(config)
    markdown = (tmp_path / "prepared" / "report.md").read_text(encoding="utf-8")
    assert "## Warnings\n\nNone.\n" in markdown
    assert table_rows(markdown, "What overlaps hide") == []


def test_at_most_five_sizes(tmp_path: Path) -> None:
    widths = [1, 1, 1, 2, 3, 4, 4, 5, 6, 7]
    images = [{"id": i, "file_name": f"{i}.png", "width": w, "height": 7} for i, w in enumerate(widths)]
    file = coco.read(write_coco(tmp_path / "c.json", images=images, annotations=[]))
    labels = LabelMap.from_categories(file.categories)
    markdown = as_markdown(build_report(file, file.images, labels, MasksConfig(), Tally(), []))
    assert "1x7 (3), 4x7 (2), 2x7 (1), 3x7 (1), 5x7 (1) and 2 others" in markdown


@pytest.mark.parametrize("name", ["a|b", "two\nlines"])
def test_names_do_not_break_the_table(tmp_path: Path, name: str) -> None:
    report = report_of(tmp_path)
    report["classes"][0]["name"] = report["overlaps"]["classes"][0]["name"] = name
    markdown = as_markdown(report)
    markdown = markdown.replace(r"\|", "")  # as Markdown escapes it
    for heading, classes, columns in (("What overlaps hide", 1, 5), ("Classes", 3, 7)):
        assert [len(row) for row in table_rows(markdown, heading)] == classes * [columns]


# --- the files


def test_warnings_are_said_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path)
    annotations = [
        *ANNOTATIONS,
        {"id": 21, "image_id": 1, "category_id": 80, "segmentation": [[1, 1, 2, 2]]},
        {"id": 20, "image_id": 2, "category_id": 80, "segmentation": [[1, 1, 2, 2], *corners(0, 0, 1, 1)]},
        {"id": 22, "image_id": 1, "category_id": 80, "segmentation": corners(0, 0, 30, 5)},
        {"id": 23, "image_id": 3, "category_id": 80, "segmentation": [[1, 1, 2, 2, 3, 3]]},
    ]
    write_coco(tmp_path / "c.json", images=IMAGES, annotations=annotations, categories=CATEGORIES)
    with caplog.at_level(logging.WARNING):
        prepare(config)
    said = [
        record.getMessage().strip()
        for record in caplog.records
        if record.name == "cocoseg.preparation.prepare"
    ]
    expected = {
        f"2 annotations: {BROKEN} (20, 21)",
        f"1 annotation: {EMPTY} (21)",
        f"1 annotation: {OUTSIDE} (22)",
        f"1 annotation: {FLAT} (23)",
    }
    assert sorted(said) == sorted(f"warning: {text}" for text in expected)
    markdown = (tmp_path / "prepared" / "report.md").read_text(encoding="utf-8")
    assert {
        line[2:] for line in markdown.split("## Warnings")[1].splitlines() if line[:2] == "- "
    } == expected
