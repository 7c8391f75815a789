"""Hydra's door to `cocoseg.sweeps.search`: `hydra/sweeper=cocoseg`, which conf/sweep/ chooses.

Hydra imports this file whenever a program starts, so it imports next to nothing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class CocosegSweeperConf:
    _target_: str = "hydra_plugins.cocoseg_sweeper.sweeper.CocosegSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="cocoseg", node=CocosegSweeperConf, provider="cocoseg"
)


class CocosegSweeper(Sweeper):
    """Optuna proposes, Hydra composes and launches; the `sweep` settings say what to search."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from cocoseg.cli import resolve_config
        from cocoseg.errors import report_errors

        with report_errors():
            from cocoseg.sweeps.search import open_sweep, run_sweep  # import Optuna, which may be missing

            sweep_dir = Path(self.config.hydra.sweep.dir)
            sweep = open_sweep(
                resolve_config(_without_hydra(self.config)),
                sweep_dir,
                arguments,
                self.launch,
                parallel=self.parallel(),
                config_loader=self.hydra_context.config_loader,
            )
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")  # as Hydra's own sweeper does
            failed = run_sweep(sweep)
        if failed:
            sys.exit(1)

    def launch(self, jobs: Sequence[Sequence[str]], first: int, limit: float | None) -> Any:
        """Run jobs side by side by a launcher of their own.

        Args:
            jobs: overrides of each job.
            first: number of the first one.
            limit: seconds of the longest one. Hydra's interface has no argument for it, but settings of a
                launcher may interpolate `trainer.max_time`, as the time limit of Slurm does.
        """
        from hydra.core.plugins import Plugins

        from cocoseg.durations import as_duration

        if limit is not None:
            with open_dict(self.config.trainer):  # the key may have been deleted
                self.config.trainer.max_time = as_duration(limit)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        return launcher.launch(jobs, initial_job_idx=first)

    def parallel(self) -> int:
        """Number of jobs that the launcher runs side by side."""
        launcher = self.config.hydra.launcher
        if "array_parallelism" in launcher:
            return int(launcher.array_parallelism)
        if "n_jobs" not in launcher:
            return 1
        from cocoseg.sweeps.launching import count_side_by_side

        return count_side_by_side(launcher.n_jobs)


def _without_hydra(config: DictConfig) -> DictConfig:
    """The settings of the program alone."""
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    return config
