import logging
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig, SubsetConfig
from cocoseg.preparation.faults import (
    NO_ANNOTATION,
    NO_ID,
    NOT_ANNOTATED,
    NOT_CHOSEN,
    SAME_NAME,
    SHARED_ID,
    STUFF,
    UNSEEN,
)
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.segmentations import LEFT_OUT, OUTSIDE
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


def report_of(config: Config) -> str:
    prepare(config)
    return (Path(config.data.prepared_dir) / "report.md").read_text(encoding="utf-8")


def table_rows(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its own head."""
    section = markdown.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def warnings_in(markdown: str) -> list[str]:
    section = markdown.split("## Warnings\n", 1)[1].split("\n## ")[0]
    return [line[2:] for line in section.splitlines() if line.startswith("- ")]


def test_counts(tmp_path: Path) -> None:
    markdown = report_of(make_config(tmp_path))
    for line in (
        "- 3 of 3 images, 1 without a pixel of any class",
        "- sizes: 2, most often 20x10 (width x height, 2 images)",
        "- 4 annotations, 25.0 % of them crowds",
        "- 0.0005 million pixels: 65.2 % background, 4.0 % ignored",
        "- rules: overlap `max`, rasterizer `pillow`, crowd `ignore`",
    ):
        assert line in markdown.splitlines()
    assert warnings_in(markdown) == [
        f"1 image: {NO_ANNOTATION} (3)",
        f"1 class: {UNSEEN}: {NOT_ANNOTATED} (toaster)",
    ]
    assert table_rows(markdown, "Classes") == [
        ["cup", "1", "47", "1", "3", "4", "0.8 %"],  # on the first image it is hidden
        ["dining table", "2", "67", "1", "1", "150", "30.0 %"],
        ["toaster", "3", "80", "0", "0", "0", "0.0 %"],
    ]


CUP = ["cup", "13", "69.2 %", "0.0 %", "69.2 %"]  # 9 of 13
TABLE = ["dining table", "150", "0.0 %", "6.0 %", "6.0 %"]  # 9 of 150


@pytest.mark.parametrize(
    ("overlap", "rows"), [("max", [CUP]), ("smallest", [TABLE]), ("ignore", [CUP, TABLE])]
)
def test_pixels_that_each_rule_hides(tmp_path: Path, overlap: str, rows: list[list[str]]) -> None:
    """The table lists the classes that lose pixels by the chosen rule, most pixels first."""
    markdown = report_of(make_config(tmp_path, overlap=overlap))
    assert table_rows(markdown, "What overlaps hide") == rows
    assert "Over all classes: `max` 5.5 %; `smallest` 5.5 %; `ignore` 11.0 %." in markdown  # 9 of 163


def test_overlaps_come_from_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocoseg.preparation.survey.SAMPLE", 2)
    assert "from 2 of the 3 images, chosen by seed" in report_of(make_config(tmp_path))


def test_merged_classes_hide_nothing_of_each_other(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.data.labels = {"things": ["cup", "dining table"]}
    markdown = report_of(config)
    assert table_rows(markdown, "Classes") == [["things", "1", "47 67", "2", "4", "154", "30.8 %"]]
    assert table_rows(markdown, "What overlaps hide") == []


@pytest.mark.parametrize("name", ["a|b", "two\nlines"])
def test_names_do_not_break_tables_and_lines(tmp_path: Path, name: str) -> None:
    config = make_config(tmp_path)
    categories = [{"id": 47, "name": name}, CATEGORIES[1], {"id": 80, "name": f"no {name}"}]
    write_coco(tmp_path / "c.json", images=IMAGES, annotations=ANNOTATIONS, categories=categories)
    markdown = report_of(config).replace(r"\|", "")  # as Markdown escapes it
    for heading, classes, columns in (("What overlaps hide", 1, 5), ("Classes", 3, 7)):
        assert [len(row) for row in table_rows(markdown, heading)] == classes * [columns]
    assert warnings_in(markdown)[1].startswith(f"1 class: {UNSEEN}: {NOT_ANNOTATED} (no ")
    assert warnings_in(markdown)[1].endswith(")")


def test_warnings_are_shown_and_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path)
    annotations = [
        *ANNOTATIONS,
        *(
            {"id": 30 - i, "image_id": 1 + i % 2, "category_id": 80, "segmentation": [[1, 1, 2, 2]]}
            for i in range(6)
        ),
        {"id": 31, "image_id": 1, "category_id": 80, "segmentation": corners(0, 0, 30, 5)},
        {"id": 32, "image_id": 3, "category_id": 80, "segmentation": corners(0, 0, 3, 5)},
    ]
    write_coco(tmp_path / "c.json", images=IMAGES, annotations=annotations, categories=CATEGORIES)
    with caplog.at_level(logging.WARNING, "cocoseg.preparation.prepare"):
        markdown = report_of(config)
    expected = [f"1 annotation: {OUTSIDE} (31)", f"6 annotations: {LEFT_OUT} (25, 26, 27, 28, 29, …)"]
    assert warnings_in(markdown) == expected
    assert [record.getMessage() for record in caplog.records] == [f"  warning: {text}" for text in expected]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, f"1 image: {NOT_CHOSEN} (3)"),
        ({"categories": ["dining table"]}, f"2 images: {NOT_CHOSEN} (2, 3)"),
        ({"categories": ["dining table"], "keep_empty": True}, f"1 image: {NO_ANNOTATION} (3)"),
    ],
)
def test_images_that_show_nothing(tmp_path: Path, choice: dict[str, Any], expected: str) -> None:
    config = make_config(tmp_path)
    config.data.subset = SubsetConfig(**{"size": None, "keep_empty": False, **choice})
    assert expected in warnings_in(report_of(config))


def test_annotation_ids_that_name_none_or_several(tmp_path: Path) -> None:
    """Masks do not depend on ids. A message names such an annotation by its place in the file."""
    config = make_config(tmp_path)
    outside = {"image_id": 1, "category_id": 80, "segmentation": corners(0, 0, 30, 5)}
    repeated = [{**ANNOTATIONS[0], "id": identity} for identity in (11, 13, 13, "x")]
    write_coco(
        tmp_path / "c.json",
        images=IMAGES[:2],
        annotations=[*ANNOTATIONS, *repeated, outside, {**outside, "id": None}],
        categories=CATEGORIES,
    )
    assert warnings_in(report_of(config)) == [
        f"2 annotations: {OUTSIDE} (no. 9, no. 10)",
        f"2 annotations: {NO_ID} (no. 9, no. 10)",
        f"2 annotation ids: {SHARED_ID} (11, 13)",
    ]


def test_classes_of_one_name(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    names = ["Wine_glass", "cup", "wine  glass", "cup", "table", "wine-glass"]
    categories = [{"id": 47 + n, "name": name} for n, name in enumerate(names)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 47 + n, "segmentation": corners(2 * n, 0, 2 * n + 1, 3)}
        for n in range(6)
    ]
    write_coco(tmp_path / "c.json", images=IMAGES[:1], annotations=annotations, categories=categories)
    ids = "Wine_glass (id 47), cup (id 48), cup (id 50), wine glass (id 49), wine-glass (id 52)"
    assert f"5 classes: {SAME_NAME} ({ids})" in warnings_in(report_of(config))
    config.data.subset.categories = [47, 48, 51]
    assert SAME_NAME not in report_of(config)
    config.data.subset.categories = None
    config.data.labels = {"glass": [47, 49, 52], "cup": [48, 50], "table": [51]}
    assert SAME_NAME not in report_of(config)


@pytest.mark.parametrize(("category", "is_named"), [(47, True), (67, False)])  # only cups are annotated
def test_a_category_called_background(tmp_path: Path, category: int, is_named: bool) -> None:
    config = make_config(tmp_path)
    categories = [
        {**CATEGORIES[0], "id": i, "name": "_Background_" if i == category else "x"} for i in (47, 67)
    ]
    write_coco(tmp_path / "c.json", images=IMAGES[:1], annotations=ANNOTATIONS[1:2], categories=categories)
    expected = f"2 classes: {SAME_NAME} (_Background_ (id 47), background)"
    assert (expected in warnings_in(report_of(config))) is is_named


@pytest.mark.parametrize(("first", "is_stuff"), [(92, True), (1, False)])
def test_stuff_is_named(tmp_path: Path, first: int, is_stuff: bool) -> None:
    config = make_config(tmp_path)
    categories = [{"id": first, "name": "banner"}, {"id": 92, "name": "x"}, {"id": 183, "name": "other"}]
    annotations = [{**ANNOTATIONS[0], "category_id": 183}]
    write_coco(
        tmp_path / "c.json",
        images=IMAGES[:1],
        annotations=annotations,
        categories=categories[is_stuff:],
    )
    assert (STUFF in warnings_in(report_of(config))) is is_stuff


def test_nothing_to_warn_of(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.data.subset = SubsetConfig(size=None, categories=["dining table"])
    write_coco(tmp_path / "c.json", images=IMAGES[:1], annotations=ANNOTATIONS[:2], categories=CATEGORIES)
    assert "## Warnings\n\nNone.\n" in report_of(config)


def test_names_are_neither_links_nor_html(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    names = ["<img src=x onerror=alert(1)>", "[a](javascript:b)", "c|d", "`e`"]
    categories = [{"id": 47 + n, "name": name} for n, name in enumerate(names)]
    annotations = [{**ANNOTATIONS[0], "id": n, "category_id": 47 + n} for n in range(4)]
    write_coco(tmp_path / "c.json", images=IMAGES[:1], annotations=annotations, categories=categories)
    markdown = report_of(config)
    assert "<img" not in markdown
    assert "&lt;img src=x onerror=alert(1)&gt;" in markdown
    for name in (r"\[a](javascript:b)", r"| c\|d |", r"| \`e\` |"):
        assert name in markdown
