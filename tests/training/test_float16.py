"""Training in float16 with a scaled loss, as `trainer.precision=16-mixed` is on a GPU, here on the CPU.

For that precision on a CPU Lightning takes bfloat16, which needs no scaling.
"""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision

from cocoseg.budget.budget import Budget
from cocoseg.networks.residual import ResidualUNet
from cocoseg.training.batch_size import try_step
from cocoseg.training.finetuning import FreezeEncoder
from cocoseg.training.losses import CrossEntropyDiceLoss
from cocoseg.training.module import SegmentationModule
from cocoseg.training.nan_guard import StopOnNaN
from tiny import SPEC, loader, random_batch, tiny_trainer

Adam = partial(torch.optim.Adam, lr=1e-3)


class Trial(L.Callback):
    """A trial of the step, as on a GPU."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try_step(pl_module, trainer, 2, 2)


def fit(
    folder: Path, *callbacks: L.Callback, optimizer: object = Adam, scale: float = 2.0**16, **options: object
) -> tuple[L.Trainer, SegmentationModule]:
    torch.manual_seed(0)
    net = ResidualUNet(3, base_channels=4, depth=2)
    loss = CrossEntropyDiceLoss(class_weights=[1.0, 2.0, 3.0])
    module = SegmentationModule(net, loss=loss, optimizer=optimizer, spec=SPEC)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    trainer = tiny_trainer(
        folder, max_epochs=2, callbacks=[*callbacks, Trial(), StopOnNaN()], plugins=[precision], **options
    )
    trainer.fit(module, loader(*(random_batch(seed=i) for i in range(4))), loader(random_batch(seed=9)))
    return trainer, module


@pytest.mark.parametrize(
    ("callbacks", "options"),
    [
        pytest.param([], {"optimizer": partial(Adam, fused=True)}, marks=pytest.mark.slow),
        ([], {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}),
        pytest.param([FreezeEncoder(0.5, Budget(None))], {"gradient_clip_val": 0.1}, marks=pytest.mark.slow),
        pytest.param([EMAWeightAveraging()], {}, marks=pytest.mark.slow),
    ],
    ids=["fused", "clipping", "frozen encoder", "ema"],
)
def test_it_trains(callbacks, options, tmp_path):
    trainer, module = fit(tmp_path, *callbacks, **options)
    assert trainer.global_step == 8 // options.get("accumulate_grad_batches", 1)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert {value.dtype for value in module.parameters()} == {torch.float32}


def test_a_scale_that_is_too_large_skips_steps_and_is_no_nan_loss(tmp_path):
    trainer, module = fit(tmp_path, scale=2.0**30)
    steps = {state["step"].item() for state in trainer.optimizers[0].state.values()}
    assert max(steps, default=0) < trainer.global_step == 8
    assert trainer.precision_plugin.scaler.get_scale() < 2.0**30
    assert all(value.isfinite().all() for value in module.state_dict().values())
