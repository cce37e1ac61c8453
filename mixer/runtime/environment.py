"""Variables that TensorFlow reads while it is imported."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

# TensorFlow's start-up messages are about nothing that a user here can change. oneDNN has nothing to speed up in an
# input pipeline, and its rounding depends on the processor.
_VARIABLES = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}


def prepare() -> None:
    """Sets the variables for this process, unless the user has set them. Commands call it first."""
    for name, value in _missing().items():
        os.environ[name] = value


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Sets the variables for an import within the block only. So a notebook's environment stays as it was."""
    added = _missing()
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _missing() -> dict[str, str]:
    variables = dict(_VARIABLES)
    # Where nobody knows the home folder, as in a container without HOME, Keras would make a folder called ~.
    if os.path.expanduser("~") == "~":
        variables["KERAS_HOME"] = os.path.join(tempfile.gettempdir(), ".keras")
    return {name: value for name, value in variables.items() if name not in os.environ}
