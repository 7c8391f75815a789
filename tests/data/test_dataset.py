import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cocoseg.config import Config, DataConfig, MasksConfig, PrepareConfig
from cocoseg.data.dataset import SegmentationDataset
from cocoseg.data.sampling import open_splits
from cocoseg.errors import CocosegError
from cocoseg.preparation.prepare import prepare
from cocoseg.preparation.prepared_folder import prepared_sets
from conftest import write_coco

WIDTH, HEIGHT = 41, 25  # odd, so that no center of a new pixel lies midway between two old ones
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # values of ImageNet


def gradient(width: int = WIDTH, height: int = HEIGHT) -> PIL.Image.Image:
    rows, columns = np.indices((height, width))
    pixels = [255 * columns / width, 255 * rows / height, 128 + 100 * np.sin(columns / 3)]
    return PIL.Image.fromarray(np.stack(pixels, axis=-1).astype(np.uint8))


def make(
    root: Path, image: PIL.Image.Image, name: str = "a.png", *, encoding: str = "palette", **options: Any
) -> Config:
    """Prepare a data set of this image, with a cat (2) under a dog (5) and a crowd."""
    (root / "images").mkdir(parents=True)
    image.save(root / "images" / name, **options)
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[3, 2, 20, 4, 17, 19, 5, 15]]},
        {"id": 2, "image_id": 1, "category_id": 5, "segmentation": [[10, 8, 33, 9, 30, 22, 12, 20]]},
        {
            "id": 3,
            "image_id": 1,
            "category_id": 5,
            "segmentation": [[25, 1, 38, 1, 38, 12, 25, 12]],
            "iscrowd": 1,
        },
    ]
    images = [{"id": 1, "file_name": name, "width": image.width, "height": image.height}]
    file = write_coco(root / "instances.json", images=images, annotations=annotations)
    config = Config(
        data=DataConfig(
            images=str(root / "images"), annotations=str(file), prepared_dir=str(root / "prepared")
        ),
        masks=MasksConfig(encoding=encoding),
        prepare=PrepareConfig(workers=1),
    )
    prepare(config)
    return config


def dataset_of(config: Config, size: tuple[int, int] = (HEIGHT, WIDTH)) -> SegmentationDataset:
    train, _ = prepared_sets(config)
    return SegmentationDataset(train.subset_file, train.image_dir, image_size=size)


def denormalize(image: torch.Tensor) -> np.ndarray:
    """Convert an item to (H, W, 3) from 0 to 255."""
    return 255 * (image.numpy().transpose(1, 2, 0) * STD + MEAN)


def test_item_at_its_own_size(tmp_path: Path) -> None:
    dataset = dataset_of(make(tmp_path, gradient()))
    assert len(dataset) == 1
    assert dataset.labels.names == ["background", "cat", "dog"]
    image, mask = dataset[0]
    assert (image.dtype, image.shape) == (torch.float32, (3, HEIGHT, WIDTH))
    assert (mask.dtype, mask.shape) == (torch.int64, (HEIGHT, WIDTH))
    expected = (np.asarray(gradient()) / 255 - MEAN) / STD
    np.testing.assert_allclose(image.numpy().transpose(1, 2, 0), expected, atol=1e-5)

    file = np.asarray(PIL.Image.open(next((tmp_path / "prepared" / "masks").iterdir())))
    assert set(np.unique(file)) == {0, 2, 5, 255}
    indices = np.select([file == 2, file == 5, file == 255], [1, 2, 255], 0)
    np.testing.assert_array_equal(mask.numpy(), indices)


@pytest.mark.parametrize("size", [(12, 20), (10, 15), (31, 77), (50, 82), (25, 13), (1, 1)])
def test_images_and_masks_are_resized(tmp_path: Path, size: tuple[int, int]) -> None:
    """Images like Pillow's antialiased bilinear; masks have the pixel at the center of each new one."""
    config = make(tmp_path, gradient())
    image, mask = dataset_of(config, size)[0]
    height, width = size
    reference = gradient().resize((width, height), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_allclose(denormalize(image), np.asarray(reference, dtype=float), atol=2.01)

    full = dataset_of(config)[0][1].numpy()
    rows = np.floor((np.arange(height) + 0.5) * HEIGHT / height).astype(int)
    columns = np.floor((np.arange(width) + 0.5) * WIDTH / width).astype(int)
    np.testing.assert_array_equal(mask.numpy(), full[np.ix_(rows, columns)])


@pytest.mark.parametrize("encoding", ["uint16", "x100"])
def test_other_encodings_give_the_same_mask(tmp_path: Path, encoding: str) -> None:
    _, first = dataset_of(make(tmp_path / "a", gradient()))[0]
    _, second = dataset_of(make(tmp_path / "b", gradient(), encoding=encoding))[0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_order_is_that_of_the_subset_file(shapes_root: Path, tmp_path: Path) -> None:
    config = Config(
        data=DataConfig(
            images=str(shapes_root / "images"),
            annotations=str(shapes_root / "annotations" / "instances.json"),
            prepared_dir=str(tmp_path / "prepared"),
        ),
        prepare=PrepareConfig(workers=1),
    )
    prepare(config)
    dataset = dataset_of(config, (32, 48))
    assert [image for image, _ in dataset.pairs] == [f"image_{i:03d}.jpg" for i in range(1, 25)]
    known = {*range(len(dataset.labels)), 255}
    for image, mask in dataset:
        assert (image.shape, mask.shape) == ((3, 32, 48), (32, 48))
        assert set(mask.unique().tolist()) <= known


# --- images of all kinds


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "I;16", "1"])
def test_items_of_any_mode(tmp_path: Path, mode: str) -> None:
    image = gradient().convert("I").convert("I;16") if mode == "I;16" else gradient().convert(mode)
    pixels, _ = dataset_of(make(tmp_path, image, "a.jpg" if mode == "CMYK" else "a.png"), (12, 20))[0]
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 12, 20))


# --- errors


@pytest.mark.parametrize("content", [None, b"", b"no image", b"half"])
def test_a_broken_image_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    config = make(tmp_path, gradient(), "a.jpg")
    path = tmp_path / "images" / "a.jpg"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-200] if content == b"half" else content)
    with pytest.raises(CocosegError, match=r"images/a\.jpg: ") as caught:
        dataset_of(config)[0]
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_than_its_mask_is_an_error(tmp_path: Path) -> None:
    config = make(tmp_path, gradient())
    gradient(HEIGHT, WIDTH).save(tmp_path / "images" / "a.png")
    with pytest.raises(CocosegError, match=r"a\.png: 25x41, .*mask is 41x25"):
        dataset_of(config)[0]


def test_a_broken_mask_is_an_error(tmp_path: Path) -> None:
    config = make(tmp_path, gradient())
    (mask,) = (tmp_path / "prepared" / "masks").iterdir()
    dataset = dataset_of(config)
    PIL.Image.fromarray(np.full((HEIGHT, WIDTH), 77, np.uint8)).save(mask)
    with pytest.raises(CocosegError, match=r"a_mask_cats_2_5\.png: .*77"):
        dataset[0]
    mask.unlink()
    with pytest.raises(CocosegError, match=r"a_mask_cats_2_5\.png: .*prepare\.py"):
        dataset[0]


@pytest.mark.parametrize("name", ["labels.json", "index.json", "subset_train_annotations.json"])
@pytest.mark.parametrize("content", [None, b"{", b"{}", b"[]"])
def test_a_folder_that_is_not_prepared_is_an_error(tmp_path: Path, name: str, content: bytes | None) -> None:
    config = make(tmp_path, gradient())
    path = tmp_path / "prepared" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CocosegError, match=r"prepared.* run prepare\.py"):
        dataset_of(config)


def test_an_image_without_a_mask_is_an_error(tmp_path: Path) -> None:
    config = make(tmp_path, gradient())
    (tmp_path / "prepared" / "index.json").write_text('{"pairs": []}')
    with pytest.raises(CocosegError, match=r"prepared: not a prepared folder .*a\.png"):
        dataset_of(config)


@pytest.mark.parametrize(("key", "name"), [("image", "../../a.png"), ("mask", "/etc/a.png"), ("image", 3)])
def test_paths_out_of_the_prepared_folder_are_refused(tmp_path: Path, key: str, name: Any) -> None:
    config = make(tmp_path, gradient())
    index = tmp_path / "prepared/index.json"
    content = json.loads(index.read_bytes())
    content["pairs"][0][key] = name
    index.write_text(json.dumps(content))
    if key == "image":
        subset = tmp_path / "prepared/subset_train_annotations.json"
        subset.write_text(subset.read_text().replace('"a.png"', json.dumps(name)))
    with pytest.raises(CocosegError, match=r"prepared: not a prepared folder \(.*; run prepare\.py"):
        dataset_of(config)


def test_masks_that_another_command_draws_again_are_an_error(tmp_path: Path) -> None:
    config = make(tmp_path, gradient())
    dataset = dataset_of(config)
    before = dataset[0][1]
    config.masks.crowd = "draw"
    prepare(config)
    with pytest.raises(
        CocosegError, match=r"prepared: another command has prepared it again while it is in use"
    ):
        dataset[0]
    with pytest.raises(CocosegError, match="another command has prepared it again"):
        dataset.class_counts([0])
    assert not torch.equal(dataset_of(config)[0][1], before)


@pytest.mark.parametrize("decode_once", [False, True])
def test_a_set_prepared_with_other_settings_is_not_opened(tmp_path: Path, decode_once: bool) -> None:
    config = make(tmp_path, gradient())
    config.data.val_annotations, config.data.val_images = config.data.annotations, config.data.images
    prepare(config)
    open_splits(config, decode_once=decode_once)
    config.masks.crowd = "draw"
    with pytest.raises(CocosegError, match="another command has changed it since"):
        open_splits(config, decode_once=decode_once)
