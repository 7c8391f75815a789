"""Training against a clock that only networks and savings move, so that every second is known."""

import itertools
import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from cocoseg.budget import budget as budget_module
from cocoseg.budget import pacing
from cocoseg.budget.budget import END, GUESS_MARGIN, Budget
from cocoseg.budget.lightning_internals import NEVER
from cocoseg.budget.pacing import KeepBudget, is_paced, trainer_settings
from cocoseg.budget.schedule import ScheduleRate, rate
from cocoseg.config import BudgetConfig, Config, ScheduleConfig
from cocoseg.training import checkpoints
from cocoseg.training.checkpoints import BestCheckpoint, LastCheckpoint, WholeCheckpointIO
from tiny import Reads, loader, random_batch, tiny_module, tiny_trainer

STEP, BATCH, SAVE = 1.0, 0.5, 0.25  # seconds of a training step, a batch of validation, a checkpoint


class Run:
    """A training on a clock of its own."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, limit: float | None, **more: Any):
        self.now = 0.0
        for module in (budget_module, checkpoints, pacing):
            patch.setattr(module, "now", lambda: self.now)
        self.folder, self.more = folder, more
        self.budget = Budget(limit, began=0.0)
        self.validated: list[tuple[int, float, int]] = []  # step, time at the end, batches
        self.rates: list[tuple[float, float]] = []  # progress, learning rate
        self.saved: list[float] = []
        self.step_seconds = more.pop("step", STEP)
        self.batch_seconds = more.pop("batch", BATCH)

    def fit(
        self, *, val_batches: int = 4, train_batches: int = 10, ckpt_path: Path | None = None
    ) -> L.Trainer:
        net = Reads()
        net.register_forward_hook(self._pass)
        self.module = tiny_module(net, lr=0.1)
        share = self.more.pop("validation_share", 0.1)
        settings = Config(
            trainer={
                "max_time": None,  # the budget decides, whatever is written here
                "max_epochs": -1,
                **self.more,
            },
            budget=BudgetConfig(validation_share=share),
        )
        every = timedelta(seconds=20)
        self.keep = KeepBudget(self.budget, settings)
        watcher = Watcher(self)
        # `watcher` comes last, when everything else has seen the hook.
        callbacks = [
            self.keep,
            ScheduleRate(ScheduleConfig(), self.budget),
            BestCheckpoint(self.folder, export=self._export),
            LastCheckpoint(self.folder, every, self.budget),
            watcher,
        ]
        trainer = tiny_trainer(
            self.folder,
            callbacks=callbacks,
            enable_checkpointing=True,
            plugins=[SlowIO(self)],
            **{**trainer_settings(settings, self.budget), "num_sanity_val_steps": 2, "log_every_n_steps": 1},
        )
        train = loader(*(random_batch(seed=i) for i in range(train_batches)))
        val = loader(*(random_batch(seed=i) for i in range(val_batches)))
        trainer.fit(self.module, train, val, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    def _export(self, checkpoint: Path) -> None:
        with self.budget.saving("export"):
            self._pass_by(SAVE)

    def _pass(self, net: nn.Module, *_: Any) -> None:
        self._pass_by(self.step_seconds if net.training else self.batch_seconds)

    def _pass_by(self, seconds: float) -> None:
        self.now += seconds


class Watcher(L.Callback):
    def __init__(self, run: Run):
        self.run = run

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.run.rates.append((self.run.budget.progress, trainer.optimizers[0].param_groups[0]["lr"]))

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.run.validated.append((trainer.global_step, self.run.now, self.run.keep._batches))


class SlowIO(WholeCheckpointIO):
    def __init__(self, run: Run):
        super().__init__(run.budget)
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        with self.budget.saving("checkpoint"):
            self.run._pass_by(SAVE)
        self.run.saved.append(self.run.now)
        super().save_checkpoint(checkpoint, path, storage_options)


def test_ends_just_before_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, 75.0)
    trainer = run.fit()
    assert 75 - STEP - 1.0 - END < run.now <= 75 - END
    assert run.validated[-1][0] == trainer.global_step  # the last weights were validated
    assert run.validated[-1][2] == 4
    assert (tmp_path / "last.ckpt").is_file()
    assert (tmp_path / "best.ckpt").is_file()


def test_validation_gets_its_share_and_comes_more_often_near_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, 600.0, step=6.0)
    run.fit()
    times = [time for _, time, _ in run.validated]
    assert len(times) > 8
    for number, time in enumerate(times[:-1], start=1):
        assert number * 4 * BATCH <= 0.1 * time
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[:-1])]
    assert gaps[0] > 2 * gaps[-1]
    # the first half of the run has fewer of them than the second
    assert sum(time < 300 for time in times) < len(times) / 3


def test_a_validation_that_does_not_fit_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, monkeypatch, 60.0, batch=3.0)
    with caplog.at_level(logging.WARNING, logger="cocoseg"):
        run.fit(val_batches=20)
    assert run.now <= 60
    assert run.now > 60 - 3 - 2 * END
    assert 3 <= run.validated[-1][2] <= 5
    assert f"validated on {run.validated[-1][2]} of 20 batches" in caplog.text
    assert run.module.scores is not None
    # A resumed run must not take the part for the whole.
    assert run.budget.expected["validation"] == pytest.approx(GUESS_MARGIN * 20 * 3)


@pytest.mark.parametrize(
    ("steps", "batches", "val_batches", "validated"),
    [
        ([1, 1, 5], [BATCH], 4, 4),
        ([1], [0.5] * 6 + [4], 20, 7),  # two of them in the sanity check; no time for another one of 4 s
    ],
)
def test_the_next_step_or_batch_may_take_as_long_as_the_slowest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[float],
    batches: list[float],
    val_batches: int,
    validated: int,
) -> None:
    run = Run(tmp_path, monkeypatch, 50.0)
    times = {True: itertools.cycle(steps), False: itertools.cycle(batches)}
    monkeypatch.setattr(run, "_pass", lambda net, *_: run._pass_by(next(times[net.training])))
    run.fit(val_batches=val_batches)
    assert run.now <= 50 - END
    assert run.validated[-1][2] == validated


def test_the_rate_comes_down_to_zero_in_a_straight_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, 60.0)
    run.fit()
    progress = [progress for progress, _ in run.rates]
    assert progress == sorted(progress)
    assert progress[0] == 0
    assert 0.94 < progress[-1] <= 1
    for share, used in run.rates:
        assert used == pytest.approx(0.1 * rate(ScheduleConfig(), share))
    assert run.rates[-1][1] < 0.06 * 0.1


def test_a_killed_run_goes_on_with_the_time_it_had_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    first = Run(tmp_path, monkeypatch, 100.0)
    pass_by = first._pass_by

    def killed_at_70(seconds: float) -> None:
        pass_by(seconds)
        if first.now > 70:
            raise Kill

    monkeypatch.setattr(first, "_pass_by", killed_at_70)
    with pytest.raises(Kill):
        first.fit()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    ledger = first.budget.to_dict()
    assert saved["budget"]["used"] <= ledger["used"]

    second = Run(tmp_path, monkeypatch, 100.0)
    second.budget.resume(ledger)
    second.budget.resume(saved["budget"])  # older than the ledger
    second.fit(ckpt_path=tmp_path / "last.ckpt")
    used_before = ledger["used"]
    assert used_before + second.now <= 100 - END
    assert used_before + second.now > 100 - STEP - 1 - 2 * END
    assert second.rates[0][0] >= first.rates[-1][0]  # the schedule goes on, nothing is repeated
    assert second.rates[0][1] <= first.rates[-1][1]


def test_checkpoints_come_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, 200.0, validation_share=0.01, step=4.0)
    run.fit()
    gaps = [later - earlier for earlier, later in itertools.pairwise(run.saved)]
    assert len(run.saved) >= 8
    assert max(gaps) <= 20 + run.step_seconds + SAVE + 4 * BATCH


def test_nothing_depends_on_the_clock_without_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    for seconds in (1.0, 50.0):
        run = Run(tmp_path / str(seconds), monkeypatch, None, max_epochs=3, step=seconds)
        trainer = run.fit()
        rates.append(run.rates)
        assert trainer.global_step == 30
        assert [step for step, _, _ in run.validated] == [10, 20, 30]
    assert rates[0] == rates[1]
    assert [progress for progress, _ in rates[0]] == pytest.approx([i / 30 for i in range(30)])


def test_an_interval_of_epochs_does_not_keep_the_last_weights_from_being_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, 40.0, check_val_every_n_epoch=4)
    trainer = run.fit()
    assert run.validated[-1][0] == trainer.global_step
    assert run.now <= 40


def test_scores_on_a_part_of_the_data_replace_none_on_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch, 100.0, batch=1.0, validation_share=0.5)
    monkeypatch.setattr(run.budget, "fits_validation_batch", lambda seconds: run.now < 50)
    run.fit()
    whole = [step for step, _, batches in run.validated if batches == 4]
    assert run.validated[-1][2] < 4
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] in whole


@pytest.mark.parametrize("end", [{"max_epochs": 3}, {"max_steps": 26, "max_epochs": -1}])
def test_the_last_step_is_validated_whatever_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: dict[str, int]
) -> None:
    run = Run(tmp_path, monkeypatch, 3600.0, **end)
    trainer = run.fit()
    assert trainer.global_step in (26, 30)
    assert run.validated[-1][0] == trainer.global_step


def test_slow_saving_is_planned_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SAVE", 4.0)
    run = Run(tmp_path, monkeypatch, 100.0)
    run.fit()
    # The reserve holds three savings; two of them come only where the last validation is the best one.
    assert 100 - STEP - 1.0 - END - 1.1 * 3 * SAVE < run.now <= 100 - END


def test_saving_is_part_of_the_share_of_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SAVE", 2.0)
    run = Run(tmp_path, monkeypatch, 600.0, step=10.0)  # seconds, so that there are few steps
    run.fit()
    spent = run.budget.spent
    periodic, last = 600 / 20 * 2.0, 4 * BATCH + 3 * 2.0  # seconds: of `last.ckpt`, of the end
    assert spent["validating"] + spent["saving"] <= max(0.1 * 600, periodic) + last


def test_lightnings_own_rule_to_validate_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, 60.0, val_check_interval=7)
    trainer = run.fit()
    steps = [step for step, _, _ in run.validated]
    assert steps[:3] == [7, 14, 21]
    assert steps[-1] == trainer.global_step
    assert run.now <= 60


@pytest.mark.parametrize(
    ("settings", "paced", "expected"),
    [
        ({}, False, {"val_check_interval": None, "check_val_every_n_epoch": 1}),  # ~trainer.max_time
        ({"max_time": "x"}, True, {"val_check_interval": NEVER, "check_val_every_n_epoch": None}),
        ({"max_time": None}, False, {"val_check_interval": None, "check_val_every_n_epoch": 1}),
        (
            {"max_time": "x", "check_val_every_n_epoch": 2},
            False,
            {"val_check_interval": None, "check_val_every_n_epoch": 2},
        ),
        (
            {"max_time": "x", "val_check_interval": 0.5},
            False,
            {"val_check_interval": 0.5, "check_val_every_n_epoch": 1},
        ),
        (
            {"max_time": "x", "val_check_interval": 50},
            False,
            {"val_check_interval": 50, "check_val_every_n_epoch": None},
        ),
    ],
)
def test_who_decides_when_to_validate(
    settings: dict[str, Any], paced: bool, expected: dict[str, Any]
) -> None:
    config = Config(trainer={"val_check_interval": None, "check_val_every_n_epoch": None, **settings})
    budget = Budget(None if config.trainer.get("max_time") is None else 60.0)
    assert is_paced(config, budget) is paced
    assert trainer_settings(config, budget) == {
        **expected,
        "use_distributed_sampler": False,
        **({} if budget.limit is None else {"benchmark": False}),
    }


@pytest.mark.parametrize(
    ("limit", "chosen", "expected"),
    [(60.0, None, False), (3600.0, None, None), (None, None, None), (60.0, True, True)],
)
def test_a_short_run_does_not_try_algorithms(limit, chosen, expected):
    config = Config(trainer={"max_time": None, "benchmark": chosen})
    assert trainer_settings(config, Budget(limit))["benchmark"] is expected


def test_the_time_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, 40.0)
    trainer = run.fit()
    spent = run.budget.spent
    assert spent["starting"] == 2 * BATCH
    assert spent["computing"] == trainer.global_step * STEP
    assert spent["loading"] == 0
    assert sum(spent.values()) == pytest.approx(run.now)
    logged = {key: float(value) for key, value in trainer.logged_metrics.items()}
    assert logged["train/speed_images_per_second"] == 2 / STEP
    assert logged["train/speed_waiting_share"] == 0
    shares = {key: value for key, value in logged.items() if key.startswith("wall_clock/share_")}
    assert shares.keys() == {f"wall_clock/share_{kind}" for kind in spent}
    assert sum(shares.values()) == pytest.approx(1)
    assert {"wall_clock/elapsed", "wall_clock/progress", "train/lr"} <= logged.keys()


def test_the_share_of_the_steps_that_waits_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wait does not count: loaders begin in it."""
    run = Run(tmp_path, monkeypatch, None, max_epochs=1)
    fetch = random_batch

    class Slow(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            run.now += 3 * STEP if number else 100
            return fetch(seed=number)

    monkeypatch.setattr(
        "test_pacing.loader", lambda *batches: torch.utils.data.DataLoader(Slow(), batch_size=None)
    )
    trainer = run.fit()
    assert trainer.logged_metrics["train/speed_waiting_share"].item() == pytest.approx(12 / 17)
    assert trainer.logged_metrics["train/speed_images_per_second"].item() == pytest.approx(2 * 5 / 17)
