"""Errors that the user can correct, and the libraries' logs, which are silenced."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging as absl_logging


class UserError(Exception):
    """An error that the user can correct. A command prints it as one line and exits with status 1.

    The message names what is wrong, the value, the allowed values, and what to do.
    """


class ArgumentError(ValueError):
    """A word of the user, such as the name of a task, is none of those expected.

    Whoever knows where the user gave it turns this into a `UserError`.
    """


class MissingDataError(UserError):
    """A dataset does not exist."""


class SeveralLabelsError(UserError):
    """The examples of a dataset have more labels than there is room for."""


class OtherClassesError(UserError):
    """The classes of a dataset are not those of the model."""


class DivergedError(UserError):
    """Loss, gradient or parameters are no longer finite, so the run cannot continue with this config."""


def quiet_libraries() -> None:
    """Silences the logs of libraries, whose errors reach the user in one line. Shows this project's warnings.

    Also JAX's warnings in its search for devices: that it falls back to the CPU, or cannot load a GPU's library.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    for name in ("mixer", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _Shared:
    """Enters a block's context with the first of several threads, and leaves it with the last."""

    def __init__(self, context: Callable[[], contextlib.AbstractContextManager[None]]):
        self._context, self._lock, self._within = context, threading.Lock(), 0
        self._entered = contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._within += 1
            if self._within == 1:
                self._entered.enter_context(self._context())
        try:
            yield
        finally:
            with self._lock:
                self._within -= 1
                if not self._within:
                    self._entered.close()


@contextlib.contextmanager
def _root_logger_kept() -> Iterator[None]:
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in logging.root.handlers[:]:
            if handler not in before and type(handler) in (logging.StreamHandler, absl_logging.ABSLHandler):
                logging.root.removeHandler(handler)


@contextlib.contextmanager
def _library_logs_silenced() -> Iterator[None]:
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.CRITICAL)
    try:
        with root_logger_kept():
            yield
    finally:
        absl_logger.setLevel(level)


root_logger_kept = _Shared(_root_logger_kept)
"""Takes back the handlers that an import within the block gives to Python's root logger.

Orbax logs while it is imported, and absl then gives the root logger a handler. In a notebook, a later
`logging.basicConfig` of the user would have no effect.
"""

library_logs_silenced = _Shared(_library_logs_silenced)
"""Silences absl's log, into which Orbax and TFDS write, within the block, and leaves Python's root logger as it was.

In a notebook it would show what the user did not ask for. Errors are raised all the same.
"""


def ignore_closed_loops() -> None:
    """Makes Python drop one kind of message of a callback.

    Orbax closes its event loop at the first array that cannot be written, while TensorStore still writes others. Each
    of them then reports a closed loop with a traceback, beside the error that matters (orbax-checkpoint 0.12.8).
    """
    if getattr(sys.unraisablehook, "__name__", "") != "without_closed_loops":
        report = sys.unraisablehook

        def without_closed_loops(unraisable: Any) -> None:
            if str(unraisable.exc_value) != "Event loop is closed":
                report(unraisable)

        sys.unraisablehook = without_closed_loops


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message that is not empty; the name of its type if there is none."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)  # str(KeyError) adds quotes
    return next((line for line in text.splitlines() if line.strip()), type(error).__name__)
