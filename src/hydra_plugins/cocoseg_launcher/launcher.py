"""Hydra's door to `cocoseg.sweeps.launching`: `hydra/launcher=local`, jobs side by side on one machine.

Hydra imports this file whenever a program starts, so it imports next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LocalLauncherConf:
    _target_: str = "hydra_plugins.cocoseg_launcher.launcher.LocalLauncher"
    n_jobs: int | None = None  # at a time; null: one per GPU, or one. GPUs that are left over are divided


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConf, provider="cocoseg")


class LocalLauncher(Launcher):
    """Every job in a process of its own, with a GPU and a share of the processor cores."""

    def __init__(self, n_jobs: int | None) -> None:
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from cocoseg.sweeps.launching import launch

        return launch(
            self.config, self.hydra_context.config_loader, job_overrides, initial_job_idx, self.n_jobs
        )
