"""Hydra's plugins for `cocoseg.sweeps`: `hydra/sweeper=cocoseg` of conf/sweep/, and `hydra/launcher=local`.

Hydra imports this file whenever a program starts, so it imports next to nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

_store = ConfigStore.instance().store
_store(group="hydra/sweeper", name="cocoseg", node={"_target_": f"{__name__}.CocosegSweeper"})
# n_jobs run at a time; null: one per GPU, or one without GPUs. GPUs beyond that are divided among them.
_store(group="hydra/launcher", name="local", node={"_target_": f"{__name__}.LocalLauncher", "n_jobs": None})


class LocalLauncher(Launcher):
    """Every job in a process of its own, with a GPU and a share of the processor cores."""

    config: DictConfig

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config_loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from cocoseg.sweeps.launching import launch

        return launch(self.config, self.config_loader, job_overrides, initial_job_idx, self.n_jobs)


class CocosegSweeper(Sweeper):
    """Optuna proposes, Hydra composes and launches; the `sweep` settings say what to search."""

    config: DictConfig
    hydra_context: HydraContext

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        from cocoseg.cli import resolve_config
        from cocoseg.config import Config
        from cocoseg.errors import CocosegError, report_errors

        with report_errors():
            try:
                from cocoseg.sweeps.search import open_sweep
            except ImportError as error:
                raise CocosegError("sweep: Optuna is not installed; pip install 'optuna>=5,<6'") from error
            sweep_dir = Path(self.config.hydra.sweep.dir)
            own = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
            sweep = open_sweep(
                resolve_config(own, Config),
                sweep_dir,
                arguments,
                self.launch,
                side_by_side=self.side_by_side(),
                config_loader=self.hydra_context.config_loader,
            )
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")  # as Hydra's own sweeper does
            failed = sweep.run()
        if failed:
            sys.exit(1)

    def launch(self, jobs: Sequence[Sequence[str]], first: int, limit: float | None) -> Any:
        """Run jobs side by side by the launcher that is configured.

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

    def side_by_side(self) -> int:
        """Number of jobs that the launcher runs side by side."""
        from cocoseg.sweeps.launching import count_side_by_side

        launcher = self.config.hydra.launcher
        if "array_parallelism" in launcher:
            return int(launcher.array_parallelism)
        return count_side_by_side(launcher.n_jobs) if "n_jobs" in launcher else 1
