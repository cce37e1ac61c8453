"""What a user is told: errors that are theirs to mend, each one line, and this project's own warnings."""

import logging

from absl import logging as absl_logging


class UserError(Exception):
    """What was wrong, the value, what is allowed, what to do. Commands print this one line and exit with status 1."""


def quiet_libraries() -> None:
    """Lets the libraries report errors only, and this project its warnings too."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("mixer").setLevel(logging.WARNING)
