"""`data.extra`: further training images, their classes and their weight."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from cocoseg.config import AugmentConfig, ExtraConfig, SubsetConfig
from cocoseg.data.class_balance import class_weights
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.data.training_images import FILE
from cocoseg.errors import CocosegError
from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import all_sets, is_prepared, prepared_dir
from conftest import run_here, write_coco
from tiny import TINY_RUN, shapes_config

ANNOTATIONS = "annotations/instances.json"
Make = Callable[..., SegmentationDataModule]


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another data set of 8 images of shapes, whose files have the names of the first 8 of `shapes_root`."""
    root = tmp_path_factory.mktemp("more")
    draw_shapes(root, images=8, seed=5)
    return root


def entry(root: Path, weight: float = 0.5, annotations: Path | None = None) -> ExtraConfig:
    return ExtraConfig(
        images=str(root / "images"), annotations=str(annotations or root / ANNOTATIONS), weight=weight
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared") / "shapes"


@pytest.fixture
def make(shapes_root: Path, prepared: Path) -> Make:
    """Function that makes and sets up a data module of the 24 images of `shapes_root`; 6 are held out."""

    def make(**data: Any) -> SegmentationDataModule:
        module = SegmentationDataModule(shapes_config(shapes_root, prepared, **data))
        module.prepare_data()
        module.setup("fit")
        return module

    return make


def test_all_are_trained_on_and_none_is_held_out(make: Make, more: Path, shapes_root: Path, tmp_path: Path):
    plain, data = make(), make(extra=[entry(more)])
    names = sorted(path.name for path in (more / "images").iterdir())
    assert data.train_set.names() == plain.train_set.names() + names
    assert data.val_set.names() == plain.val_set.names()
    assert data.val_set.dataset.image_dir == shapes_root / "images"
    data.write_training_images(tmp_path, ())
    written = {tuple(key) for key in json.loads((tmp_path / FILE).read_text())["images"]}
    assert {(name, (more / "images" / name).stat().st_size) for name in names} <= written
    assert len(written) == 18 + 8


@pytest.mark.parametrize("cache", [True, False])
def test_an_epoch_has_each_image_with_its_weight(make: Make, more: Path, cache: bool):
    data = make(extra=[entry(more)], cache=cache, batch_size=13)
    main, extra = data.train_set.parts
    weight_of = {image.numpy().tobytes(): 1.0 for image in main.__getitems__(range(18))[0]}
    weight_of |= {image.numpy().tobytes(): 0.5 for image in extra.__getitems__(range(8))[0]}
    seen = []
    for image, mask, weight in data.train_dataloader():
        assert image.shape == (13, 3, 32, 32)
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert (image.dtype, mask.dtype, weight.dtype) == (torch.uint8, torch.uint8, torch.float32)
        assert weight.tolist() == [weight_of[one.numpy().tobytes()] for one in image]
        seen += [one.numpy().tobytes() for one in image]
    assert set(seen) == weight_of.keys()


def test_a_batch_has_its_images_in_the_order_asked_for(make: Make, more: Path):
    split = make(extra=[entry(more, 2.0)]).train_set
    image, mask, weight = split.__getitems__([25, 0, 18, 3])
    assert weight.tolist() == [2, 1, 2, 1]
    for row, (part, index) in enumerate([(1, 7), (0, 0), (1, 0), (0, 3)]):
        one = split.parts[part].__getitems__([index])
        assert torch.equal(image[row], one[0][0])
        assert torch.equal(mask[row], one[1][0])
        assert torch.equal(split[[25, 0, 18, 3][row]][1], one[1][0].long())


def test_weights_of_one_are_left_out_of_batches(make: Make, more: Path):
    weighted, plain = make(extra=[entry(more, 2.0)]), make(extra=[entry(more, 1.0)])
    for (image, mask, _), two in zip(weighted.train_dataloader(), plain.train_dataloader(), strict=True):
        assert len(two) == 2
        assert torch.equal(image, two[0])
        assert torch.equal(mask, two[1])


def test_processes_share_all_images(make: Make, more: Path):
    data = make(extra=[entry(more)], batch_size=13)
    seen = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_step=0, global_rank=rank, world_size=2)
        [(image, _, weight)] = data.train_dataloader()
        seen += [(one.numpy().tobytes(), factor) for one, factor in zip(image, weight.tolist(), strict=True)]
    assert len(set(seen)) == 26
    assert sum(factor for _, factor in seen) == 18 + 8 * 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_pass_transforms_and_augmentation(shapes_root, prepared, more, workers: int):
    config = shapes_config(
        shapes_root, prepared, extra=[entry(more)], batch_size=13, num_workers=workers, cache=False
    )
    plain = SegmentationDataModule(config)
    invert = {"_target_": "torchvision.transforms.v2.RandomInvert", "p": 1.0}
    config = shapes_config(
        shapes_root, prepared, extra=[entry(more)], batch_size=13, num_workers=workers, cache=False
    )
    config.augment = AugmentConfig(extra=[invert])
    inverted = SegmentationDataModule(config)
    batches: list[tuple[Tensor, ...]] = []
    for data in (plain, inverted):
        data.prepare_data()
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[1][0], 255 - batches[0][0])
    assert torch.equal(batches[1][2], batches[0][2])
    inverted.trainer = SimpleNamespace(training=True)
    moved = inverted.transfer_batch_to_device(batches[1], torch.device("meta"), 0)
    assert [part.device.type for part in moved] == ["meta", "meta", "cpu"]
    image, mask, weight = inverted.on_after_batch_transfer(batches[1], 0)
    assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
    assert torch.equal(weight, batches[0][2])


def test_class_counts_are_weighted_as_their_images(make: Make, more: Path):
    split = make(extra=[entry(more, 0.25)]).train_set
    ours, theirs = (part.class_counts().sum(0) for part in split.parts)
    assert split.class_counts().shape == (26, 7)
    shares = (ours + 0.25 * theirs) / (ours + 0.25 * theirs).sum()
    assert class_weights(split.class_counts()) == pytest.approx(1 / np.log(1.02 + shares))


# Classes


def with_categories(root: Path, path: Path, ids: dict[int, tuple[int, str]]) -> Path:
    """Write the annotations of `root` with other categories: id -> id and name. Others are left out."""
    content = json.loads((root / ANNOTATIONS).read_text())
    content["annotations"] = [
        {**annotation, "category_id": ids[annotation["category_id"]][0]}
        for annotation in content["annotations"]
        if annotation["category_id"] in ids
    ]
    content["categories"] = [{"id": number, "name": name} for number, name in dict(ids.values()).items()]
    path.write_text(json.dumps(content))
    return path


GROUPS = {"round": ["circle", "ring"], "square": ["square"]}


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, {3: (3, "square"), 8: (8, "circle"), 21: (21, "ring")}),  # three of the classes, same ids
        ({"labels": GROUPS}, {8: (1, "round"), 21: (1, "round"), 3: (2, "square")}),
        ({"subset": SubsetConfig(size=None, categories=["square", 8])}, {3: (3, "square"), 8: (8, "circle")}),
    ],
)
def test_categories_have_the_ids_or_the_names_of_the_training_file(
    make: Make, more: Path, tmp_path: Path, settings: dict[str, Any], ids: dict[int, tuple[int, str]]
):
    """Annotations with the categories of the training file, and those that predict.py writes."""
    own = with_categories(more, tmp_path / "own.json", {number: (number, "") for number in ids})
    content = json.loads(own.read_text())
    content["categories"] = json.loads((more / ANNOTATIONS).read_text())["categories"]
    own.write_text(json.dumps(content))
    predicted = with_categories(more, tmp_path / "predicted.json", ids)
    data = make(
        extra=[entry(more, annotations=own), entry(more, annotations=predicted)],
        prepared_dir=str(tmp_path / "prepared"),
        **settings,
    )
    _, first, second = data.train_set.parts
    assert len(first) == len(second) == 8  # images without annotations count, too
    masks = [part.__getitems__(range(8))[1] for part in (first, second)]
    assert torch.equal(*masks)
    assert len({*masks[0].unique().tolist()} - {0, 255}) == len(set(ids.values()))
    assert data.labels.difference(second.dataset.labels) is None


def write_masks(root: Path, images: int, classes: int) -> Path:
    """Write images named after `root`, with masks of values 0 to `classes`."""
    for number in range(images):
        for folder, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            pixels = np.full(shape, (number + 1) % (classes + 1), np.uint8)
            PIL.Image.fromarray(pixels).save(root / folder / f"{root.name}{number}.png")
    return root


def test_mask_images_and_annotations_go_together(tmp_path: Path):
    main, more, other = (
        write_masks(tmp_path / name, 8, classes) for name, classes in (("a", 2), ("b", 1), ("c", 2))
    )
    entry_of = {"id": 5, "file_name": "c0.png", "width": 8, "height": 8}
    square = {"id": 1, "image_id": 5, "category_id": 9, "segmentation": [[0, 0, 7, 0, 7, 7, 0, 7]]}
    annotations = write_coco(
        tmp_path / "c.json", images=[entry_of], annotations=[square], categories=[{"id": 9, "name": "2"}]
    )
    extra = [
        ExtraConfig(images=str(more / "images"), masks=str(more / "masks"), weight=0.5),
        entry(other, 2.0, annotations),
    ]
    places = {"images": str(main / "images"), "annotations": None, "masks": str(main / "masks")}
    data = SegmentationDataModule(shapes_config(main, tmp_path / "prepared", extra=extra, **places))
    data.prepare_data()
    data.setup("fit")
    assert data.labels.names == ["background", "1", "2"]
    begin = len(data.train_set.parts[0])
    _, mask, weight = data.train_set.__getitems__([begin, begin + 1, begin + 8])
    assert [one.unique().tolist() for one in mask] == [[1], [0], [2]]
    assert weight.tolist() == [0.5, 0.5, 2]


def test_other_categories_are_a_one_line_error(make: Make, more: Path, tmp_path: Path):
    path = with_categories(more, tmp_path / "b.json", {3: (3, "square"), 8: (8, "disc")})
    with pytest.raises(CocosegError, match=r"^data\.extra: \S+b\.json: no class is called 'disc'; the clas"):
        make(extra=[entry(more, annotations=path)])


def test_folders_depend_on_places_and_classes(shapes_root: Path, more: Path, tmp_path: Path):
    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    plain, config = (shapes_config(root, tmp_path / "p", extra=extra) for extra in ([], [entry(more)]))
    prepare(plain)
    assert not is_prepared(config)
    prepare(config)
    assert is_prepared(config)
    assert is_prepared(plain)
    [_, extra] = all_sets(config)
    before = (extra.folder / "labels.json").read_text()

    content = json.loads((root / ANNOTATIONS).read_text())
    content["categories"].append({"id": 60, "name": "cross"})
    (root / ANNOTATIONS).write_text(json.dumps(content))
    prepare(plain)
    assert not is_prepared(config)
    prepare(config)
    assert is_prepared(config)
    assert "cross" in (extra.folder / "labels.json").read_text()
    assert "cross" not in before

    plain.data.prepared_dir = config.data.prepared_dir = None
    assert prepared_dir(plain) == prepared_dir(config)
    others = shapes_config(root, tmp_path / "p", extra=[entry(more, annotations=tmp_path / "b.json")])
    assert all_sets(others)[1].folder.name != extra.folder.name


# Validation images


def same_files(root: Path, folder: Path) -> ExtraConfig:
    return entry(root)


def copies(root: Path, folder: Path) -> ExtraConfig:
    shutil.copytree(root, folder / "copy")
    return entry(folder / "copy")


def copies_in_a_subfolder(root: Path, folder: Path) -> ExtraConfig:
    shutil.copytree(root / "images", folder / "images" / "all")
    content = json.loads((root / ANNOTATIONS).read_text())
    for image in content["images"]:
        image["file_name"] = f"all/{image['file_name']}"
    (folder / "b.json").write_text(json.dumps(content))
    return entry(folder, annotations=folder / "b.json")


def links(root: Path, folder: Path) -> ExtraConfig:
    """The same files under other names."""
    (folder / "images").mkdir()
    content = json.loads((root / ANNOTATIONS).read_text())
    for image in content["images"]:
        (folder / "images" / f"other_{image['file_name']}").symlink_to(root / "images" / image["file_name"])
        image["file_name"] = f"other_{image['file_name']}"
    (folder / "b.json").write_text(json.dumps(content))
    return entry(folder, annotations=folder / "b.json")


@pytest.mark.parametrize("place", [same_files, copies, copies_in_a_subfolder, links])
def test_images_that_are_held_out_are_refused(make: Make, shapes_root: Path, tmp_path: Path, place):
    extra = place(shapes_root, tmp_path)
    with pytest.raises(CocosegError) as caught:
        make(extra=[extra])
    assert str(caught.value).startswith(
        f"data.extra: 6 of the 24 images of {extra.annotations} are validation images of this run, "
    )


def test_images_of_a_validation_file_are_refused(make: Make, more: Path, tmp_path: Path):
    val = {"val_images": str(more / "images"), "val_annotations": str(more / ANNOTATIONS)}
    with pytest.raises(CocosegError, match=r"^data\.extra: 8 of the 8 images of .* are validation images"):
        make(extra=[entry(more)], **val, prepared_dir=str(tmp_path / "prepared"))


def test_a_run_is_scored_without_its_extra_images(shapes_root: Path, more: Path, tmp_path: Path):
    shutil.copytree(more, tmp_path / "more")
    typed = [f"{{images: more/images, annotations: more/{ANNOTATIONS}, weight: 0.5}}"]
    run = run_here(
        "train",
        "data=custom",
        f"data.images={shapes_root / 'images'}",
        f"data.annotations={shapes_root / ANNOTATIONS}",
        f"data.extra=[{','.join(typed)}]",
        *TINY_RUN,
        "trainer.max_steps=2",
        "loss.class_weights=enet",
        "run_dir=run",
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert "training on 30 images (8 of them of data.extra), validating on 2" in run.stdout
    shutil.rmtree(tmp_path / "more")
    scored = run_here("evaluate", "checkpoint=run/segmentation_model.pth", "run_dir=scores", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scores/metrics.json").read_text())["images"] == 2
