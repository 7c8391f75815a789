import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from cocoseg.networks.spec import ModelSpec
from cocoseg.networks.unet import UNet
from cocoseg.scores import Scores
from cocoseg.training.module import SegmentationModule
from tiny import (
    SPEC,
    Reads,
    loader,
    painted,
    random_batch,
    tiny_module,
    tiny_trainer,
    tiny_unet,
)

NAMES = {
    "train/loss",
    "train/loss_step",
    "val/loss",
    "val/miou",
    "val/miou_with_background",
    "val/pixel_accuracy",
    "validation_iou/background",
    "validation_iou/cat",
    "validation_iou/dog",
}


def easy_and_mostly_ignored() -> tuple[Tensor, Tensor]:
    _, mask = random_batch(seed=1)
    image = 3 * painted(mask)
    mask[:, :14] = 255
    return image, mask


UNEVEN = (easy_and_mostly_ignored(), random_batch(seed=2, images=1))


def test_train_loss_is_the_mean_over_the_pixels_of_the_epoch_and_every_third_gradient_is_measured(tmp_path):
    net = Reads()
    reference = copy.deepcopy(net)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    means, norms = [], []
    for _ in range(2):
        total, pixels, batch_means = 0.0, 0, []
        for image, mask in UNEVEN:
            counts = mask != 255
            losses = F.cross_entropy(reference(image), mask.where(counts, 0), reduction="none")[counts]
            optimizer.zero_grad()
            losses.mean().backward()
            norms.append(sum(weight.grad.square().sum() for weight in reference.parameters()).sqrt().item())
            optimizer.step()
            total, pixels = total + losses.sum().item(), pixels + losses.numel()
            batch_means.append(losses.mean().item())
        means.append(total / pixels)
    trainer = tiny_trainer(tmp_path, max_epochs=2, log_every_n_steps=3)

    trainer.fit(tiny_module(net, lr=0.5), loader(*UNEVEN))

    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(means[1], rel=1e-5)
    assert means[1] != pytest.approx(means[0], rel=0.01)  # not over both epochs
    assert means[1] != pytest.approx(sum(batch_means) / 2, rel=0.01)  # not over batches
    torch.testing.assert_close(net.weight, reference.weight)
    assert trainer.callback_metrics["train/gradient_norm"].item() == pytest.approx(norms[2], rel=1e-4)


def test_validation_logs_its_scores_by_name(tmp_path):
    # (truth, prediction) over both batches: 16x16 pixels each, the rows below all right
    truth = torch.zeros(3, 16, 16, dtype=torch.int64)
    guess = truth.clone()
    truth[0, 0, :10], guess[0, 0, :8] = 1, 1
    truth[1, 0, :4], guess[1, 0, 2:6] = 2, 2
    truth[2, 0], guess[2, 0] = 255, 1
    image = painted(guess)
    batches = (image[:2], truth[:2]), (image[2:], truth[2:])
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    module = tiny_module(Reads(), lr=0.0)

    trainer.fit(module, loader(random_batch()), loader(*batches))

    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    pixels = 3 * 256 - 16
    background = (pixels - 10 - 6) / (pixels - 8 - 2)
    counts = truth != 255
    losses = F.cross_entropy(image, truth.where(counts, 0), reduction="none")[counts]
    assert set(logged) == NAMES
    assert logged["validation_iou/cat"] == pytest.approx(8 / 10)
    assert logged["validation_iou/dog"] == pytest.approx(2 / 6)
    assert logged["validation_iou/background"] == pytest.approx(background)
    assert logged["val/miou"] == pytest.approx((8 / 10 + 2 / 6) / 2)
    assert logged["val/miou_with_background"] == pytest.approx((8 / 10 + 2 / 6 + background) / 3)
    assert logged["val/pixel_accuracy"] == pytest.approx((pixels - 6) / pixels)
    assert logged["val/loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert module.scores.iou == pytest.approx([background, 8 / 10, 2 / 6])


def test_a_class_that_validation_does_not_hold_is_not_logged(tmp_path):
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    cats = torch.ones(1, 8, 8, dtype=torch.int64)

    trainer.fit(tiny_module(Reads()), loader(random_batch()), loader((painted(cats), cats)))

    assert set(trainer.callback_metrics) == NAMES - {"validation_iou/background", "validation_iou/dog"}


class AfterSanityCheck(L.Callback):
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.scores, self.logged = pl_module.scores, dict(trainer.callback_metrics)


def test_the_sanity_check_leaves_no_scores_behind(tmp_path):
    cats = torch.ones(1, 8, 8, dtype=torch.int64)
    right, wrong = (painted(cats), cats), (painted(0 * cats), cats)
    seen = AfterSanityCheck()
    trainer = tiny_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=1, callbacks=[seen])
    module = tiny_module(Reads(), lr=0.0)

    trainer.fit(module, loader(random_batch()), loader(right, wrong))

    assert seen.scores is None
    assert not seen.logged
    assert module.scores.iou == [None, 0.5, None]  # 2/3 had the first batch been counted twice
    right_loss, wrong_loss = (F.cross_entropy(*batch).item() for batch in (right, wrong))
    loss = trainer.callback_metrics["val/loss"].item()
    assert loss == pytest.approx((right_loss + wrong_loss) / 2)


def test_scores_of_a_validation_that_is_cut_short_are_partial(tmp_path):
    def cut(trainer, module, batch, index, *_):
        if index == 1 and trainer.current_epoch == 0:
            raise StopIteration

    seen = []
    callbacks = [
        LambdaCallback(
            on_validation_batch_start=cut,
            on_validation_end=lambda _, module: seen.append(module.scores_are_partial),
        )
    ]
    trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=callbacks)
    trainer.fit(tiny_module(), loader(random_batch()), loader(random_batch(), random_batch(seed=1)))
    assert seen == [True, False]


def test_a_checkpoint_holds_spec_and_scores_in_plain_values(tmp_path):
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    module = tiny_module()
    trainer.fit(module, loader(random_batch()), loader(random_batch(seed=1)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    content = torch.load(tmp_path / "a.ckpt", weights_only=True)

    assert ModelSpec.from_dict(content["spec"]) == SPEC
    assert Scores(**content["scores"]) == module.scores
    names = {f"net.{name}" for name in tiny_unet().state_dict()}
    assert set(content["state_dict"]) == names  # metrics and losses hold nothing of lasting value


def test_a_checkpoint_before_the_first_validation_has_no_scores(tmp_path):
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.fit(tiny_module(), loader(random_batch()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")

    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["scores"] is None


@pytest.mark.slow
def test_overfits_two_images(tmp_path):
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 32, 32)
    mask = gaussian_blur(noise, [11, 11]).argmax(1)  # three kinds of blobs, told by no single pixel
    batch = (noise, mask)
    module = SegmentationModule(
        UNet(num_classes=3, base_channels=8, depth=2),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        spec=SPEC,
    )
    trainer = tiny_trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)

    trainer.fit(module, loader(batch), loader(batch))

    assert trainer.callback_metrics["val/miou_with_background"] > 0.9


def test_a_validation_that_was_broken_off_does_not_count_twice(tmp_path):
    """A signal may end one, and another one follow."""
    module = tiny_module()
    trainer = tiny_trainer(tmp_path)
    batches = loader(random_batch(seed=1), random_batch(seed=2))
    update = module.confusion.update
    calls = []

    def failing(prediction, mask):
        calls.append(1)
        if len(calls) == 2:
            raise KeyError
        update(prediction, mask)

    module.confusion.update = failing
    with pytest.raises(KeyError):
        trainer.validate(module, batches, verbose=False)
    pixels = []
    compute = module.confusion.compute
    module.confusion.compute = lambda: pixels.append(int(compute().sum())) or compute()
    tiny_trainer(tmp_path).validate(module, batches, verbose=False)
    assert pixels == [2 * 2 * 16 * 16]
