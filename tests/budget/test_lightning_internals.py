"""Private parts of Lightning have the effect that the budget needs."""

from collections.abc import Callable
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from cocoseg.budget.lightning_internals import (
    NEVER,
    batches_of_epoch,
    end_validation,
    ignore_sigterm,
    validate_after_step,
)
from tiny import loader, random_batch, tiny_module, tiny_trainer


@pytest.fixture
def fit(tmp_path) -> Callable[..., SimpleNamespace]:
    """Trains for five steps in each of two epochs; the steps and the number of batches of validations."""

    def run(options: dict[str, object], **hooks: Callable[..., None]) -> SimpleNamespace:
        seen = SimpleNamespace(validated=[], batches=0)

        def count(*_: object) -> None:
            seen.batches += 1

        def note(trainer: L.Trainer, *_: object) -> None:
            seen.validated.append(trainer.global_step)

        watch = LambdaCallback(on_validation_batch_end=count, on_validation_end=note)
        trainer = tiny_trainer(tmp_path, max_epochs=2, callbacks=[LambdaCallback(**hooks), watch], **options)
        batches = [random_batch(seed=seed, images=1) for seed in range(5)]
        trainer.fit(tiny_module(), loader(*batches), loader(*batches[:3]))
        return seen

    return run


def test_validation_follows_the_steps_that_are_due(fit):
    def choose(trainer, *_):
        validate_after_step(trainer, due=trainer.global_step in (2, 7))

    seen = fit({"val_check_interval": NEVER, "check_val_every_n_epoch": None}, on_train_batch_end=choose)
    assert seen.validated == [2, 7]


@pytest.mark.parametrize("every", [None, 4])
def test_a_training_that_is_stopped_validates_at_once(fit, every):
    def stop(trainer, *_):
        if trainer.global_step == 2:
            trainer.should_stop = True
            validate_after_step(trainer, due=True)

    options = {"check_val_every_n_epoch": every, "val_check_interval": None if every else NEVER}
    assert fit(options, on_train_batch_end=stop).validated == [2]


def test_a_validation_ends_where_it_is_told_to(fit):
    def cut(trainer, module, batch, index, *_):
        if index == 1:
            end_validation()

    seen = fit({}, on_validation_batch_start=cut)
    assert seen.validated == [5, 10]
    assert seen.batches == 2


def test_batches_of_an_epoch_are_counted(fit):
    counts = []
    fit({}, on_train_batch_end=lambda trainer, *_: counts.append(batches_of_epoch(trainer)))
    assert counts == [*range(5), *range(5)]


@pytest.mark.parametrize("ignored", [False, True])
def test_ranks_do_not_ask_each_other_for_sigterm(tmp_path, monkeypatch, ignored):
    asked = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *args, **options: asked.append(args))
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    trainer = tiny_trainer(tmp_path)
    if ignored:
        ignore_sigterm(trainer)
    with pytest.raises(StopIteration):
        trainer.fit_loop.epoch_loop.advance(iter(()))  # a step without data
    assert bool(asked) != ignored
