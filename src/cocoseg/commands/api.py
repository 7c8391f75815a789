"""`cocoseg.train`: a training as by train.py, inside a Python process such as a notebook."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus, run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from cocoseg.cli import INTERRUPTED, hydra_errors_in_one_line, readable
from cocoseg.commands.train import main
from cocoseg.config import Config, conf_folder
from cocoseg.config_help import options
from cocoseg.durations import restart
from cocoseg.errors import CocosegError
from cocoseg.files import read_json
from cocoseg.overrides import check_overrides
from cocoseg.rank_environment import may_be_several
from cocoseg.run_folder import FINISHED, METRICS, MODEL, Console, Outcome, make_folder
from cocoseg.sweeps.multirun import isolate_job


@dataclass(frozen=True)
class TrainingResult:
    """A training that has ended.

    Attributes:
        folder, model: run folder, and in it the file for `cocoseg.load_model`.
        miou: validation mIoU without background; None without a validation.
        iou: of each class by name, background included; None for a class that validation lacks.
        epochs, steps: trained by all attempts at the run.
    """

    folder: Path
    model: Path
    miou: float | None
    iou: dict[str, float | None]
    epochs: int | None
    steps: int | None


def train(overrides: Sequence[str] = (), *, run_dir: str | Path | None = None) -> TrainingResult:
    """Train as train.py does, in this process; its messages go to stdout.

    The time limit counts from this call.

    Args:
        overrides: settings as on the command line, `["experiment=demo", "trainer.max_epochs=3"]`.
        run_dir: folder of the run; None for one named by the time.

    Raises:
        CocosegError: bad input. If training has not begun, no new folder is left behind.
        TrainingError: the loss is NaN, or memory runs out.
        KeyboardInterrupt: Ctrl-C has ended training after a step; the model so far is exported.
        SystemExit: another signal has done so.
    """
    restart()
    overrides = [overrides] if isinstance(overrides, str) else list(overrides)
    config, context = _compose(overrides if run_dir is None else [*overrides, f"run_dir={run_dir}"])
    remove_if_empty = make_folder(config, "hydra.run.dir", "run_dir")
    try:
        with _messages_on_stdout(), isolate_job():
            job = run_job(unwrap(main), config, "hydra.run.dir", None, context, configure_logging=False)
    except SystemExit as end:  # a signal
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from end
        raise
    finally:
        remove_if_empty()
    if job.status == JobStatus.FAILED:
        raise job._return_value  # `return_value` prints before it raises
    folder = Path(config.hydra.runtime.output_dir)
    outcome = Outcome.read(folder) or Outcome(FINISHED)
    iou = {} if outcome.miou is None else read_json(folder / METRICS)["iou"]
    return TrainingResult(folder, folder / MODEL, outcome.miou, iou, outcome.epochs, outcome.steps)


def _compose(overrides: Sequence[str]) -> tuple[DictConfig, HydraContext]:
    """Compose and check the overrides of a run, with Hydra's own settings in it."""
    conf = conf_folder()
    overrides = readable(overrides, "train")
    with hydra_errors_in_one_line(Config, [conf]):
        check_overrides(overrides, Config, options([conf]), [conf])
        own = GlobalHydra.instance()
        outer, own.hydra = own.hydra, None  # the caller may be a job of Hydra's
        try:
            with initialize_config_dir(str(conf), job_name="train", version_base="1.3"):
                config = compose("train", overrides, return_hydra_config=True)
                context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
        finally:
            GlobalHydra.instance().hydra = outer
        trainer: Any = OmegaConf.to_container(config.trainer, resolve=True)
    if config.hydra.mode == RunMode.MULTIRUN:
        raise CocosegError("sweep: cocoseg.train is one training; search with python train.py sweep=…")
    if may_be_several(trainer):
        raise CocosegError("trainer.devices: cocoseg.train uses one device; python train.py uses several")
    return config, context


@contextmanager
def _messages_on_stdout() -> Iterator[None]:
    """Show messages as train.py does, then leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [Console(sys.stdout)]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
