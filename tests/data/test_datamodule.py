import types

import pytest
import torch
from hydra import compose, initialize_config_dir
from msgspec.structs import replace
from torch.utils.data import DataLoader

import cocoseg.data.datamodule
from cocoseg.cli import resolve_config
from cocoseg.config import AugmentConfig, Config, SubsetConfig
from cocoseg.data.datamodule import SegmentationDataModule, config_of
from cocoseg.data.dataset import Split, as_is
from cocoseg.errors import CocosegError
from cocoseg.networks.pixels import normalize
from cocoseg.preparation.demo_shapes import draw_shapes
from cocoseg.preparation.prepare import prepare
from conftest import ROOT
from tiny import shapes_config


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared") / "shapes"


@pytest.fixture
def data_module(shapes_root, prepared_dir):
    """Function that makes and sets up a data module of the 24 images of `shapes_root`."""

    def make(*, seed: int = 0, **data: object) -> SegmentationDataModule:
        module = SegmentationDataModule(shapes_config(shapes_root, prepared_dir, seed=seed, **data))
        module.prepare_data()
        module.setup("fit")
        return module

    return make


def test_the_split_is_disjoint_and_complete(data_module, shapes_root):
    data = data_module(val_fraction=0.25)
    train, val = data.train_set.names(), data.val_set.names()

    assert (len(train), len(val)) == (18, 6)
    assert sorted(train + val) == sorted(path.name for path in (shapes_root / "images").iterdir())


def test_prepares_and_opens_once(shapes_root, tmp_path, monkeypatch):
    """The recipe calls `prepare_data` and `setup` before Lightning does."""
    calls = []
    monkeypatch.setattr(
        cocoseg.data.datamodule, "prepare", lambda config: calls.append(config) or prepare(config)
    )
    data = SegmentationDataModule(shapes_config(shapes_root, tmp_path / "prepared"))
    for _ in range(2):
        data.prepare_data()
        data.setup("fit")
        opened = data.train_set
    assert data.train_set is opened
    assert calls == [data.config]


def test_the_seed_decides_the_split(data_module):
    first, again, other = (data_module(seed=seed) for seed in (1, 1, 2))

    assert first.train_set.names() == again.train_set.names()
    assert first.val_set.names() == again.val_set.names()
    assert set(first.val_set.names()) != set(other.val_set.names())


@pytest.mark.parametrize(("fraction", "held_out"), [(0.001, 1), (0.06, 1), (0.1, 2), (0.5, 12), (0.95, 23)])
def test_val_fraction(data_module, fraction, held_out):
    data = data_module(val_fraction=fraction)

    assert (len(data.train_set), len(data.val_set)) == (24 - held_out, held_out)


def test_no_image_left_to_train_on_is_an_error(data_module):
    with pytest.raises(CocosegError, match=r"24 images are too few to hold out 24.*val_fraction"):
        data_module(val_fraction=0.99)


def test_all_images_of_a_validation_file_are_used(shapes_root, data_module, tmp_path):
    draw_shapes(tmp_path / "val", images=6, seed=2)
    data = data_module(
        prepared_dir=str(tmp_path / "prepared"),
        val_images=str(tmp_path / "val" / "images"),
        val_annotations=str(tmp_path / "val" / "annotations" / "instances.json"),
        subset=SubsetConfig(size=10),
    )

    assert len(data.train_set.names()) == 10
    assert data.val_set.names() == [f"image_{number:03d}.jpg" for number in range(1, 7)]
    assert data.train_set.dataset.image_dir == shapes_root / "images"
    assert data.val_set.dataset.image_dir == tmp_path / "val" / "images"


def images_of(split: Split) -> torch.Tensor:
    """All images, (N, 3, H, W) uint8."""
    return torch.cat([image for image, _ in DataLoader(split, collate_fn=as_is)])


def test_batches_are_bytes(data_module):
    data = data_module(image_size=[24, 40], batch_size=4)

    for loader in (data.train_dataloader(), data.val_dataloader()):
        image, mask = next(iter(loader))
        assert (image.shape, image.dtype) == ((4, 3, 24, 40), torch.uint8)
        assert image.is_contiguous(memory_format=torch.channels_last)
        assert (mask.shape, mask.dtype) == ((4, 24, 40), torch.uint8)
        assert set(mask.unique().tolist()) <= {*range(len(data.labels)), 255}


@pytest.mark.parametrize("training", [True, False])
def test_batches_on_the_device_equal_items_of_the_data_set(data_module, training):
    data = data_module(batch_size=4)
    data.trainer = types.SimpleNamespace(global_rank=0, world_size=1, training=training)
    image, mask = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)

    expected = [torch.stack(part) for part in zip(*(data.val_set[i] for i in range(4)), strict=True)]
    assert (image.dtype, mask.dtype) == (torch.float32, torch.int64)
    assert torch.equal(image, expected[0])
    assert torch.equal(mask, expected[1])


def test_only_training_images_are_augmented(data_module):
    data = data_module(batch_size=4)
    data.augment.settings = AugmentConfig(brightness=1.0)
    batch = next(iter(data.val_dataloader()))
    given = {}
    for training in (True, False):
        data.trainer = types.SimpleNamespace(global_rank=0, world_size=1, training=training)
        given[training], _ = data.on_after_batch_transfer(batch, 0)

    assert torch.equal(given[False], normalize(batch[0]))
    assert not torch.allclose(given[True], given[False], atol=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_augmentation_follow_the_seed(data_module, workers):
    def epochs(seed: int, workers: int) -> list[torch.Tensor]:
        data = data_module(seed=0, num_workers=workers, batch_size=6)
        data.config = replace(data.config, seed=seed)
        data.augment.settings = AugmentConfig(flip=0.5, scale=[0.5, 2])
        data.trainer = types.SimpleNamespace(global_step=0, global_rank=0, world_size=1, training=True)
        loader = data.train_dataloader()
        return [data.on_after_batch_transfer(batch, 0)[0] for _ in range(2) for batch in loader]

    first = epochs(1, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, epochs(1, workers), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, epochs(2, workers), strict=True))


def test_processes_augment_differently(data_module):
    """torch's generator uses only the low 32 bits of a seed."""

    def augmented(rank: int) -> torch.Tensor:
        data = data_module()
        data.augment.settings = AugmentConfig(brightness=1.0)
        data.trainer = types.SimpleNamespace(global_step=0, global_rank=rank, world_size=2, training=True)
        data.train_dataloader()
        same_images = data.train_set.__getitems__([0, 1, 2, 3])
        return data.on_after_batch_transfer(same_images, 0)[0]

    assert torch.equal(augmented(1), augmented(1))
    assert not torch.allclose(augmented(0), augmented(1), atol=0.1)


def test_classes_are_counted_in_both_parts(data_module):
    data = data_module()

    for part in (data.train_set, data.val_set):
        counts = part.class_counts()
        masks = torch.stack([mask for _, mask in part])
        assert counts.shape == (len(part), len(data.labels))
        assert counts.sum(0).tolist() == masks.flatten().bincount(minlength=256)[:7].tolist()


@pytest.mark.parametrize("cache", [True, False])
def test_training_images_may_be_larger_than_the_input(data_module, cache):
    data = data_module(image_size=[24, 40], cache_size=[48, 80], cache=cache, batch_size=4)
    same = data_module(image_size=[24, 40], cache=cache, batch_size=4)
    loader = data.train_dataloader()
    large, _ = next(iter(loader))
    data.trainer = types.SimpleNamespace(global_rank=0, world_size=1, training=True)
    image, mask = data.on_after_batch_transfer(next(iter(loader)), 0)

    assert large.shape == (4, 3, 48, 80)
    assert (image.shape, mask.shape) == ((4, 3, 24, 40), (4, 24, 40))
    assert data.train_set.names() == same.train_set.names()
    assert data.val_set.names() == same.val_set.names()
    assert torch.equal(images_of(data.val_set), images_of(same.val_set))


def test_the_cache_changes_nothing(data_module):
    with_it, without = (data_module(cache=cache) for cache in (True, False))

    for make in ("train_dataloader", "val_dataloader"):
        pairs = zip(getattr(with_it, make)(), getattr(without, make)(), strict=True)
        assert all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def test_validation_keeps_order_and_every_image(data_module):
    data = data_module(batch_size=4)

    for _ in range(2):
        batches = list(data.val_dataloader())
        assert [len(image) for image, _ in batches] == [4, 2]
        assert torch.equal(torch.cat([image for image, _ in batches]), images_of(data.val_set))


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1] * 18), (5, [5, 5, 5]), (17, [17]), (18, [18]), (19, [18]), (64, [18])]
)
def test_training_drops_a_last_batch_unless_it_is_the_only_one(data_module, batch_size, sizes):
    loader = data_module(batch_size=batch_size, image_size=[4, 4]).train_dataloader()

    assert [len(image) for image, _ in loader] == sizes


def test_a_resumed_run_sees_the_images_in_another_order(data_module):
    def first_batch(step: int) -> list[float]:
        module = data_module(batch_size=18, image_size=[4, 4])
        module.trainer = types.SimpleNamespace(global_step=step, global_rank=0, world_size=1)
        return next(iter(module.train_dataloader()))[0].float().mean((1, 2, 3)).tolist()

    assert first_batch(0) != first_batch(7)
    assert sorted(first_batch(0)) == sorted(first_batch(7))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("cache", "cuda", "workers"), [(False, False, 8), (False, True, 8), (True, True, 1), (True, False, 0)]
)
def test_workers_by_default(data_module, monkeypatch, cache, cuda, workers):
    """Decoding takes all cores. Arrays need no worker, or one that copies while a GPU computes."""
    monkeypatch.setattr("cocoseg.data.datamodule.available_cores", lambda: 64)
    monkeypatch.setattr("cocoseg.data.datamodule.torch.cuda.is_available", lambda: cuda)

    assert data_module(num_workers=None, cache=cache).val_dataloader().num_workers == workers


def test_settings_in_python_are_those_of_custom_data(shapes_root):
    images, annotations = shapes_root / "images", shapes_root / "annotations" / "instances.json"
    typed = [
        "data=custom",
        f"data.images={images}",
        f"data.annotations={annotations}",
        "masks.overlap=smallest",
    ]
    typed += ["data.image_size=[32,48]", "data.subset.min_pixels=9", "augment.flip=0.5", "seed=3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        theirs = resolve_config(compose("train", typed), Config)
    ours = config_of(
        images=images,
        annotations=annotations,
        image_size=(32, 48),
        subset={"min_pixels": 9},
        masks={"overlap": "smallest"},
        augment={"flip": 0.5},
        seed=3,
    )
    assert replace(ours.data, annotations_url=None) == theirs.data  # only prepare.py uses the URL
    assert (ours.masks, ours.augment, ours.seed) == (theirs.masks, theirs.augment, theirs.seed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bach_size": 4}, r"^data\.bach_size: no such setting; did you mean data\.batch_size\?"),
        (
            {"masks": {"overlap": "smalest"}},
            r"^masks\.overlap is 'smalest'; it must be one of ignore, max, smallest",
        ),
        ({"augment": {"flip": 2}}, r"^augment\.flip is 2; it must be"),
        ({}, r"^data\.images is not set"),
        ({"images": "no_such", "annotations": "a.json"}, r"^data\.images: no folder no_such"),
    ],
)
def test_errors_are_those_of_the_command_line(settings, message):
    with pytest.raises(CocosegError, match=message):
        SegmentationDataModule(**settings)


def test_batch_size_auto_is_refused(shapes_root):
    places = {"images": shapes_root / "images", "annotations": shapes_root / "annotations" / "instances.json"}
    with pytest.raises(CocosegError, match=r"^data\.batch_size=auto .*give a number"):
        SegmentationDataModule(**places, batch_size="auto")


def test_settings_together_with_a_config_are_refused(shapes_root, tmp_path):
    with pytest.raises(TypeError, match="batch_size"):
        SegmentationDataModule(shapes_config(shapes_root, tmp_path), batch_size=3)


def test_labels_prepare_the_data_if_need_be(shapes_root, tmp_path):
    data = SegmentationDataModule(shapes_config(shapes_root, tmp_path / "prepared"))
    assert data.labels.names[:2] == ["background", "square"]
    assert len(data.train_set) == 18
