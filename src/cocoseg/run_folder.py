"""The folder that a program writes its results to. No torch.

One process at a time opens it. It is refused where it holds the files of something else, and stays unchanged
until all checks have passed. Hydra by itself writes `.hydra/` and a log before any of our code runs.
conf/base.yaml switches that off, and `RunFolder.begin` writes both as Hydra does.
"""

import atexit
import copy
import itertools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Self

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from cocoseg.errors import CocosegError, one_line, printable, report_errors
from cocoseg.files import (
    from_here,
    locked,
    make_folders,
    read_json,
    remove_parts,
    write_bytes,
    write_json,
    writing_to,
)

# Names of files in a run folder.
CONFIG, LEDGER, OUTCOME, METRICS = "config.yaml", "budget.json", "outcome.json", "metrics.json"
MODEL, HYDRA, CHECKPOINTS = "segmentation_model.pth", ".hydra", "checkpoints"
BEST, LAST = "best.ckpt", "last.ckpt"  # names of files in CHECKPOINTS

TIME = "%H-%M-%S"  # format of `${now:…}` in the folder names of conf/
LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's own
PROGRAM = "program: "  # beginning of config.yaml; runs of version 0.1.0 do not have it

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

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """The outcome of a run that an exception ended."""
        if isinstance(error, KeyboardInterrupt):
            return cls(STOPPED, "SIGINT")
        if isinstance(error, SystemExit):
            return cls(STOPPED, "by a signal")
        return cls(FAILED, one_line(error) or printable(f"{type(error).__name__}: {error}"))

    def write(self, folder: Path) -> None:
        write_json(folder / OUTCOME, vars(self))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the outcome of a run; None where it goes on, was killed, or the file is damaged."""
        with suppress(OSError, ValueError):
            found = read_json(folder / OUTCOME, cls)
            return replace(found, state=printable(found.state), reason=printable(found.reason))
        return None


def _printable_name(value: Any) -> Any:
    return printable(str(value)) if isinstance(value, Path | Exception) else value


class Console(logging.StreamHandler):
    """Writes messages to stdout, see conf/base.yaml, and makes names in them printable."""

    fails = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, above the progress bar if there is one."""
        with tqdm.external_write_mode(self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Make names printable; a text that is given as such, like a table, keeps its lines."""
        args = record.args
        if isinstance(args, tuple):
            record = copy.copy(record)
            record.args = tuple(map(_printable_name, args))
        return "\n".join(printable(line) for line in super().format(record).split("\n"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's own name
        """Say once that messages are lost: a full disk or a closed pipe is no reason to end a run."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError | ValueError):
            super().handleError(record)
        elif not self.fails:
            self.fails = True
            where = getattr(self, "baseFilename", "stdout")
            with suppress(OSError, ValueError):
                print(f"warning: messages are lost, {where} can't be written: {error}", file=sys.stderr)


class LogFile(logging.FileHandler, Console):
    """Writes messages to the log of a run."""


class RunFolder:
    """A folder that this process holds the lock of.

    Attributes:
        path: absolute.
        has_begun: `begin` was called, so this program has written to it.
    """

    def __init__(self, path: Path, config: DictConfig, program: str):
        self.path = path
        self.has_begun = False
        self._config, self._program = config, program
        # Messages from before `begin` wait here for the log file.
        self._log = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        logging.getLogger().addHandler(self._log)

    def begin(self) -> None:
        """Describe the run that begins: `config.yaml`, `.hydra/` and the log file.

        To be called once all checks have passed, before anything else is written here.
        """
        self.has_begun = True
        text = OmegaConf.to_yaml(self._config, resolve=True)
        write_bytes(self.path / CONFIG, f"{PROGRAM}{self._program}\n{text}".encode())
        (self.path / OUTCOME).unlink(missing_ok=True)
        _write_hydra_files(self.path, self._config)
        file = LogFile(self.path / f"{HydraConfig.get().job.name}.log", encoding="utf-8")
        file.setFormatter(logging.Formatter(LOG_FORMAT))
        self._log.setTarget(file)
        self._log.flushLevel = logging.NOTSET  # from here on messages go to the file at once
        self._log.flush()

    def close(self) -> None:
        logging.getLogger().removeHandler(self._log)
        if self._log.target is not None:
            self._log.target.close()
        self._log.close()


def current_folder() -> Path:
    """The run folder that Hydra has composed."""
    return Path(HydraConfig.get().runtime.output_dir)


@contextmanager
def open_folder(config: DictConfig, program: str, *, key: str, overwrite: bool = True) -> Iterator[RunFolder]:
    """Lock the run folder for the block. If the block fails, write the reason into the folder.

    Args:
        key: setting that names the folder, for messages.
        overwrite: an earlier run of the same program may be there.

    Raises:
        CocosegError: the folder holds an earlier run or the files of another program, or another process
            writes to it.
    """
    path = current_folder()
    require_free(path, program, key=key, overwrite=overwrite)
    with locked(path, key=key):
        require_free(path, program, key=key, overwrite=overwrite)  # another process may have been here
        remove_parts(path)
        folder = RunFolder(path, config, program)
        try:
            yield folder
        except BaseException as error:
            # A run may have written its outcome itself; a disk that is full takes none.
            if folder.has_begun and not (path / OUTCOME).exists():
                with suppress(CocosegError):
                    Outcome.of(error).write(path)
            raise
        finally:
            folder.close()


def record_refused_job(config: DictConfig, error: BaseException) -> None:
    """Describe a job of a sweep that ended before its run began, so that the leaderboard lists the reason.

    The folder of a job belongs to its sweep. That of a single run, which has no number, is left as it was.
    """
    folder = current_folder()
    is_job = not OmegaConf.is_missing(HydraConfig.get().job, "num")
    if is_job and not (folder / CONFIG).exists() and not (folder / OUTCOME).exists():
        with suppress(CocosegError):
            _write_hydra_files(folder, config)
            Outcome.of(error).write(folder)


def require_free(folder: Path, program: str, *, key: str, overwrite: bool) -> None:
    """Raise CocosegError where `program` would overwrite files of another program or of an earlier run."""
    shown = from_here(folder)
    if program != "train" and any((folder / name).exists() for name in (CHECKPOINTS, LEDGER)):
        raise CocosegError(
            f"{key}: {shown} is the folder of a training, whose files would be overwritten; "
            "name another folder"
        )
    if not (folder / CONFIG).is_file():
        return
    with (folder / CONFIG).open(errors="replace") as file:
        first_line = file.readline(100).rstrip("\n")
    is_old_training = program == "train" and not first_line.startswith(PROGRAM)
    if first_line != PROGRAM + program and not is_old_training:
        raise CocosegError(f"{key}: {shown} holds a {CONFIG} of another program; name another folder")
    if not overwrite:
        raise CocosegError(
            f"{key}: {shown} already holds a run; name another folder, or resume that run by resume=auto"
        )


def _write_hydra_files(folder: Path, config: DictConfig) -> None:
    """Write `.hydra/` as `hydra.core.utils.run_job` does."""
    hydra: Any = HydraConfig.instance().cfg
    contents = {
        "config.yaml": config,
        "hydra.yaml": OmegaConf.masked_copy(hydra, "hydra"),
        "overrides.yaml": hydra.hydra.overrides.task,
    }
    for name, content in contents.items():
        write_bytes(folder / HYDRA / name, OmegaConf.to_yaml(content).encode())


class MakeFolder(Callback):
    """Hydra callback: makes the folder of a command, or refuses it. A refused command leaves none behind.

    Hydra would make it, too, with a stack trace where it can't. Commands that begin in the same second get a
    folder each, where it is named by the time.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make(config, "hydra.run.dir", "output" if "output" in config else "run_dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _make(config, "hydra.sweep.dir", "hydra.sweep.dir")


def _make(config: DictConfig, place: str, key: str) -> None:
    with report_errors():  # Hydra turns errors of callbacks into warnings
        # Hydra's `on_job_end` is left out where a program exits.
        atexit.register(make_folder(config, place, key))


def make_folder(config: DictConfig, place: str, key: str) -> Callable[[], None]:
    """Make the folder that a key of Hydra names. Returns a function that removes it if it is still empty.

    Args:
        place: Hydra's key, as `hydra.run.dir`.
        key: setting by which users name the folder.
    """
    times = OmegaConf.get_cache(config)["now"]  # results of `${now:…}`, which jobs of a multirun take over
    with writing_to(Path(OmegaConf.select(config, place)), key=key):
        begin = times.get((TIME,))
        for number in itertools.count(2):
            folder = Path(OmegaConf.select(config, place)).absolute()
            is_named_by_time = begin is not None and begin in folder.name
            try:
                remove = make_folders(folder, exist_ok=not is_named_by_time)
                break
            except FileExistsError:
                if not is_named_by_time or not folder.exists():
                    raise
                times[TIME,] = f"{begin}_{number}"
    return remove
