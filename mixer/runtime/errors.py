"""What a user is told: errors that are theirs to mend, each one line, and this project's own warnings."""

import logging

from absl import logging as absl_logging


class UserError(Exception):
    """What was wrong, the value, what is allowed, what to do. Commands print this one line and exit with status 1."""


class MissingDataError(UserError):
    """A dataset is not there."""


class DivergedError(UserError):
    """Loss or gradient is no longer finite: the run cannot go on as it is."""


def quiet_libraries() -> None:
    """Silences the libraries' logs, since what they raise is told in one line; this project's warnings are shown."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("mixer").setLevel(logging.WARNING)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or its type's name."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # KeyError puts quotes on
    return next((line for line in text.splitlines() if line.strip()), type(error).__name__)
