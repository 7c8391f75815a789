"""The average of the weights: how it is made, and that it is what is validated, saved and exported."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from cocoseg.ema import Average, result_of
from cocoseg.losses import CrossEntropyLoss
from cocoseg.model import load_model
from cocoseg.model_file import read_weights
from cocoseg.module import SegmentationModule
from tiny import SPEC, Reads, loader, random_batch, tiny_trainer, tiny_unet


def module_of(net: nn.Module, ema: float | None = 0.9, lr: float = 0.5) -> SegmentationModule:
    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=lr)

    return SegmentationModule(net, CrossEntropyLoss(), optimizer, SPEC, ema)


def fit(folder: Path, module: SegmentationModule, *, epochs: int = 2, **options: object) -> L.Trainer:
    checkpoint = options.pop("ckpt_path", None)
    trainer = tiny_trainer(folder, max_epochs=epochs, **options)
    batches = loader(*(random_batch(seed=seed) for seed in range(3)))
    trainer.fit(module, batches, loader(random_batch(seed=9)), ckpt_path=checkpoint, weights_only=True)
    return trainer


def test_by_hand():
    net = Reads()
    average = Average(net, decay=0.75)
    expected = net.weight.detach().clone()
    for step in range(1, 80):
        with torch.no_grad():
            net.weight.add_(1.0)
        average.update(net, step)
        weight = max(0.25, 1 / (step / 9 + 1))
        expected += weight * (net.weight - expected)
    torch.testing.assert_close(average.net.weight, expected)
    assert average.net.weight[0, 0] < net.weight[0, 0] - 2


def test_a_step_counts_once():
    """Batches that are accumulated are one step."""
    net = Reads()
    average = Average(net, decay=0.5)
    net.weight.data += 1
    average.update(net, 100)
    before = average.net.weight.clone()
    average.update(net, 100)
    assert torch.equal(average.net.weight, before)


def test_statistics_are_averaged_and_counts_copied():
    net = tiny_unet()
    average = Average(net, decay=0.5)
    for step in (30, 31):
        net.train()(torch.rand(2, 3, 16, 16))
        average.update(net, step)
    ours, theirs = average.net.stem[1], net.stem[1]
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 2
    assert not torch.equal(ours.running_mean, theirs.running_mean)
    assert (ours.running_mean != 0).all()


def test_is_no_part_of_training():
    average = Average(tiny_unet(), decay=0.5)
    average.train()
    assert not average.net.training
    assert not any(weight.requires_grad for weight in average.parameters())


def test_is_what_is_validated(tmp_path):
    plain, averaged = (module_of(tiny_unet(), ema) for ema in (None, 0.9))
    for name, module in (("a", plain), ("b", averaged)):
        fit(tmp_path / name, module)
    for ours, theirs in zip(averaged.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # training is the same
    image, mask = random_batch(seed=9)
    averaged.eval()
    loss = averaged.loss(averaged.average.net(image), mask)
    assert averaged.trainer.callback_metrics["val/loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert averaged.trainer.callback_metrics["val/loss"] != plain.trainer.callback_metrics["val/loss"]


def test_is_what_a_checkpoint_is_read_as(tmp_path):
    module = module_of(tiny_unet())
    trainer = fit(tmp_path, module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for name, weight in read_weights(tmp_path / "a.ckpt")["state_dict"].items():
        assert torch.equal(weight, module.average.net.state_dict()[name])
    image = random_batch()[0]
    assert torch.equal(load_model(tmp_path / "a.ckpt")(image), module.average.net(image))


def test_a_run_goes_on_with_its_average(tmp_path):
    straight = module_of(tiny_unet())
    fit(tmp_path / "straight", straight, epochs=2)
    first = module_of(tiny_unet())
    fit(tmp_path / "first", first, epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    second = module_of(tiny_unet(seed=5))
    fit(tmp_path / "second", second, epochs=2, ckpt_path=tmp_path / "a.ckpt")
    for name, weight in straight.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], weight, msg=name)


@pytest.mark.parametrize(("before", "after"), [(None, 0.9), (0.9, None)])
def test_a_run_goes_on_with_and_without(tmp_path, before, after):
    first = module_of(tiny_unet(), before)
    fit(tmp_path / "first", first, epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    second = module_of(tiny_unet(seed=5), after)
    fit(tmp_path / "second", second, epochs=1, ckpt_path=tmp_path / "a.ckpt")  # at its end already
    for name, weight in first.net.state_dict().items():
        assert torch.equal(second.net.state_dict()[name], weight)
        assert torch.equal(second.result.state_dict()[name], weight)


def test_result_of_a_checkpoint():
    plain = {"net.a": torch.tensor(1.0), "loss.b": torch.tensor(2.0)}
    assert result_of(plain) == {"a": torch.tensor(1.0)}
    assert result_of({**plain, "average.net.a": torch.tensor(3.0)}) == {"a": torch.tensor(3.0)}
