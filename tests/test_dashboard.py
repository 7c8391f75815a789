import io

import numpy as np
import PIL.Image
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from cocoseg.dashboard import EXAMPLES, ExampleSheet, sheet, write_sheet
from cocoseg.spec import MEAN, STD
from tiny import LABELS, Reads, loader, painted, random_batch, tiny_module, tiny_trainer

BLACK, RED, BLUE, GREY, WHITE = (0, 0, 0), (255, 0, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> image (B, 3, H, W)."""
    return torch.from_numpy(((pixels / 255 - MEAN) / STD).astype(np.float32)).movedim(-1, 1)


def test_a_sheet_is_image_truth_and_prediction_in_the_colours_of_the_labels():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 3), dtype=np.uint8)
    mask = torch.tensor([[[0, 1, 2], [255, 255, 1]], [[2, 2, 2], [2, 2, 2]]])
    prediction = torch.tensor([[[2, 1, 0], [1, 0, 0]], [[1, 1, 1], [1, 1, 1]]])

    picture = sheet(normalised(pixels), mask, prediction, LABELS)

    assert (picture.shape, picture.dtype) == ((2 * (2 + 4) - 4, 3 * (3 + 4) - 4, 3), np.uint8)
    first, second = picture[:2], picture[6:]
    assert (first[:, :3] == pixels[0]).all()
    assert (second[:, :3] == pixels[1]).all()
    assert (first[:, 7:10] == [[BLACK, RED, BLUE], [GREY, GREY, RED]]).all()
    assert (first[:, 14:] == [[BLUE, RED, BLACK], [RED, BLACK, BLACK]]).all()
    assert (second[:, 7:10] == BLUE).all()
    assert (second[:, 14:] == RED).all()
    for gap in (picture[2:6], picture[:, 3:7], picture[:, 10:14]):
        assert (gap == WHITE).all()


def test_colours_out_of_range_are_clipped():
    beyond = normalised(np.array([[[[300, -40, 128]]]]))
    one = torch.zeros(1, 1, 1, dtype=torch.int64)

    assert sheet(beyond, one, one, LABELS)[0, 0].tolist() == [255, 0, 128]


@pytest.mark.parametrize(("images", "rows"), [(1, 1), (3, 3), (EXAMPLES + 2, EXAMPLES)])
def test_a_sheet_of_a_data_set_is_written(tmp_path, images, rows):
    truth = torch.arange(images).remainder(3).view(-1, 1, 1).expand(images, 5, 6)
    net = nn.Sequential(Reads(), nn.BatchNorm2d(3))
    pairs = [(painted(t[None])[0], t) for t in truth]

    write_sheet(tmp_path / "new" / "examples.png", net, pairs, LABELS)

    with PIL.Image.open(tmp_path / "new" / "examples.png") as picture:
        pixels = np.array(picture)
    assert pixels.shape == (rows * 9 - 4, 3 * 10 - 4, 3)
    assert (pixels[:, 10:16] == pixels[:, 20:]).all()  # all right
    assert net.training
    assert net[1].num_batches_tracked == 0  # but evaluated


def test_tensorboard_shows_losses_scores_and_examples(tmp_path):
    images = EXAMPLES + 1
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    trainer = tiny_trainer(
        tmp_path, max_epochs=2, logger=logger, callbacks=[ExampleSheet()], num_sanity_val_steps=1
    )
    val = loader(random_batch(images=images), random_batch(seed=1))
    trainer.fit(tiny_module(), loader(random_batch(seed=2)), val)

    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "images": 0}).Reload()

    per_epoch = {
        *("train/loss", "val/loss", "val/miou", "val/miou_with_background", "val/pixel_accuracy"),
        *("iou/background", "iou/cat", "iou/dog"),
    }
    assert per_epoch <= set(events.Tags()["scalars"])
    assert "hp_metric" not in events.Tags()["scalars"]
    for name in per_epoch:
        assert len(events.Scalars(name)) == 2, name
    last = {name: events.Scalars(name)[-1].value for name in per_epoch}
    assert last == pytest.approx({name: trainer.callback_metrics[name].item() for name in per_epoch})
    shown = events.Images("val/examples")
    assert [image.step for image in shown] == [1, 2]  # none of the sanity check
    with PIL.Image.open(io.BytesIO(shown[0].encoded_image_string)) as picture:
        assert picture.size == (3 * (16 + 4) - 4, EXAMPLES * (16 + 4) - 4)


def test_without_tensorboard_no_sheet_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("cocoseg.dashboard.sheet", lambda *_: 1 / 0)
    trainer = tiny_trainer(tmp_path, callbacks=[ExampleSheet()])

    trainer.validate(tiny_module(), loader(random_batch()), verbose=False)
