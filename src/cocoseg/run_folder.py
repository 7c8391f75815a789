"""The folder that a program writes its results to: opened by one process at a time, refused where it holds
the files of something else, and changed by nothing before all checks have passed. No torch.

Hydra by itself writes `.hydra/` and a log before any of our code runs. conf/base.yaml switches that off, and
`RunFolder.begin` writes both as Hydra does.
"""

import atexit
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cocoseg.errors import CocosegError, one_line
from cocoseg.files import from_here, remove_parts, write_bytes, write_json

# Names of files in a run folder.
CONFIG, LEDGER, OUTCOME, METRICS = "config.yaml", "budget.json", "outcome.json", "metrics.json"
CHECKPOINTS, HYDRA, LOCK = "checkpoints", ".hydra", ".lock"

PATIENCE = 15.0  # seconds to wait for a lock: loaders outlive a killed process by some, and hold its lock
LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's own

FINISHED, PRUNED, STOPPED, FAILED, RUNNING = "finished", "pruned", "stopped", "failed", "running"


@dataclass(frozen=True)
class Outcome:
    """The end of a run, as far as it is known.

    Attributes:
        state: finished; pruned (ended early by a sweep); stopped by a signal; failed.
        reason: one sentence; empty where a run was not ended early.
        miou: validation mIoU of the exported model; None without a validation.
        epochs, steps: trained by all attempts at the run.
    """

    state: str
    reason: str = ""
    miou: float | None = None
    epochs: int | None = None
    steps: int | None = None

    def write(self, folder: Path) -> None:
        write_json(folder / OUTCOME, vars(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None where the run goes on, was killed, or the file is damaged."""
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads((folder / OUTCOME).read_bytes())
            known = {field.name for field in fields(cls)}
            return cls(**{key: value for key, value in content.items() if key in known})
        return None


class RunFolder:
    """A folder that this process holds the lock of.

    Attributes:
        path: absolute.
        has_begun: this program has written to it.
    """

    def __init__(self, path: Path, config: DictConfig, program: str):
        self.path = path
        self.has_begun = False
        self._config, self._program = config, program
        # Messages from before `begin` wait here for the log file.
        self._log: logging.Handler = MemoryHandler(
            10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False
        )
        logging.getLogger().addHandler(self._log)

    def begin(self) -> None:
        """Describe the run that begins: `config.yaml`, `.hydra/` and the log file.

        To be called once all checks have passed, before anything else is written here.
        """
        if self.has_begun:
            return
        self.has_begun = True
        text = OmegaConf.to_yaml(self._config, resolve=True)
        write_bytes(self.path / CONFIG, f"program: {self._program}\n{text}".encode())
        (self.path / OUTCOME).unlink(missing_ok=True)
        _write_hydra_files(self.path, self._config)
        self._open_log()

    def close(self) -> None:
        logging.getLogger().removeHandler(self._log)
        self._log.close()

    def _open_log(self) -> None:
        file = logging.FileHandler(self.path / _log_name(), encoding="utf-8")
        file.setFormatter(logging.Formatter(LOG_FORMAT))
        self._log.setTarget(file)
        self._log.flush()
        logging.getLogger().removeHandler(self._log)
        logging.getLogger().addHandler(file)
        self._log = file


def _log_name() -> str:
    return f"{HydraConfig.get().job.name}.log"


def record_refused_job(error: BaseException) -> None:
    """Describe a job of a sweep that ended before it began, so that the leaderboard lists it with the reason.

    The sweep owns the job's folder: nothing of anybody else's is there. A single run, which has no number,
    leaves its folder as it was.
    """
    if OmegaConf.is_missing(HydraConfig.get().job, "num"):
        return
    folder = current_folder()
    if not (folder / CONFIG).exists() and not (folder / OUTCOME).exists():
        with suppress(CocosegError):
            _write_hydra_files(folder)
            outcome_of(error).write(folder)


def current_folder() -> Path:
    """The run folder that Hydra has composed."""
    return Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def open_folder(
    config: DictConfig, program: str, *, key: str, overwrite: bool = True, wait: float = 0.0
) -> Iterator[RunFolder]:
    """Lock the run folder for the block, and write into it how the block ended where it failed.

    Args:
        config: as composed, for `config.yaml`.
        program: train, prepare, evaluate or predict.
        key: of the configuration, that names the folder; for messages.
        overwrite: an earlier run of the same program may be there.
        wait: seconds to wait for another process to leave the folder.

    Raises:
        CocosegError: the folder holds an earlier run or the files of another program, or another process
            writes to it.
    """
    path = current_folder()
    require_free(path, program, key=key, overwrite=overwrite)
    with ExitStack() as stack:
        stack.enter_context(locked(path, key=key, wait=wait))
        require_free(path, program, key=key, overwrite=overwrite)  # another process may have been here
        remove_parts(path)
        folder = RunFolder(path, config, program)
        stack.callback(folder.close)
        with _record_failure(folder):
            yield folder


def require_free(folder: Path, program: str, *, key: str, overwrite: bool) -> None:
    """Raise CocosegError where `program` would overwrite files of another program or of an earlier run."""
    shown = from_here(folder)
    if program != "train" and any((folder / name).exists() for name in (CHECKPOINTS, LEDGER)):
        raise CocosegError(
            f"{key}: {shown} is the folder of a training, whose files would be overwritten; "
            "name another folder"
        )
    if not (folder / CONFIG).exists():
        return
    before = _program_of(folder / CONFIG)
    if before != program and (program, before) != ("train", None):
        raise CocosegError(f"{key}: {shown} holds a {CONFIG} of another program; name another folder")
    if not overwrite:
        raise CocosegError(
            f"{key}: {shown} already holds a run; name another folder, or resume that run by resume=auto"
        )


@contextmanager
def locked(folder: Path, *, key: str, wait: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a folder for the block, which leaves nothing where it writes nothing.

    Raises:
        CocosegError: another one is still there after `wait` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise CocosegError(
            f"{key}: another process writes to {from_here(folder)}; wait for it, or name another folder"
        ) from error
    try:
        yield
    finally:
        if [file.name for file in folder.glob("*")] == [LOCK]:
            (folder / LOCK).unlink()
        lock.release()


class RemoveEmptyFolder(Callback):
    """Hydra callback: a refused command leaves no folder behind that was made for it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _remove_empty_at_exit(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _remove_empty_at_exit(config.hydra.sweep.dir)


@contextmanager
def _record_failure(folder: RunFolder) -> Iterator[None]:
    """Write `outcome.json` where the block raises, unless the run itself has written one."""
    try:
        yield
    except BaseException as error:
        if folder.has_begun and not (folder.path / OUTCOME).exists():
            with suppress(CocosegError):  # a full disk may be what ended the run
                outcome_of(error).write(folder.path)
        raise


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a run that an exception ended."""
    if isinstance(error, KeyboardInterrupt):
        return Outcome(STOPPED, "SIGINT")
    if isinstance(error, SystemExit):
        return Outcome(STOPPED, "by a signal")
    return Outcome(FAILED, one_line(error) or f"{type(error).__name__}: {error}")


def _write_hydra_files(folder: Path, config: DictConfig | None = None) -> None:
    """`.hydra/config.yaml`, `hydra.yaml` and `overrides.yaml`, as `hydra.core.utils.run_job` writes them."""
    hydra = HydraConfig.instance().cfg
    contents = {"hydra.yaml": OmegaConf.masked_copy(hydra, "hydra")}
    contents["overrides.yaml"] = hydra.hydra.overrides.task
    if config is not None:
        contents["config.yaml"] = config
    for name, content in contents.items():
        write_bytes(folder / HYDRA / name, OmegaConf.to_yaml(content).encode())


def _remove_empty_at_exit(folder: str) -> None:
    path = Path(folder).absolute()
    new = [parent for parent in (path, *path.parents) if not parent.exists()]

    def remove() -> None:
        with suppress(OSError):  # the first one that is not empty ends it
            for created in new:
                created.rmdir()

    atexit.register(remove)  # Hydra's `on_job_end` is left out where a program exits


def _program_of(config_file: Path) -> str | None:
    """The program that wrote a `config.yaml`; None for one of another origin, or of an older version."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(config_file), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return None
    return content.get("program") if isinstance(content, Mapping) else None
