"""Errors that the user can correct, and the libraries' logs, which are silenced."""

import logging

from absl import logging as absl_logging


class UserError(Exception):
    """An error that the user can correct. A command prints it as one line and exits with status 1.

    The message names what is wrong, the value, the allowed values, and what to do.
    """


class MissingDataError(UserError):
    """A dataset does not exist."""


class OtherClassesError(UserError):
    """The classes of a dataset are not those of the model."""


class DivergedError(UserError):
    """The loss or the gradient is no longer finite, so the run cannot continue with this config."""


def quiet_libraries() -> None:
    """Silences the logs of libraries, whose errors reach the user in one line. Shows this project's warnings."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("mixer").setLevel(logging.WARNING)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not empty; the name of its type if there is none."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # str(KeyError) adds quotes
    return next((line for line in text.splitlines() if line.strip()), type(error).__name__)
