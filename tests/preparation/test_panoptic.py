"""COCO panoptic and stuff files, prepared: masks, choice of images and classes, what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.Image import Transpose

from cocoseg import create_segmentation_masks
from cocoseg.config import Config, DataConfig, PrepareConfig, SubsetConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.images.mask_files import MaskEncoding
from cocoseg.preparation import coco_file
from cocoseg.preparation.faults import CROWDS, HIDDEN, STUFF, UNSEEN
from cocoseg.preparation.panoptic import NO_PIXEL, UNLISTED
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import is_prepared
from conftest import write_coco
from server import Server, ok

VOID = 255
# Segments of the first image: ids of one, two and three bytes.
CAT, CROWD, SKY, GRASS = 7, 600, 100_000, 2**24 - 1
CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 17, "name": "cat", "supercategory": "animal", "isthing": 1},
    {"id": 18, "name": "dog", "supercategory": "animal", "isthing": 1},
    {"id": 187, "name": "sky-other-merged", "supercategory": "sky", "isthing": 0},
    {"id": 193, "name": "grass-merged", "supercategory": "ground", "isthing": 0},
]
SEGMENTS = [
    {"id": CAT, "category_id": 17, "iscrowd": 0, "bbox": [0, 0, 2, 2], "area": 4},
    {"id": CROWD, "category_id": 1, "iscrowd": 1, "bbox": [2, 0, 2, 2], "area": 4},
    {"id": SKY, "category_id": 187, "iscrowd": 0, "bbox": [4, 0, 1, 2], "area": 2},
    {"id": GRASS, "category_id": 193, "iscrowd": 0, "bbox": [0, 2, 5, 1], "area": 4},
]
IDS = np.array(
    [
        [CAT, CAT, CROWD, CROWD, SKY],
        [CAT, CAT, CROWD, CROWD, SKY],
        [GRASS, GRASS, 0, GRASS, GRASS],
    ]
)
OTHER_IDS = np.where(IDS == CAT, 9, 0)  # a dog, and void


def to_image(ids: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


def make_data(root: Path, **changes: Any) -> Path:
    """Two images; `changes` of the file."""
    (root / "images").mkdir(exist_ok=True)
    (root / "panoptic").mkdir(exist_ok=True)
    height, width = IDS.shape
    images = [{"id": n, "file_name": f"{n}.jpg", "height": height, "width": width} for n in (3, 4)]
    for image, ids in zip(images, (IDS, OTHER_IDS), strict=True):
        PIL.Image.new("RGB", (width, height)).save(root / "images" / image["file_name"])
        to_image(ids).save(root / f"panoptic/{image['id']}.png")
    dog = {"id": 9, "category_id": 18, "iscrowd": 0, "bbox": [0, 0, 2, 2], "area": 4}
    entries = [
        {"image_id": 4, "file_name": "4.png", "segments_info": [dog]},
        {"segments_info": SEGMENTS, "file_name": "3.png", "image_id": 3, "note": {"x": 1.50}},
    ]
    content = {"images": images, "annotations": entries, "categories": CATEGORIES}
    return write_coco(root / "panoptic.json", **{**content, **changes})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        data=DataConfig(
            images=str(tmp_path / "images"),
            annotations=str(make_data(tmp_path)),
            prepared_dir=str(tmp_path / "prepared"),
            subset=SubsetConfig(size=None),
        ),
        prepare=PrepareConfig(workers=1),
    )


def masks_of(folder: Path) -> dict[str, list]:
    """Image -> mask of category ids, of class indices where classes are groups; 255 where it is ignored."""
    encoding = MaskEncoding.load(folder)
    is_grouped = encoding.pixel == "class_index"
    ids = [index if is_grouped else c.category_id or 0 for index, c in enumerate(encoding.labels.classes)]
    ids += [VOID] * (256 - len(ids))
    return {
        path.name.partition("_")[0]: np.array(ids)[encoding.read(path)].tolist()
        for path in sorted((folder / "masks").iterdir())
    }


@pytest.mark.parametrize(
    ("subset", "crowd", "first", "second"),
    [
        ({}, "ignore", [17, VOID, 187, 193, VOID], [18, VOID]),
        ({}, "draw", [17, 1, 187, 193, VOID], [18, VOID]),
        ({}, "skip", [17, 0, 187, 193, VOID], [18, VOID]),
        ({"categories": "things"}, "ignore", [17, VOID, 0, 0, VOID], [18, VOID]),
        ({"categories": "stuff"}, "ignore", [0, 0, 187, 193, VOID], None),
        ({"categories": "stuff", "keep_empty": True}, "draw", [0, 0, 187, 193, VOID], [0, VOID]),
        ({"categories": ["cat", 187], "other": "ignore"}, "draw", [17, VOID, 187, VOID, VOID], None),
    ],
)
def test_masks(config: Config, subset: dict, crowd: str, first: list[int], second: list[int] | None):
    """`first` are the values of cat, crowd, sky, grass and void in one image, `second` of dog and void."""
    config.masks.crowd = crowd
    for key, value in subset.items():
        setattr(config.data.subset, key, value)
    prepare(config)
    cat, people, sky, grass, void = first
    expected = {
        "3": [[cat, cat, people, people, sky]] * 2 + [[grass, grass, void, grass, grass]],
    }
    if second is not None:
        dog, void = second
        expected["4"] = [[dog, dog, void, void, void]] * 2 + [[void] * 5]
    assert masks_of(Path(config.data.prepared_dir)) == expected


def test_groups_and_encodings(config: Config) -> None:
    """By supercategory: 1 person, 2 animal, 3 sky, 4 ground."""
    config.data.labels, config.masks.encoding = "supercategories", "uint16"
    prepare(config)
    found = masks_of(Path(config.data.prepared_dir))
    assert found["3"][0] == [2, 2, VOID, VOID, 3]
    assert found["3"][2] == [4, 4, VOID, 4, 4]
    assert found["4"][0] == [2, 2, VOID, VOID, VOID]


def test_as_from_instances(tmp_path: Path) -> None:
    """The same objects as an instances file and as a panoptic one, random but apart, give the same masks."""
    rng = np.random.default_rng(0)
    images, instances, entries = [], [], []
    (tmp_path / "panoptic").mkdir()
    for n in range(1, 4):
        height, width = rng.integers(20, 40, 2).tolist()
        PIL.Image.new("RGB", (width, height)).save(tmp_path / f"{n}.png")
        images.append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
        ids = np.zeros((height, width), np.int64)
        for _ in range(6):
            top, left, size = (rng.integers(low, high) for low, high in ((0, height), (0, width), (1, 15)))
            ids[top : top + size, left : left + size] = rng.integers(1, 2**24)
        segments = []
        for identity in np.unique(ids[ids > 0]).tolist():
            category = int(rng.choice([1, 17, 18]))
            segments.append({"id": identity, "category_id": category, "iscrowd": 0, "area": 1})
            flat = (ids == identity).T.ravel()
            runs = np.diff(np.flatnonzero(np.diff(flat)) + 1, prepend=0, append=flat.size).tolist()
            segmentation = {"size": [height, width], "counts": [0] * bool(flat[0]) + runs}
            instances.append(
                {
                    "id": len(instances),
                    "image_id": n,
                    "category_id": category,
                    "segmentation": segmentation,
                }
            )
        # Void would be ignored, so it is a segment of a category that is not chosen.
        ids[ids == 0] = 5
        segments.append({"id": 5, "category_id": 193, "iscrowd": 0, "area": 1})
        to_image(ids).save(tmp_path / f"panoptic/{n}.png")
        entries.append({"image_id": n, "file_name": f"{n}.png", "segments_info": segments})
    found = []
    for name, annotations in (("instances", instances), ("panoptic", entries)):
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        file = write_coco(tmp_path / f"{name}.json", **content)
        folder = tmp_path / f"{name}-masks"
        records = create_segmentation_masks(tmp_path, file, folder, categories="things", workers=1)
        found.append([(record, (folder / record.mask).read_bytes()) for record in records])
    assert all(record.pixels[0] and record.visible for record, _ in found[0])
    assert found[0] == found[1]


def test_subset_file(config: Config) -> None:
    """The entries of the chosen images as they were, and a file that is read as panoptic again."""
    config.data.subset.categories = ["cat"]
    prepare(config)
    written = Path(config.data.prepared_dir) / "subset_train_annotations.json"
    text, (_, entry) = (
        written.read_text(),
        json.loads(Path(config.data.annotations).read_text())["annotations"],
    )
    assert json.dumps(entry) in text
    assert json.loads(text)["categories"] == CATEGORIES
    again = coco_file.read(written)
    assert [image.id for image in again.images] == [3]
    assert [annotation.id for annotation in again.annotations] == [CAT, CROWD, SKY, GRASS]
    assert again.pngs == {3: written.with_suffix("") / "3.png"}


def test_pngs_one_level_up(config: Config, tmp_path: Path) -> None:
    """Detectron2 has annotations/panoptic.json and panoptic/."""
    (tmp_path / "annotations").mkdir()
    file = Path(config.data.annotations).rename(tmp_path / "annotations/panoptic.json")
    assert coco_file.read(file).pngs == {n: tmp_path / f"panoptic/{n}.png" for n in (3, 4)}


def test_a_set_is_prepared_anew_when_a_png_changes(config: Config, tmp_path: Path) -> None:
    prepare(config)
    assert is_prepared(config)
    to_image(np.where(IDS == CAT, SKY, IDS)).save(tmp_path / "panoptic/3.png")
    assert not is_prepared(config)
    prepare(config)
    assert masks_of(tmp_path / "prepared")["3"][0][0] == 187


def test_choice_of_images(config: Config) -> None:
    """The choice is that of an instances file with the same ids and categories; crowds add no area."""
    file = Path(config.data.annotations)
    masks = Path(config.data.prepared_dir) / "masks"
    config.data.subset.size = 1
    for seed in range(4):
        config.data.subset.seed = seed
        prepare(config)
        chosen = [path.name[0] for path in masks.iterdir()]
        content = json.loads(file.read_text())
        instances = [
            {"image_id": entry["image_id"], "category_id": segment["category_id"]}
            for entry in content["annotations"]
            for segment in entry["segments_info"]
        ]
        other = DataConfig(
            images=config.data.images,
            annotations=str(write_coco(file.with_name("i.json"), **{**content, "annotations": instances})),
            prepared_dir=str(file.with_name(f"other{seed}")),
            subset=config.data.subset,
        )
        prepare(Config(data=other, prepare=config.prepare), for_training=False)
        assert [path.name[0] for path in file.with_name(f"other{seed}").glob("masks/*")] == chosen
    config.data.subset = SubsetConfig(size=None, min_pixels=5)
    prepare(config)
    assert [path.name[0] for path in masks.iterdir()] == ["3"]
    config.data.subset.categories = "things"
    with pytest.raises(CocosegError, match=r"of at least 5 pixels \(data\.subset\.min_pixels\)"):
        prepare(config)


def test_a_validation_file(config: Config, tmp_path: Path) -> None:
    val = tmp_path / "val"
    val.mkdir()
    make_data(val)
    config.data.val_images, config.data.val_annotations = str(val / "images"), str(val / "panoptic.json")
    prepare(config)
    folder = tmp_path / "prepared/val"
    assert set(masks_of(folder)) == {"3", "4"}
    dataset = SegmentationDataset(folder / "subset_val_annotations.json", val / "images", (3, 5))
    assert dataset[0][1].tolist()[0] == [2, 2, VOID, VOID, 4]


def test_an_image_on_its_side(config: Config, tmp_path: Path) -> None:
    """Annotations and PNG belong to the image as its EXIF rotation turns it; the mask is stored as it is."""
    height, width = IDS.shape
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (height, width)).save(tmp_path / "images/3.jpg", exif=exif)
    prepare(config)
    folder = Path(config.data.prepared_dir)
    (path,) = (folder / "masks").glob("3_*")
    stored = PIL.Image.open(path)
    assert stored.size == (height, width)
    upright = np.asarray(stored.transpose(Transpose.ROTATE_270))
    assert upright[0].tolist() == [17, 17, VOID, VOID, 187]


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_smaller_png_files(config: Config, tmp_path: Path, mode: str) -> None:
    """Programs that make PNG files smaller write the same colors in other modes."""
    gray = np.where(IDS > 0, np.unique(IDS, return_inverse=True)[1].reshape(IDS.shape), 0)
    ids = gray * 0x010101 if mode == "L" else IDS
    segments = [{**s, "id": int(ids[s["id"] == IDS][0])} for s in SEGMENTS]
    entries = [{"image_id": 3, "file_name": "3.png", "segments_info": segments}]
    make_data(tmp_path, annotations=entries)
    image = to_image(ids)
    if mode == "RGBA":
        image.putalpha(PIL.Image.new("L", image.size, 0))
    image.convert(mode, palette=PIL.Image.Palette.ADAPTIVE).save(tmp_path / "panoptic/3.png")
    assert PIL.Image.open(tmp_path / "panoptic/3.png").mode == mode
    prepare(config)
    assert masks_of(tmp_path / "prepared")["3"] == [
        *[[17, 17, VOID, VOID, 187]] * 2,
        [193, 193, VOID, 193, 193],
    ]


# --- reports


def test_report_and_warnings(config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Segments without a pixel, and ids without a segment; ids that images share are as they should be."""
    ghost = {"id": 8, "category_id": 18, "iscrowd": 0, "area": 3}
    entries = [
        {"image_id": 3, "file_name": "3.png", "segments_info": [*SEGMENTS, ghost]},
        {"image_id": 4, "file_name": "4.png", "segments_info": [{**ghost, "id": 9}]},
    ]
    make_data(tmp_path, annotations=entries)
    to_image(np.where(OTHER_IDS == 0, 77, OTHER_IDS)).save(tmp_path / "panoptic/4.png")
    prepare(config)
    warnings = [message for message in caplog.messages if message.startswith("  warning")]
    assert warnings == [
        f"  warning: 1 annotation: {UNLISTED} (4.png:77)",
        f"  warning: 1 annotation: {NO_PIXEL} (3.png:8)",
        f"  warning: 1 class: {UNSEEN}: {CROWDS} (person)",
    ]
    assert masks_of(tmp_path / "prepared")["4"][2] == [VOID] * 5
    report = (tmp_path / "prepared/report.md").read_text()
    assert "- 6 annotations, 16.7 % of them crowds" in report
    assert "Nothing: in a panoptic file a pixel belongs to one segment.\n\n## Classes" in report
    assert "| cat | 2 | 17 | 1 | 1 | 4 | 13.3 % |" in report
    caplog.clear()
    make_data(tmp_path, annotations=entries[:1])
    prepare(config)
    assert f"  warning: 1 class: {UNSEEN}: {HIDDEN} (dog)" in caplog.messages


# --- what is wrong


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 9}, "annotations: image 9 is not listed"),
        ({"image_id": 4}, "annotations: image 4 has two entries"),
        ({"file_name": "../3.png"}, r"image 3 has the file_name '\.\./3\.png'; .*folder of the PNGs"),
        ({"file_name": "a\u202egnp.png"}, "image 3 has the file_name .*changes how text is shown"),
        ({"segments_info": [*SEGMENTS, SEGMENTS[0]]}, "image 3 has an id twice in its segments_info"),
        (
            {"segments_info": [{**SEGMENTS[0], "id": 0}]},
            r"not a COCO panoptic file \(.* >= 1 ",
        ),
        ({"segments_info": [{**SEGMENTS[0], "id": 2**24}]}, r"not a COCO panoptic file \(.* <= 16777215 "),
        (
            {"segments_info": [{**SEGMENTS[0], "category_id": 2}]},
            "annotation 7 is of category 2, which",
        ),
        ({"segments_info": [{"id": 1}]}, r"not a COCO panoptic file \(.*`category_id`.*segments_info"),
        ({"file_name": None}, r"not a COCO panoptic file \(.*file_name"),
    ],
)
def test_wrong_entries(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    file = make_data(tmp_path)
    content = json.loads(file.read_text())
    content["annotations"][1] |= entry
    with pytest.raises(CocosegError, match=rf"panoptic\.json: .*{message}"):
        coco_file.read(write_coco(file, **content))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            None,
            r"1 of 2 PNGs of the chosen images are missing, .*panoptic/3\.png; those of a panoptic file",
        ),
        (b"", r"1 of 2 PNGs .*3\.png \(an empty file\)"),
        (b"no PNG", r"3\.png: not a readable image"),
        (to_image(IDS.T), r"3\.png: 3x5 pixels \(width x height\), its image 5x3"),
        (to_image(np.full(IDS.shape, 5)), r"3\.png: none of its ids is in the segments_info"),
        (PIL.Image.fromarray(IDS.astype(np.uint16)), r"3\.png: not an RGB PNG, but PNG of mode I;16"),
    ],
)
def test_wrong_png(config: Config, tmp_path: Path, broken: Any, message: str) -> None:
    png = tmp_path / "panoptic/3.png"
    png.unlink()
    if isinstance(broken, bytes):
        png.write_bytes(broken)
    elif broken is not None:
        broken.save(png)
    with pytest.raises(CocosegError, match=message):
        prepare(config)
    assert not list((tmp_path / "prepared").rglob("*.png"))


# --- stuff files, and what is fetched


def test_stuff(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning about a stuff file says how to get its classes of stuff."""
    PIL.Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    categories = [{"id": 92, "name": "banner"}, {"id": 100, "name": "cabinet"}, {"id": 183, "name": "other"}]
    annotations = [
        {"id": n, "image_id": 1, "category_id": category, "segmentation": [[x, 0, x + 3, 0, x + 3, 5, x, 5]]}
        for n, (category, x) in enumerate([(92, 0), (183, 4)])
    ]
    file = write_coco(tmp_path / "stuff.json", annotations=annotations, categories=categories)
    data = DataConfig(
        images=str(tmp_path),
        annotations=str(file),
        prepared_dir=str(tmp_path / "out"),
        subset=SubsetConfig(size=None),
    )
    config = Config(data=data, prepare=PrepareConfig(workers=1))
    prepare(config)
    assert f"  warning: {STUFF}" in caplog.messages
    assert masks_of(tmp_path / "out")["a"][0] == [92] * 4 + [183] * 4
    caplog.clear()
    data.subset.categories = "stuff"
    prepare(config)
    assert f"  warning: {STUFF}" not in caplog.messages
    assert masks_of(tmp_path / "out")["a"][0] == [92] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("panoptic_val2017", r"it is in \S+/panoptic_annotations_trainval2017\.zip, .* PNGs in a zip"),
        ("stuff_val2017", r"data\.annotations_url=\S+/stuff_annotations_trainval2017\.zip fetches it"),
    ],
)
def test_archives_that_hold_others(config: Config, tmp_path: Path, name: str, advice: str) -> None:
    """COCO's archive of instances, which would be fetched, does not hold them."""
    config.data.annotations, config.data.download = str(tmp_path / f"{name}.json"), True
    with pytest.raises(CocosegError, match=rf"{name}\.json: no such file; {advice}"):
        prepare(config, may_download=True)


def test_images_are_fetched(config: Config, server: Server, tmp_path: Path) -> None:
    content = json.loads(Path(config.data.annotations).read_text())
    for image in content["images"]:
        file = tmp_path / "images" / image["file_name"]
        image["coco_url"] = server.set(f"/{image['file_name']}", ok(file.read_bytes()))
        file.unlink()
    write_coco(Path(config.data.annotations), **content)
    config.data.download = True
    prepare(config, may_download=True)
    assert sorted(server.requests) == ["/3.jpg", "/4.jpg"]
    assert set(masks_of(tmp_path / "prepared")) == {"3", "4"}
