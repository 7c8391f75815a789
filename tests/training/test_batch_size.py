"""The batch that fits into a GPU's memory, and what happens where one does not."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from cocoseg.budget.open_run import Run
from cocoseg.errors import CocosegError
from cocoseg.networks.unet import UNet
from cocoseg.training import batch_size
from cocoseg.training.batch_size import (
    CheckMemory,
    explain_batch_errors,
    largest_batch,
    try_step,
)
from cocoseg.training.module import SegmentationModule
from tiny import SPEC, loader, random_batch, tiny_module, tiny_trainer


@pytest.mark.parametrize(("images", "batch"), [(8000, 16), (100, 6), (5, 1)])
def test_without_a_gpu_it_is_a_fixed_number(tmp_path, images, batch):
    assert largest_batch(tiny_module(), images, tiny_trainer(tmp_path)) == batch


def test_several_devices_are_refused():
    with pytest.raises(CocosegError, match="auto is for one device"):
        largest_batch(tiny_module(), 100, SimpleNamespace(world_size=2))


@pytest.mark.gpu
def test_on_a_gpu_it_fits():
    module = tiny_module()
    trainer = L.Trainer(accelerator="gpu", devices=1, precision="bf16-mixed", logger=False)
    batch = largest_batch(module, 16 * 64, trainer)
    assert batch == 64
    assert module.net.training


# --- the trial before training


class Trial(L.Callback):
    """A trial of 4 images for training and 3 for validation, before a step."""

    def __init__(self, step: int = 0):
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        if trainer.global_step == self.step:
            try_step(pl_module, trainer, 4, 3)


def trained(folder: Path, *callbacks: L.Callback, **options: object) -> tuple[L.Trainer, nn.Module]:
    torch.manual_seed(0)
    net = UNet(num_classes=3, base_channels=4, depth=2, dropout=0.5)
    module = SegmentationModule(net, optimizer=lambda weights: torch.optim.Adam(weights, lr=1e-2), spec=SPEC)
    trainer = tiny_trainer(folder, max_epochs=1, callbacks=list(callbacks), **options)
    batches = loader(*(random_batch(seed=seed, images=4) for seed in range(3)))
    trainer.fit(module, batches, loader(random_batch(seed=9)))
    return trainer, module


def test_a_trial_is_a_step_and_a_validation_batch_at_full_size(monkeypatch, tmp_path):
    passes = []
    forward = UNet.forward

    def watched(self: UNet, image: torch.Tensor) -> torch.Tensor:
        passes.append((self.training, tuple(image.shape)))
        return forward(self, image)

    monkeypatch.setattr(UNet, "forward", watched)
    trained(tmp_path, Trial())
    assert passes[:2] == [(True, (4, 3, 16, 16)), (False, (3, 3, 16, 16))]


@pytest.mark.parametrize(("step", "precision"), [(0, "bf16-mixed"), (2, "32-true")])
def test_a_trial_leaves_no_trace(step, precision, tmp_path):
    """Neither in weights, statistics, the optimizer nor random numbers, which dropout draws."""
    ours, module = trained(tmp_path / "a", Trial(step), precision=precision)
    plain, expected = trained(tmp_path / "b", precision=precision)
    for (name, one), other in zip(module.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(ours.optimizers[0].state.values(), plain.optimizers[0].state.values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert module.scores == expected.scores


def test_only_gpus_are_checked(monkeypatch):
    data = SimpleNamespace(batch_size=4, train_set=range(10), val_set=range(3))
    tried = []
    monkeypatch.setattr(batch_size, "try_step", lambda *args: tried.append(args))
    for device in ("cpu", "cuda"):
        module = SimpleNamespace(device=torch.device(device))
        CheckMemory(data).on_train_start(None, module)
    assert tried == [(module, None, 4, 3)]


# --- out of memory


def test_a_batch_that_is_too_small_for_batchnorm():
    norm = nn.BatchNorm2d(8)
    message = r"^data\.batch_size, data\.image_size: .*larger$"
    with pytest.raises(CocosegError, match=message), explain_batch_errors(None, None, None):
        norm(torch.zeros(1, 8, 1, 1))


@pytest.mark.parametrize(
    ("images", "error"),
    [(1, torch.OutOfMemoryError("CUDA out of memory")), (4, RuntimeError("shapes do not fit"))],
)
def test_what_half_a_batch_does_not_help_is_passed_on(images, error):
    data = SimpleNamespace(batch_size=images)
    with (
        pytest.raises(RuntimeError) as raised,
        explain_batch_errors(data, SimpleNamespace(accumulate_grad_batches=1), Run(Path("run"))),
    ):
        raise error
    assert raised.value is error
