"""Hydra's way to `cocoseg.sweeping`: `hydra/sweeper=cocoseg`, which conf/sweep/ chooses.

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
    """Optuna proposes, Hydra composes and launches; what to search stands in the `sweep` settings."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from cocoseg.cli import as_dataclasses
        from cocoseg.errors import report_errors

        with report_errors():
            from cocoseg.sweeping import sweep  # imports Optuna, which may be missing

            config = as_dataclasses(_of_the_task(self.config))
            sweep_dir = Path(self.config.hydra.sweep.dir)
            sweep_dir.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
            failed = sweep(
                config.sweep,
                sweep_dir,
                arguments,
                self.launch,
                parallel=self.parallel(),
                seed=config.seed,
                max_time=config.trainer.get("max_time"),
                resumable=config.ckpt_path is None,
                config_loader=self.hydra_context.config_loader,
            )
        if failed:
            sys.exit(1)

    def launch(self, jobs: Sequence[Sequence[str]], first: int) -> Any:
        """Run jobs; the launcher is made anew, for its settings may follow the jobs' time limit."""
        from hydra.core.plugins import Plugins

        key = "trainer.max_time="
        limits = [item.removeprefix(key) for job in jobs for item in job if item.startswith(key)]
        if limits:
            with open_dict(self.config.trainer):  # it may have been left out
                self.config.trainer.max_time = max(limits)  # all are written alike
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        return launcher.launch(jobs, initial_job_idx=first)

    def parallel(self) -> int:
        """Jobs that the launcher runs side by side."""
        launcher = self.config.hydra.launcher
        if "array_parallelism" in launcher:
            return int(launcher.array_parallelism)
        if "n_jobs" not in launcher:
            return 1
        from cocoseg.slots import jobs_side_by_side

        return jobs_side_by_side(launcher.n_jobs)


def _of_the_task(config: DictConfig) -> DictConfig:
    """The configuration without Hydra's own."""
    config = config.copy()
    with open_dict(config):
        del config["hydra"]
    return config
