"""How many images fit, and what happens where they don't."""

import logging
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from cocoseg.budget import Budget
from cocoseg.checkpoints import LastCheckpoint, WholeCheckpointIO
from cocoseg.datamodule import SegmentationDataModule
from cocoseg.durations import parse_duration
from cocoseg.errors import CocosegError
from cocoseg.losses import CrossEntropyLoss
from cocoseg.memory import FitInMemory, largest_batch, largest_fitting
from cocoseg.module import SegmentationModule
from cocoseg.spec import ModelSpec
from cocoseg.unet import UNet
from tiny import loader, random_batch, shapes_config, tiny_module, tiny_trainer


class Meter:
    """Needs a fixed amount and some for each image; raises beyond what there is."""

    def __init__(self, fixed: float, each: float, there: float = float("inf")):
        self.fixed, self.each, self.there = fixed, each, there
        self.tried: list[int] = []

    def __call__(self, batch: int) -> float:
        self.tried.append(batch)
        needed = self.fixed + self.each * batch
        if needed > self.there:
            raise torch.OutOfMemoryError
        return needed


@pytest.mark.parametrize(
    ("fixed", "each", "batch"), [(10, 10, 8), (0, 12.5, 8), (0, 12.6, 4), (50, 40, 1), (99, 5, 1), (0, 1, 64)]
)
def test_the_largest_power_of_two(fixed, each, batch):
    assert largest_fitting(Meter(fixed, each), room=100, most=1000) == batch


@pytest.mark.parametrize(("most", "batch"), [(1, 1), (2, 2), (3, 2), (31, 16), (32, 32)])
def test_no_more_than_wanted(most, batch):
    assert largest_fitting(Meter(0, 1), room=100, most=most) == batch


def test_what_is_bound_not_to_fit_is_not_tried():
    meter = Meter(10, 10)
    largest_fitting(meter, room=100, most=1000)
    assert meter.tried == [1, 2, 4, 8]


def test_memory_that_runs_out_earlier_than_thought():
    assert largest_fitting(Meter(0, 10, there=45), room=100, most=1000) == 4


def test_not_even_one_is_left_to_training_to_say():
    assert largest_fitting(Meter(0, 10, there=5), room=100, most=1000) == 1


@pytest.mark.parametrize(("images", "batch"), [(8000, 16), (100, 6), (5, 1)])
def test_without_a_gpu_it_is_a_fixed_number(tmp_path, images, batch):
    assert largest_batch(tiny_module(), images, tiny_trainer(tmp_path)) == batch


def test_several_devices_are_refused():
    with pytest.raises(CocosegError, match="auto is for one device"):
        largest_batch(tiny_module(), 100, SimpleNamespace(world_size=2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_fits():
    module = tiny_module()
    trainer = L.Trainer(accelerator="gpu", devices=1, precision="bf16-mixed", logger=False)
    batch = largest_batch(module, 16 * 64, trainer)
    assert batch == 64
    assert module.net.training


class Greedy(nn.Module):
    """A network that has room for a few images only, from some step on."""

    def __init__(self, classes: int, room: int, after: int):
        super().__init__()
        self.net = UNet(num_classes=classes, base_channels=2, depth=1)
        self.room, self.after, self.passes = room, after, 0
        self.batches: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
            if self.passes > self.after and len(image) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.batches.append(len(image))
        return self.net(image)


@pytest.fixture
def run(shapes_root, tmp_path):
    """Trains a Greedy for a number of steps; returns the trainer, the network and the data module."""

    def train(*, room: int, after: int, steps: int = 6, batch_size: int = 8):
        data = SegmentationDataModule(
            shapes_config(shapes_root, tmp_path / "prepared", batch_size=batch_size, image_size=[16, 16])
        )
        data.prepare_data()
        data.setup("fit")
        classes = len(data.labels)
        net = Greedy(classes, room, after)
        module = SegmentationModule(
            net,
            CrossEntropyLoss(),
            lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
            ModelSpec({"num_classes": classes}, data.labels, (16, 16)),
        )
        budget = Budget(None)
        last = LastCheckpoint(tmp_path / "checkpoints", parse_duration("00:00:05:00", key=""), budget)
        options = {"max_steps": steps, "callbacks": [last], "plugins": [WholeCheckpointIO(budget)]}
        fit = FitInMemory(partial(tiny_trainer, tmp_path, devices=1, **options), 1, last)
        fit(module, data, None)
        return fit.trainer, net, data

    return train


@pytest.mark.parametrize("after", [0, 1, 3])
def test_goes_on_with_half_the_batch_and_twice_the_accumulation(run, after, caplog):
    trainer, net, data = run(room=4, after=after)

    assert (data.batch_size, trainer.accumulate_grad_batches) == (4, 2)
    assert trainer.global_step == 6
    whole, halves = net.batches[:after], net.batches[after:]
    assert whole == [8] * after
    assert set(halves) == {4}
    assert 2 * (6 - after) - 2 <= len(halves) <= 2 * (6 - after)  # an epoch may end with one that is alone
    assert [r.message for r in caplog.records if "out of memory" in r.message] == [
        "out of memory: going on with data.batch_size=4 trainer.accumulate_grad_batches=2"
    ]


def test_halves_as_often_as_it_takes(run, caplog):
    trainer, net, data = run(room=1, after=2)

    assert (data.batch_size, trainer.accumulate_grad_batches) == (1, 8)
    assert trainer.global_step == 6
    assert net.batches[:2] == [8] * 2
    assert set(net.batches[2:]) == {1}


def test_what_was_learned_is_kept(run):
    """The optimizer goes on with the moments that it had."""
    trainer, _, _ = run(room=4, after=3)
    steps = {state["step"].item() for state in trainer.optimizers[0].state.values()}
    assert steps == {6}


def test_one_image_that_does_not_fit_ends_it(run):
    with pytest.raises(torch.OutOfMemoryError):
        run(room=0, after=0)


def test_other_errors_are_not_touched(run, monkeypatch):
    monkeypatch.setattr(Greedy, "forward", lambda self, image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(room=4, after=0)


def test_is_said_at_the_level_of_warnings(run, caplog):
    run(room=4, after=1)
    assert {r.levelno for r in caplog.records if "out of memory" in r.message} == {logging.WARNING}


def test_a_validation_that_was_broken_off_does_not_count_twice(shapes_root, tmp_path):
    """Memory may run out in the middle of one."""
    module = tiny_module()
    trainer = tiny_trainer(tmp_path)
    batches = loader(random_batch(seed=1), random_batch(seed=2))
    update = module.confusion.update
    calls = []

    def failing(prediction, mask):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        update(prediction, mask)

    module.confusion.update = failing
    with pytest.raises(torch.OutOfMemoryError):
        trainer.validate(module, batches, verbose=False)
    pixels = []
    compute = module.confusion.compute
    module.confusion.compute = lambda: pixels.append(int(compute().sum())) or compute()
    tiny_trainer(tmp_path).validate(module, batches, verbose=False)
    assert pixels == [2 * 2 * 16 * 16]
