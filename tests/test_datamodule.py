import json
import types

import pytest
import torch

import cocoseg.datamodule
from cocoseg.config import SubsetConfig
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.dataset import SegmentationDataset
from cocoseg.errors import CocosegError
from cocoseg.shapes import draw_shapes
from tiny import shapes_config


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared") / "shapes"


@pytest.fixture
def data_module(shapes_root, prepared_dir):
    """Makes a data module over the 24 images of `shapes_root`, set up."""

    def make(*, seed: int = 0, **data: object) -> SegmentationDataModule:
        module = SegmentationDataModule(shapes_config(shapes_root, prepared_dir, seed=seed, **data))
        module.prepare_data()
        module.setup("fit")
        return module

    return make


def names(dataset) -> list[str]:
    """The images of a set or of a part of one, in its order."""
    if isinstance(dataset, SegmentationDataset):
        return [image for image, _ in dataset.pairs]
    return [dataset.dataset.pairs[i][0] for i in dataset.indices]


def test_the_split_is_disjoint_and_complete(data_module, shapes_root):
    data = data_module(val_fraction=0.25)
    train, val = names(data.train_set), names(data.val_set)

    assert (len(train), len(val)) == (18, 6)
    assert sorted(train + val) == sorted(path.name for path in (shapes_root / "images").iterdir())


def test_the_seed_decides_the_split(data_module):
    first, again, other = (data_module(seed=seed) for seed in (1, 1, 2))

    assert names(first.train_set) == names(again.train_set)
    assert names(first.val_set) == names(again.val_set)
    assert set(names(first.val_set)) != set(names(other.val_set))


@pytest.mark.parametrize(("fraction", "held_out"), [(0.001, 1), (0.06, 1), (0.1, 2), (0.5, 12), (0.95, 23)])
def test_val_fraction(data_module, fraction, held_out):
    data = data_module(val_fraction=fraction)

    assert (len(data.train_set), len(data.val_set)) == (24 - held_out, held_out)


@pytest.mark.parametrize("fraction", [0.99, 0.98])
def test_nothing_left_to_train_on_is_an_error(data_module, fraction):
    with pytest.raises(CocosegError, match=r"24 images are too few to hold out 24.*val_fraction"):
        data_module(val_fraction=fraction)


def test_one_image_is_too_few(data_module, tmp_path):
    with pytest.raises(CocosegError, match="1 images are too few"):
        data_module(subset=SubsetConfig(size=1), prepared_dir=str(tmp_path / "prepared"))


def test_a_validation_file_of_its_own_is_used_whole(shapes_root, data_module, tmp_path):
    draw_shapes(tmp_path / "val", images=6, seed=2)
    data = data_module(
        prepared_dir=str(tmp_path / "prepared"),
        val_images=str(tmp_path / "val" / "images"),
        val_annotations=str(tmp_path / "val" / "annotations" / "instances.json"),
        subset=SubsetConfig(size=10),
    )

    assert len(names(data.train_set)) == 10
    assert names(data.val_set) == [f"image_{number:03d}.jpg" for number in range(1, 7)]
    assert data.train_set.image_dir == shapes_root / "images"
    assert data.val_set.image_dir == tmp_path / "val" / "images"


def test_validation_images_lie_with_the_others_unless_told_otherwise(shapes_root, data_module, tmp_path):
    content = json.loads((shapes_root / "annotations" / "instances.json").read_bytes())
    content["images"] = content["images"][:3]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 3]
    file = tmp_path / "val.json"
    file.write_text(json.dumps(content))

    data = data_module(prepared_dir=str(tmp_path / "prepared"), val_annotations=str(file))

    assert data.val_set.image_dir == shapes_root / "images"
    assert len(data.val_set) == 3
    assert torch.equal(data.val_set[0][1], data.train_set[0][1])  # the same image, the same mask


def test_batches(data_module):
    data = data_module(image_size=[24, 40], batch_size=4)

    for loader in (data.train_dataloader(), data.val_dataloader()):
        image, mask = next(iter(loader))
        assert (image.shape, image.dtype) == ((4, 3, 24, 40), torch.float32)
        assert (mask.shape, mask.dtype) == ((4, 24, 40), torch.int64)
        assert set(mask.unique().tolist()) <= {*range(len(data.labels)), 255}


def test_validation_keeps_order_and_every_image(data_module):
    data = data_module(batch_size=4)

    for _ in range(2):
        batches = list(data.val_dataloader())
        assert [len(image) for image, _ in batches] == [4, 2]
        images = torch.cat([image for image, _ in batches])
        assert torch.equal(images, torch.stack([image for image, _ in data.val_set]))


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 18), (5, [5, 5, 5]), (17, [17]), (18, [18]), (19, [18]), (64, [18])]
)
def test_training_drops_a_last_batch_unless_it_is_the_only_one(data_module, batch_size, sizes):
    loader = data_module(batch_size=batch_size, image_size=[4, 4]).train_dataloader()

    assert [len(image) for image, _ in loader] == sizes


def test_training_is_shuffled_anew_each_epoch_as_the_seed_says(data_module):
    def epochs(seed: int) -> list[list[float]]:
        loader = data_module(seed=seed, batch_size=18, image_size=[4, 4]).train_dataloader()
        return [next(iter(loader))[0].mean((1, 2, 3)).tolist() for _ in range(2)]

    first, second = epochs(0)

    assert first != second
    assert sorted(first) == sorted(second)
    assert epochs(0) == [first, second]


def test_a_resumed_run_sees_the_images_in_another_order(data_module):
    def first_batch(step: int) -> list[float]:
        module = data_module(batch_size=18, image_size=[4, 4])
        module.trainer = types.SimpleNamespace(global_step=step)
        return next(iter(module.train_dataloader()))[0].mean((1, 2, 3)).tolist()

    assert first_batch(0) != first_batch(7)
    assert sorted(first_batch(0)) == sorted(first_batch(7))


def test_prepares_once(shapes_root, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(cocoseg.datamodule, "prepare", calls.append)
    data = SegmentationDataModule(shapes_config(shapes_root, tmp_path))

    data.prepare_data()
    data.prepare_data()

    assert calls == [data.config]


def test_setup_keeps_the_split_it_has(data_module):
    data = data_module()
    before = data.train_set

    data.setup("validate")

    assert data.train_set is before


def test_workers_deliver_the_same_batches(data_module):
    alone, helped = (data_module(num_workers=workers).train_dataloader() for workers in (0, 1))

    for ours, theirs in zip(alone, helped, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_one_worker_per_core_by_default(data_module, monkeypatch):
    monkeypatch.setattr("cocoseg.datamodule.available_cores", lambda: 64)

    assert data_module(num_workers=None).val_dataloader().num_workers == 8
