"""What ends a program with one line: a user's mistake, an incomplete download, training that can't go on."""


class CocosegError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The entry points print it on stderr and exit with `exit_code`; anything else that is raised is a bug.
    """

    exit_code = 2

    @property
    def sentence(self) -> str:
        """The message alone: a DataLoader worker's exception arrives wrapped in its stack trace."""
        return str(self).rsplit("CocosegError: ", 1)[-1].strip()


class IncompleteError(CocosegError):
    """Some of the data could not be fetched; running the program again may be all that is needed."""

    exit_code = 1


class TrainingError(CocosegError):
    """Training can't go on, for no mistake in the input: out of memory, a loss that is no number."""

    exit_code = 1
