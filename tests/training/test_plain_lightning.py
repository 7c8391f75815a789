"""Data module and module in a trainer of Lightning's own, as scripts and notebooks use them."""

from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch

import cocoseg
from cocoseg.data.datamodule import SegmentationDataModule
from cocoseg.errors import CocosegError
from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.unet import UNet
from cocoseg.scores import Scores, confusion
from cocoseg.training.module import SegmentationModule
from tiny import LABELS, SPEC, Reads, loader, random_batch, tiny_module, tiny_trainer


class Trained(NamedTuple):
    data: SegmentationDataModule
    module: SegmentationModule
    trainer: L.Trainer
    checkpoint: str


@pytest.fixture(scope="module")
def trained(shapes_root, tmp_path_factory) -> Trained:
    """Two epochs, with all that has a default left out."""
    folder = tmp_path_factory.mktemp("plain")
    data = cocoseg.SegmentationDataModule(
        images=shapes_root / "images",
        annotations=shapes_root / "annotations" / "instances.json",
        image_size=(32, 48),
        batch_size=4,
        val_fraction=0.25,
        prepared_dir=folder / "prepared",
        prepare={"workers": 1},
    )
    net = cocoseg.UNet(len(data.labels), base_channels=4, depth=2)
    module = cocoseg.SegmentationModule(net, labels=data.labels)
    trainer = tiny_trainer(folder, max_epochs=2, enable_checkpointing=True, plugins=None)
    trainer.fit(module, data)
    return Trained(data, module, trainer, trainer.checkpoint_callback.best_model_path)


def test_the_file_describes_the_network_and_the_data(trained):
    spec = ModelSpec.from_dict(torch.load(trained.checkpoint, weights_only=True)["spec"])
    assert spec == trained.module.spec
    assert spec.network == {
        "_target_": "cocoseg.UNet",
        "num_classes": 7,
        "base_channels": 4,
        "depth": 2,
        "upsample": "transpose",
        "dropout": 0.0,
        "standardize": False,
    }
    assert spec.labels == trained.data.labels
    assert spec.image_size == (32, 48)


def test_test_scores_what_predict_gives(trained):
    [logged] = trained.trainer.test(trained.module, trained.data, verbose=False)
    masks = torch.cat(trained.trainer.predict(trained.module, trained.data))
    assert (masks.shape, masks.dtype) == ((6, 32, 48), torch.uint8)
    targets = torch.stack([mask for _, mask in trained.data.val_set]).byte().numpy()
    counts = sum(confusion(*pair, 7) for pair in zip(targets, masks.numpy(), strict=True))
    scores = Scores.from_matrix(counts)
    assert logged["test/miou"] == pytest.approx(scores.miou)
    assert logged["test/pixel_accuracy"] == pytest.approx(scores.pixel_accuracy)
    assert logged["test_iou/background"] == pytest.approx(scores.iou[0])
    [validated] = trained.trainer.validate(trained.module, trained.data, verbose=False)
    assert logged["test/loss"] == pytest.approx(validated["val/loss"])
    assert trained.module.scores == scores


def test_a_checkpoint_is_loaded_without_arguments(trained):
    module = SegmentationModule.load_from_checkpoint(trained.checkpoint)
    assert module.spec == trained.module.spec
    assert module.scores is not None
    before = trained.trainer.predict(trained.module, trained.data)
    after = tiny_trainer(Path()).predict(module, trained.data)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    image, _ = next(iter(trained.data.val_set))
    model = cocoseg.load_model(trained.checkpoint)
    assert torch.equal(model(image[None]).argmax(1)[0].byte(), before[0][0])


def test_a_loaded_module_goes_on_with_the_optimizer_of_the_file(trained, tmp_path):
    module = SegmentationModule.load_from_checkpoint(trained.checkpoint)
    trainer = tiny_trainer(tmp_path, max_epochs=3, plugins=None)
    trainer.fit(module, trained.data, ckpt_path=trained.checkpoint, weights_only=True)
    assert trainer.global_step == 3 * 4
    assert {state["step"].item() for state in trainer.optimizers[0].state.values()} == {12}


def test_a_custom_network_is_passed_to_load_it(tmp_path):
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    module = SegmentationModule(Reads(), LABELS)
    trainer.fit(module, loader(random_batch()), loader(random_batch()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(CocosegError, match=r"holds weights of tiny\.Reads; pass that class.*net="):
        SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", net=Reads)
    torch.testing.assert_close(loaded.net.weight, module.net.weight)


def test_images_without_masks_are_predicted_too(tmp_path):
    image, _ = random_batch()
    batches = torch.utils.data.DataLoader([image, image], batch_size=None)
    masks = tiny_trainer(tmp_path).predict(tiny_module(), batches)
    assert [mask.shape for mask in masks] == 2 * [(2, 16, 16)]


def test_a_module_and_data_of_other_labels_are_refused(trained, tmp_path):
    with pytest.raises(CocosegError, match="other labels than these data: 2 classes against 6 in the data"):
        tiny_trainer(tmp_path).test(tiny_module(), trained.data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"labels are missing; labels=data\.labels"),
        ({"labels": LABELS}, r"a network of 2 classes for 3 labels.*num_classes=len\(data\.labels\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(options, message):
    with pytest.raises(CocosegError, match=message):
        SegmentationModule(UNet(2, base_channels=4, depth=2), **options)


def test_adam_and_cross_entropy_are_the_defaults():
    module = SegmentationModule(UNet(3, base_channels=4, depth=2), LABELS)
    assert isinstance(module.configure_optimizers(), torch.optim.Adam)
    assert module.base_rates == [[1e-3]]
    assert isinstance(module.loss, cocoseg.CrossEntropyLoss)
    assert module.spec.labels == SPEC.labels
