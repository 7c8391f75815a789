"""The one exception that stands for a user's mistake."""


class CocosegError(ValueError):
    """Bad input: one sentence that says what is wrong, where, and what to do.

    The entry points print it on stderr and exit with 2; anything else that is raised is a bug.
    """

    @property
    def sentence(self) -> str:
        """The message alone: a DataLoader worker's exception arrives wrapped in its stack trace."""
        return str(self).rsplit("CocosegError: ", 1)[-1].strip()
