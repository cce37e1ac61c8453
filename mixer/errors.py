"""Errors that are the user's to mend: the commands print their one line and exit with status 1, no traceback."""


class UserError(Exception):
    """What was wrong, the value, what is allowed, what to do: in one line."""
