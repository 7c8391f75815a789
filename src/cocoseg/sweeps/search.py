"""Sweeps: Hydra composes the jobs, Optuna proposes them, and all of them fit one time limit. No torch."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from cocoseg.budget.budget import Budget, process_age
from cocoseg.budget.ledger import keep_ledger, read_ledger
from cocoseg.config import Config, SweepConfig
from cocoseg.durations import clock, in_seconds
from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.sweeps.rounds import END, SHORTEST, Launch, Sweep, plan_limit
from cocoseg.sweeps.space import split_overrides
from cocoseg.sweeps.study import JOURNAL, Study

log = logging.getLogger(__name__)

LEDGER = "sweep.json"  # time that all attempts at the sweep used


def open_sweep(
    config: Config,
    sweep_dir: Path,
    arguments: Sequence[str],
    launch: Launch,
    *,
    parallel: int,
    config_loader: Any,
) -> Sweep:
    """Check all settings of a sweep, and only then open its study, or the one of an earlier attempt.

    Args:
        config: settings of the multirun.
        sweep_dir: folder of the sweep, which this process owns; trial n runs in its subfolder n.
        arguments: overrides of the command line.
        launch: see `Sweep`.
        parallel: number of jobs that `launch` runs side by side.
        config_loader: Hydra's, which knows the options of a group.

    Raises:
        CocosegError: the settings contradict each other, or the time does not suffice.
    """
    settings = config.sweep
    total, max_time = in_seconds(settings.total_time), in_seconds(config.time_limit)
    parser = OverridesParser.create(config_loader=config_loader)
    overrides = parser.parse_overrides(list(arguments))
    extra = parser.parse_overrides([f"{key}={value}" for key, value in settings.space.items()])
    fixed, space = split_overrides(overrides, {one.get_key_element(): one for one in extra})
    if not any(override.key_or_group == "trainer.max_time" for override in overrides):
        max_time = None  # a preset's
    require_one_open(settings, has_total=total is not None, has_max_time=max_time is not None)
    settings.name = settings.name or sweep_dir.name
    if settings.method == "grid":
        settings.trials = len(space.grid())

    budget = Budget(total, began=time.monotonic() - process_age())
    budget.resume(read_ledger(sweep_dir / LEDGER))
    if total is not None and not (sweep_dir / JOURNAL).exists():
        limit = plan_limit(budget.left() - END, parallel, settings.trials, max_time)
        if limit < SHORTEST:
            raise CocosegError(
                f"sweep.total_time: {clock(total)} leave {max(0, limit):.0f} s to each job; they need "
                f"{SHORTEST:.0f} s at least: fewer trials, or more time"
            )

    sweep_dir.mkdir(parents=True, exist_ok=True)
    study = Study(sweep_dir, settings.name, settings.method, space, config.seed)
    if total is not None and study.limit is None:
        trials = settings.trials and max(1, settings.trials - study.finished())
        study.limit = max(SHORTEST, plan_limit(budget.left() - END, parallel, trials, max_time))
    if config.ckpt_path is None:
        fixed.append("resume=auto")
    return Sweep(settings, study, fixed, launch, parallel, budget, study.limit)


def run_sweep(sweep: Sweep) -> int:
    """Run a sweep until its trials are done or its time is up. Returns the number of failed trials."""
    study, budget = sweep.study, sweep.budget
    if study.started():
        log.info("%s: resumed with %d trials", from_here(study.sweep_dir), study.started())
    with keep_ledger(study.sweep_dir / LEDGER, budget):
        sweep.run()
        budget.finished = True
    best = study.best()
    if best is not None:
        log.info("best: trial %d with mIoU %.3f, %s", best[0], best[1], from_here(study.folder(best[0])))
    if budget.limit is not None:
        log.info("sweep: %s of %s", clock(budget.used()), clock(budget.limit))
    return sweep.failed


def require_one_open(settings: SweepConfig, *, has_total: bool, has_max_time: bool) -> None:
    """Require that exactly one of the number of trials and the time of each follows from the total time."""
    is_grid, trials = settings.method == "grid", settings.trials
    if is_grid and trials is not None:
        raise CocosegError("sweep.trials: a grid has as many as there are points; leave it out")
    if not is_grid and trials is None and not (has_total and has_max_time):
        raise CocosegError(
            "sweep.trials is not set; or give sweep.total_time and trainer.max_time, from which it follows"
        )
    if has_total and has_max_time and (is_grid or trials is not None):
        raise CocosegError(
            "sweep.total_time: with a number of trials, trainer.max_time follows from it; leave one out"
        )
