"""The encoder of a network, frozen at first and slower later, whatever happens to the run in between."""

import os
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from cocoseg.budget.budget import Budget
from cocoseg.errors import CocosegError
from cocoseg.networks.residual import ResidualUNet
from cocoseg.networks.timm_unet import TimmUNet
from cocoseg.training.finetuning import FreezeEncoder, encoder_of
from cocoseg.training.module import SegmentationModule
from cocoseg.training.optimizer import parameter_groups
from tiny import SPEC, loader, random_batch, tiny_trainer, tiny_unet

EPOCHS, STEPS = 3, 6


class Progress(L.Callback):
    """Tells the budget how far a run of `STEPS` steps is, as `KeepBudget` does."""

    def __init__(self, budget: Budget):
        self.budget = budget

    def on_train_batch_start(self, trainer: L.Trainer, *args: object) -> None:
        self.budget.progress = trainer.global_step / STEPS


class Watch(L.Callback):
    """The encoder's state after every step."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        self.states.append(state_of(pl_module.net.encoder))


def state_of(part: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in part.state_dict().items()}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def make(seed: int = 0, *, fused: bool = True, encoder: str | None = None) -> SegmentationModule:
    """A residual U-Net, or one on an encoder of timm."""
    torch.manual_seed(seed)
    net: nn.Module = ResidualUNet(num_classes=3, base_channels=4, depth=2)
    if encoder is not None:
        net = TimmUNet(3, encoder, decoder_channels=(8, 8, 8, 8, 8))

    def optimizer(parameters):
        node = {"lr": 1e-2, "weight_decay": 0.1}
        groups = parameter_groups(node, parameters, net.encoder.parameters(), 0.1)
        return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, fused=fused)

    return SegmentationModule(net, optimizer=optimizer, spec=SPEC)


def fit(
    folder: Path, module: SegmentationModule, share: float, *, epochs: int = EPOCHS, **options: object
) -> tuple[L.Trainer, Watch]:
    """Two steps and a validation in each epoch."""
    checkpoint, watch, budget = options.pop("ckpt_path", None), Watch(), Budget(None)
    callbacks = [Progress(budget), FreezeEncoder(share, budget), watch]
    trainer = tiny_trainer(folder, max_epochs=epochs, callbacks=callbacks, num_sanity_val_steps=1, **options)
    batches = loader(*(random_batch(seed=seed) for seed in range(2)))
    trainer.fit(module, batches, loader(random_batch(seed=9)), ckpt_path=checkpoint, weights_only=True)
    return trainer, watch


def test_the_encoder_by_its_names():
    for name in ("encoder", "backbone"):
        net = nn.Module()
        part = nn.Linear(1, 1)
        setattr(net, name, part)
        assert encoder_of(net) is part
    with pytest.raises(CocosegError, match=r"^finetune: UNet has neither an encoder nor a backbone"):
        encoder_of(tiny_unet())


@pytest.mark.parametrize(
    ("share", "frozen_steps", "fused"), [(0.5, 3, True), (0.5, 3, False), (0.01, 1, True), (1.0, 6, True)]
)
def test_neither_weights_nor_statistics_move_until_the_share_is_over(tmp_path, share, frozen_steps, fused):
    module = make(fused=fused)
    before, decoder = state_of(module.net.encoder), state_of(module.net.up)

    _, watch = fit(tmp_path, module, share)

    assert len(watch.states) == STEPS
    assert [same(state, before) for state in watch.states] == [step < frozen_steps for step in range(STEPS)]
    assert not same(state_of(module.net.up), decoder)
    if share < 1:  # everything of it is trained then
        after = module.net.encoder.state_dict()
        assert not [name for name, value in before.items() if torch.equal(value, after[name])]


def test_encoders_of_timm_are_frozen_and_trained_as_well(tmp_path):
    module = make(encoder="test_efficientnet")
    before = state_of(module.net.encoder)
    _, watch = fit(tmp_path, module, 0.5)
    assert [same(state, before) for state in watch.states] == [step < 3 for step in range(STEPS)]
    after = module.net.encoder.state_dict()
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]


@pytest.mark.parametrize("first", [1, 2], ids=["while it is frozen", "when it is thawed"])
def test_a_run_goes_on_as_if_it_had_not_been_broken_off(tmp_path, first):
    straight = make()
    fit(tmp_path / "straight", straight, 0.5)
    begun = make()
    trainer, _ = fit(tmp_path / "begun", begun, 0.5, epochs=first)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = make(seed=5)

    fit(tmp_path / "resumed", resumed, 0.5, ckpt_path=tmp_path / "a.ckpt")

    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_its_author_froze_stays_so(tmp_path):
    module = make()
    module.net.encoder.stem[0].weight.requires_grad_(False)
    before = module.net.encoder.stem[0].weight.clone()
    fit(tmp_path, module, 0.5)
    assert torch.equal(module.net.encoder.stem[0].weight, before)


@pytest.fixture
def distributed(monkeypatch: pytest.MonkeyPatch):
    """Lightning leaves a process group, and variables that would tell the next test of it."""
    with monkeypatch.context() as context:
        context.setattr(os, "environ", os.environ.copy())
        yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("fused", [True, False])
def test_ddp_learns_the_same(tmp_path, distributed, fused):
    """It waits for the gradients of what is frozen, too."""
    ddp, alone = make(fused=fused), make(fused=fused)
    options = {"gradient_clip_val": 0.1, "use_distributed_sampler": False}

    _, watch = fit(tmp_path / "ddp", ddp, 0.5, strategy="ddp", devices=1, **options)
    _, expected = fit(tmp_path / "alone", alone, 0.5, **options)

    assert all(map(same, watch.states, expected.states))
    assert same(ddp.state_dict(), alone.state_dict())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_encoder_has_a_rate_of_its_own(decay):
    net = make().net
    node = {"lr": 0.1, "weight_decay": decay}
    groups = parameter_groups(node, net.parameters(), net.encoder.parameters(), 0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=decay)

    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}

    expected = [0.1, 0.1, 0.05, 0.05] if decay else [0.1, 0.05]
    assert [group["lr"] for group in optimizer.param_groups] == expected
    assert len(rates) == len(list(net.parameters()))
    assert {rates[id(weight)] for weight in net.encoder.parameters()} == {0.05}
    assert {rates[id(weight)] for weight in net.up.parameters()} == {0.1}
    of_norms = {g["weight_decay"] for g in optimizer.param_groups for w in g["params"] if w.ndim <= 1}
    assert of_norms == {0.0}
