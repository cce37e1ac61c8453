"""Variables that TensorFlow reads while it is imported."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

# TensorFlow's start-up messages are about nothing that a user here can change. oneDNN has nothing to speed up in an
# input pipeline, and its rounding depends on the processor.
_VARIABLES = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
_SET_BY_JAX = {"TF_CPP_MIN_LOG_LEVEL": "1"}  # while JAX is imported, unless the user has set it


def prepare() -> None:
    """Sets the variables for this process, unless the user has set them. Commands call it first."""
    os.environ.update(_changes(_VARIABLES))


@contextlib.contextmanager
def prepared(**more: str) -> Iterator[None]:
    """Sets the variables, and more, for an import within the block. So a notebook's environment stays as it was."""
    changes = _changes(_VARIABLES | more)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _changes(wanted: dict[str, str]) -> dict[str, str]:
    variables = dict(wanted)
    # Where nobody knows the home folder, as in a container without HOME, Keras would make a folder called ~.
    if os.path.expanduser("~") == "~":
        variables["KERAS_HOME"] = os.path.join(tempfile.gettempdir(), ".keras")
    return {name: value for name, value in variables.items() if os.environ.get(name) in (None, _SET_BY_JAX.get(name))}
