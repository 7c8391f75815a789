"""Errors that end a program with one line: bad input, an incomplete download, a lack of memory, …"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The disk is full, read-only or the like, which is for the user to mend and no bug.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)
# Control characters, line breaks, changes of the direction of text, surrogates.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Programs of a checkout as messages and help name them, but not as the end of a path.
_PROGRAM = re.compile(r"(?:\bpython |(?<![\w./\\-]))(train|prepare|evaluate|predict)\.py\b")


def printable(text: str) -> str:
    """Replace by blanks all characters that change how a terminal or an editor shows the text around them.

    Names and messages from files pass here before they are shown.
    """
    return _UNPRINTABLE.sub(" ", text)


def count_of(number: int, noun: str) -> str:
    """Write a number and its noun: 1 image, 2 images, 3 classes."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def name_programs(text: str) -> str:
    """Write `cocoseg-train` for `python train.py`, and the like, where an installed command is running."""
    is_installed = Path(sys.argv[0]).name.startswith("cocoseg-")
    return _PROGRAM.sub(r"cocoseg-\1", text) if is_installed else text


def reason_of(error: BaseException) -> str:
    """The message of an error in one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class CocosegError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The entry points print it on stderr and exit with `exit_code`; anything else that is raised is a bug.
    """

    exit_code = 2

    @property
    def sentence(self) -> str:
        """The message alone: a DataLoader worker's exception arrives wrapped in its stack trace."""
        return printable(str(self).rsplit("CocosegError: ", 1)[-1].strip())


class WriteError(CocosegError):
    """A file can't be written: the disk is full, read-only or the like."""


class IncompleteError(CocosegError):
    """Some of the data could not be fetched; running the program again may be all that is needed."""

    exit_code = 1


class TrainingError(CocosegError):
    """The work can't go on, through no fault of the input: out of memory, a NaN loss, a killed process."""

    exit_code = 1


@contextmanager
def report_errors() -> Iterator[None]:
    """End the process with one line on stderr where the error is the user's to mend."""
    try:
        yield
    except Exception as error:
        sentence = one_line(error)
        if sentence is None or shows_traces():
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", CocosegError.exit_code))


def shows_traces() -> bool:
    """Tell whether the user wants stack traces of all errors."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def one_line(error: BaseException) -> str | None:
    """The message for the user, or None where the error is a bug."""
    if isinstance(error, CocosegError):
        return name_programs(error.sentence)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = "the output" if error.filename is None else error.filename
        return printable(f"{where}: {error.strerror}")
    return None
