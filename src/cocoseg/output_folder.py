"""The folder that evaluate.py and predict.py write to: no training's, no other program's. No torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cocoseg.errors import CocosegError
from cocoseg.files import from_here
from cocoseg.ledger import LEDGER

OF_A_TRAINING = ("checkpoints", LEDGER)
TELLS_APART = ("checkpoint", "split", "input")  # keys: which program a config.yaml is of


def require_own(folder: Path, config: Mapping[str, Any], key: str) -> None:
    """Refuse a folder whose files would be written over.

    Args:
        config: of this run.
        key: that names the folder.

    Raises:
        CocosegError: a training's files are there, or a `config.yaml` that this program did not write.
    """
    shown = from_here(folder)
    if any((folder / name).exists() for name in OF_A_TRAINING):
        raise CocosegError(
            f"{key}: {shown} is the folder of a training, whose files would be written over; "
            "name another folder"
        )
    path = folder / "config.yaml"
    if path.exists() and _program(_read(path)) != _program(config):
        raise CocosegError(f"{key}: {shown} holds a config.yaml of another program; name another folder")


@contextmanager
def alone(folder: Path, key: str) -> Iterator[None]:
    """Keep other processes of these programs out of a folder.

    Raises:
        CocosegError: one is there.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        shown = from_here(folder)
        raise CocosegError(f"{key}: another process writes to {shown}; name another folder") from error
    try:
        yield
    finally:
        lock.release()


def _program(config: Mapping[str, Any]) -> set[str]:
    return {key for key in TELLS_APART if key in config}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException):
        return {}
    return content if isinstance(content, dict) else {}
